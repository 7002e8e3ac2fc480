"""Our language models as Hugging Face models: `AutoModelForCausalLM`, `generate`, `Trainer`, peft and pipelines.

    import memseq
    model = AutoModelForCausalLM.from_pretrained("runs/first")        # a directory that memseq wrote, or save_pretrained
    model.generate(**tokenizer(prompts, padding=True, return_tensors="pt"), max_new_tokens=64)

The state travels as `past_key_values`, a `MemseqCache` of constant size. An attention mask says which tokens belong to a
stream: masked ones are never read, wherever they stand, so that padding on either side gives what the prompts alone would
give; at a masked place the output is that of the last token before it. Weights are named `model.*`, as in our own files.
"""

from collections.abc import Generator
from contextlib import contextmanager
from functools import partial
from typing import Any, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from memseq.contract import Memory, check_rows
from memseq.errors import CheckpointError, ConfigError, InputError, MissingExtraError
from memseq.models.language_model import LanguageModel
from memseq.retrofit.cache import MemseqCache, Stream, extend, histories, nothing_read
from memseq.retrofit.configuration import MemseqConfig, with_vocab_size
from memseq.state import State, select, stack
from memseq.streams import read_ragged, read_ragged_last

try:
    from transformers import AutoModelForCausalLM
    from transformers.generation import GenerationMixin
    from transformers.modeling_outputs import CausalLMOutputWithPast
    from transformers.modeling_utils import PreTrainedModel
    from transformers.utils import can_return_tuple
except ModuleNotFoundError:
    raise MissingExtraError("transformers", extra="hf") from None

__all__ = ["MemseqForCausalLM"]

CHECKPOINT_EVERY = 512  # tokens between two kept states under gradient checkpointing, for models without segments


class MemseqForCausalLM(PreTrainedModel, GenerationMixin):
    """A `LanguageModel` of ours, held as `self.model`, behind the interface of transformers."""

    config_class = MemseqConfig
    base_model_prefix = "model"
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    gradient_checkpointing = False
    _is_stateful = True  # a state cannot be cropped: no assisted decoding
    _supports_sdpa = True
    _skip_keys_device_placement = ["past_key_values"]

    def __init__(self, config: MemseqConfig) -> None:
        super().__init__(config)
        with _plain_surroundings() as dtype:
            self.model: LanguageModel[Any] = config.build().to(dtype)
        self._no_split_modules = [type(self.model).__name__]  # a state lies on one device
        self._tied_weights_keys = _shared_names(self)
        self.post_init()

    @classmethod
    def of(cls, model: LanguageModel[Any], **settings: Any) -> "MemseqForCausalLM":
        """The given model, not a copy, as a Hugging Face model; `settings` are those of transformers, such as `pad_token_id`."""
        with torch.random.fork_rng(devices=[]):
            wrapped = cls(MemseqConfig.of(model.config, **settings))
        wrapped.model = model
        return wrapped.train(model.training)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, output_loading_info: bool = False, **kwargs: Any) -> Any:
        """As in transformers. Raises `CheckpointError` where the weights are not those of the config, name by name."""
        model, info = super().from_pretrained(pretrained_model_name_or_path, *args, output_loading_info=True, **kwargs)
        for what in ("missing", "unexpected"):
            if names := sorted(info[f"{what}_keys"]):
                raise CheckpointError(
                    f"the weights in {pretrained_model_name_or_path} are not of the model in its config.json: {names[0]!r} is {what}"
                    f" ({len(names)} {what} in all); copy both files together"
                )
        model._restore_buffers()
        for p in model.parameters():
            if p.device.type == "cpu" and p.data_ptr() % 64:  # a view into the file: unaligned, so sums round differently than when saved
                p.data = p.data.clone()
        return (model, info) if output_loading_info else model

    def _init_weights(self, module: nn.Module) -> None:
        """Our modules initialise themselves where they are built, and nobody does it again."""

    def _restore_buffers(self) -> None:
        """Loading leaves buffers that are not saved unset, such as rotary frequencies: take them from a newly built model."""
        unset = [name for name, _ in self.named_non_persistent_buffers()]
        if unset:
            with _plain_surroundings(), torch.random.fork_rng(devices=[]):
                fresh = self.config.build().to(self.dtype)
            for name in unset:
                owner, _, leaf = name.rpartition(".")
                setattr(self.get_submodule(owner), leaf, fresh.get_buffer(name.removeprefix("model.")).to(self.get_buffer(name).device))

    # ------------------------------------------------------------------------------------------------------- embeddings

    def get_input_embeddings(self) -> nn.Module:
        return self.model.embedding

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.model.embedding = cast(nn.Embedding, value)

    def get_output_embeddings(self) -> None:
        """None: the head reads the input embedding, or is a part of the model."""

    def resize_token_embeddings(
        self, new_num_tokens: int | None = None, pad_to_multiple_of: int | None = None, mean_resizing: bool = True
    ) -> nn.Embedding:
        """The model for another vocabulary: rows of tokens it knew are kept, new ones are the mean of these (or newly drawn)."""
        old = self.model.vocab_size
        size = old if new_num_tokens is None else new_num_tokens
        if pad_to_multiple_of:
            size = -(-size // pad_to_multiple_of) * pad_to_multiple_of
        if size != old:
            config = with_vocab_size(self.model.config, size)
            device, dtype, training = self.device, self.dtype, self.model.training
            self.model = _with_vocabulary(self.model, config.build().to(device, dtype), old, size, mean_resizing).train(training)
            self.config.model, self.config.vocab_size = MemseqConfig.of(config).model, size
            self._tied_weights_keys = _shared_names(self)
        return self.model.embedding

    # ---------------------------------------------------------------------------------------------------------- reading

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Read `input_ids` [B, T] after what `past_key_values` holds: logits [B, T, V], or of the last `logits_to_keep` places.

        `attention_mask` [B, T], or longer: its last T columns count. `labels` [B, T] as everywhere in transformers: shifted
        here, -100 is not scored; the first token of a stream has nothing to be predicted from and is not scored either.
        """
        if inputs_embeds is not None or input_ids is None:
            raise InputError("a memseq model reads token ids: give input_ids (a state may hold tokens, which embeddings cannot say)")
        cache = self._cache(past_key_values, use_cache)
        stream = cache.stream if cache is not None else None
        if stream is None:
            rows = input_ids.shape[0]
            stream = Stream(self.model.init_state(rows), nothing_read(rows, input_ids.device))
        check_rows(input_ids.shape[0], input_ids.device, stream.history)
        valid = self._valid(input_ids, attention_mask)
        tokens = input_ids if valid is None else input_ids.masked_fill(~valid, 0)

        if labels is None and not torch.is_grad_enabled() and isinstance(logits_to_keep, int) and logits_to_keep == 1:
            logits, state = self._read_last(tokens, valid, stream.state)
        else:
            h, state = self._read(tokens, valid, stream.state, state_is_kept=cache is not None)
            kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
            logits = self.model.head(h[:, kept])
        loss = None
        if labels is not None:
            scored = labels if valid is None else _only_predicted(labels, valid, stream.history.seen)
            loss = self.loss_function(logits=logits, labels=scored, vocab_size=self.model.vocab_size, **kwargs)
            if self.training and torch.is_grad_enabled():
                loss = _Touch.apply(loss, *_whole_parameters(self))
        if cache is not None:
            cache.stream = Stream(state, extend(stream.history, tokens, valid))
        return CausalLMOutputWithPast(loss=loss, logits=logits, past_key_values=cache)

    def _cache(self, given: Any, use_cache: bool | None) -> MemseqCache | None:
        """The cache to read after and to leave the next state in; none in training, unless one is given."""
        if given is not None:
            if not isinstance(given, MemseqCache):
                raise InputError(
                    f"past_key_values of a memseq model is a MemseqCache, got {type(given).__name__}; start with MemseqCache()"
                )
            return given
        wanted = use_cache if use_cache is not None else self.config.use_cache and not self.training
        return MemseqCache() if wanted else None

    def _valid(self, tokens: Int[Tensor, "B T"], mask: Tensor | None) -> Bool[Tensor, "B T"] | None:
        """Which tokens are a stream's own; None where all are."""
        pad = self.config.pad_token_id
        own = tokens != pad if pad is not None and pad >= self.model.vocab_size else None  # no such token can be read
        if mask is not None:
            if mask.ndim != 2 or mask.shape[0] != tokens.shape[0] or mask.shape[1] < tokens.shape[1]:
                raise InputError(
                    f"attention_mask has shape {list(mask.shape)}, input_ids {list(tokens.shape)}; give one 0 or 1 for each token"
                )
            local = mask[:, -tokens.shape[1] :].to(tokens.device) != 0
            own = local if own is None else own & local
        return None if own is None or bool(own.all()) else own

    def _read(self, tokens: Tensor, valid: Tensor | None, state: State, *, state_is_kept: bool) -> tuple[Float[Tensor, "B T D"], State]:
        """Features at every place, and the next state (of no use where it is not kept: reading may run on past a row's end)."""
        if valid is None:
            return self._features(tokens, state)
        if not bool(valid.any()):
            raise InputError("attention_mask hides every token: there is nothing to read")
        if state_is_kept:
            own = [row[mask] for row, mask in zip(tokens, valid, strict=True)]
            read, state = read_ragged(_Headless(self), own, state)
            h = pad_sequence(read, batch_first=True)
        else:  # what follows a row's tokens changes nothing before it: one rectangle, with every row's tokens moved to its left
            order = (~valid).long().argsort(dim=1, stable=True)[:, : int(valid.sum(1).max())]
            h, state = self._features(tokens.gather(1, order), state)
        place = valid.long().cumsum(1) - 1
        h = h.gather(1, place.clamp(min=0)[..., None].expand(-1, -1, h.shape[-1]))
        return torch.where(place[..., None] >= 0, h, 0), state

    def _read_last(self, tokens: Tensor, valid: Tensor | None, state: State) -> tuple[Float[Tensor, "B 1 V"], State]:
        """Logits after the last token of every row, in memory that does not grow with the prompt; zeros for a row without tokens."""
        if valid is None and tokens.shape[1] == 1:
            logits, state = self.model.step(tokens[:, 0], state)
            return logits[:, None], state
        own = list(tokens) if valid is None else [row[mask] for row, mask in zip(tokens, valid, strict=True)]
        awake = [i for i, row in enumerate(own) if len(row)]
        asleep = [i for i, row in enumerate(own) if not len(row)]
        if not asleep:
            logits, state = read_ragged_last(self.model, own, state)
            return logits[:, None], state
        logits = self.model.embedding.weight.new_zeros(len(own), self.model.vocab_size)
        if awake:
            read, after = read_ragged_last(self.model, [own[i] for i in awake], select(state, awake))
            logits = logits.index_copy(0, torch.tensor(awake, device=logits.device), read.to(logits.dtype))
            state = select(stack([after, select(state, asleep)]), torch.tensor(awake + asleep).argsort())
        return logits[:, None], state

    def _features(self, tokens: Tensor, state: State) -> tuple[Float[Tensor, "B T D"], State]:
        """`model.features`; under gradient checkpointing as a chain that keeps one state a segment and computes the rest again."""
        self.model.check_input(tokens, state)
        if not (self.gradient_checkpointing and self.training and torch.is_grad_enabled()):
            return self.model.features(tokens, state)
        if cast(partial[Any], self._gradient_checkpointing_func).keywords.get("use_reentrant"):
            raise ConfigError("use_reentrant=True cannot carry a state; leave it out of gradient_checkpointing_kwargs, or set it to False")
        read = []
        for piece in tokens.split(self.model.segment_length or CHECKPOINT_EVERY, dim=1):
            h, state = self._gradient_checkpointing_func(self.model.features, piece, state)
            read.append(h)
        return torch.cat(read, dim=1), state

    # ------------------------------------------------------------------------------------------------------- generation

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return False  # keys and values are not what we keep

    def generate(self, inputs: Tensor | None = None, generation_config: Any = None, *args: Any, **kwargs: Any) -> Any:
        """As in transformers. With a cache, `inputs` are either new tokens, or all tokens: those the cache has read are not read again.

        Which of the two is seen from the tokens themselves; an attention mask longer than `inputs` says that they are new.
        What is returned last has not been read yet: new tokens begin with it.
        """
        tokens = inputs if inputs is not None else kwargs.get("input_ids")
        mask = kwargs.get("attention_mask")
        kwargs["prefill_chunk_size"] = None  # a prompt of any length is read in constant memory anyway
        if tokens is not None and mask is not None and tokens.ndim == 2:
            own = self._valid(tokens, mask)
            if own is not None and not bool(own.any(1).all()):
                row = int(own.any(1).logical_not().nonzero()[0])
                raise InputError(f"prompt {row} is empty: there is nothing to continue; give it at least one token")
        cache = self._cache(kwargs.get("past_key_values"), use_cache=False)
        if cache is not None and cache.stream is not None and tokens is not None:
            kwargs["attention_mask"] = self._unread(tokens, mask, cache)
            copies = self._copies(generation_config, kwargs)
            if copies > 1 and cache.stream.history.seen.shape[0] == tokens.shape[0]:
                cache.batch_repeat_interleave(copies)
        return GenerationMixin.generate(cast(Any, self), inputs, generation_config, *args, **kwargs)

    def _copies(self, generation_config: Any, kwargs: dict[str, Any]) -> int:
        """How often generate repeats each prompt: beams, or sequences returned."""
        settings = generation_config if generation_config is not None else self.generation_config
        return max(kwargs.get(name) or getattr(settings, name) or 1 for name in ("num_beams", "num_return_sequences"))

    def _unread(self, tokens: Int[Tensor, "B T"], mask: Tensor | None, cache: MemseqCache) -> Int[Tensor, "B S"]:
        """A mask over `tokens` that hides what the cache has read, with one more column in front: tokens are not to be sliced."""
        history = cache.stream.history
        held, rows = history.seen.shape[0], tokens.shape[0]
        if held != rows and held % rows == 0:  # a cache that was forked for the beams already
            history = select(history, slice(None, None, held // rows))
        check_rows(rows, tokens.device, history)
        own = self._valid(tokens, mask)
        own = torch.ones_like(tokens, dtype=torch.bool) if own is None else own
        if mask is None or mask.shape[1] == tokens.shape[1]:
            own = own & ~self._repeated(tokens, own, history)
        return torch.cat([own.new_zeros(rows, 1), own], dim=1).long()

    def _repeated(self, tokens: Tensor, own: Tensor, history: Any) -> Bool[Tensor, "B T"]:
        """The tokens with which every row repeats what its stream has read; none where the rows hold new tokens only."""
        start = nothing_read(tokens.shape[0], tokens.device)
        number, digest, _ = histories(tokens, own, start)
        seen, wanted = history.seen.to(tokens.device)[:, None], history.hash.to(tokens.device)[:, None]
        repeats = ((number == seen) & (digest == wanted) & own).any(1) & (seen[:, 0] > 0)
        if not bool(repeats.any()):
            return torch.zeros_like(own)
        if not bool((repeats | (seen[:, 0] == 0)).all()):
            raise InputError(
                f"prompts {repeats.nonzero()[:, 0].tolist()} begin with what the cache has read and the others do not; give all tokens of"
                " every stream, or new ones only (say so with an attention_mask that also has columns for the tokens read)"
            )
        if bool((number[:, -1:] <= seen).any()):
            row = int((number[:, -1] <= seen[:, 0]).nonzero()[0])
            raise InputError(f"the cache has read all {int(seen[row])} tokens of prompt {row}; give at least one that it has not read")
        return own & (number <= seen)


class _Headless(Memory[State]):
    """A language model up to its head, as a memory over tokens: what `read_ragged` reads where the head comes later."""

    def __init__(self, wrapped: MemseqForCausalLM) -> None:
        super().__init__()
        self.config, self.features = wrapped.model.config, wrapped._features
        self.embedding = wrapped.model.embedding

    def check_input(self, x: Tensor, state: State) -> None:
        """`_features` checks."""

    def forward(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        return self.features(x, state)


class _Touch(torch.autograd.Function):
    """The loss as it is, and a gradient of zero for every parameter, so that data-parallel training waits for none in vain.

    A writer has no gradient where nothing reads what it wrote: in a window of one segment.
    """

    @staticmethod
    def forward(ctx: Any, loss: Tensor, *parameters: Tensor) -> Tensor:
        ctx.save_for_backward(*parameters)
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:
        return grads[0], *(p.new_zeros(()).expand_as(p) for p in ctx.saved_tensors)  # no memory until it is added


def _whole_parameters(module: nn.Module) -> list[Tensor]:
    """The parameters that learn, without those of which this process holds a shard only."""
    if not torch.distributed.is_available():
        return [p for p in module.parameters() if p.requires_grad]
    from torch.distributed.tensor import DTensor

    return [p for p in module.parameters() if p.requires_grad and not isinstance(p, DTensor)]


def _only_predicted(labels: Tensor, valid: Tensor, seen: Tensor) -> Tensor:
    """Labels of the tokens that a stream reads after another one."""
    before = valid.long().cumsum(1) - valid.long() + seen.to(labels.device)[:, None]
    return labels.masked_fill(~valid | (before == 0), -100)


@contextmanager
def _plain_surroundings() -> Generator[torch.dtype]:
    """Build as outside of transformers: real tensors of float32, not on the meta device. Yields the dtype that is wanted."""
    dtype = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    device = torch.empty(0).device
    try:
        with torch.device("cpu" if device.type == "meta" else device):
            yield dtype
    finally:
        torch.set_default_dtype(dtype)


def _shared_names(module: nn.Module) -> dict[str, str]:
    """Parameters under two names: the second leads to the first, which is the one that is saved."""
    names = list(module.named_parameters(remove_duplicate=False))
    first = {id(p): name for name, p in reversed(names)}
    shared = {name: first[id(p)] for name, p in names if first[id(p)] != name}
    for name, inner in module.named_modules():  # a pretrained model inside: while it loads, transformers has not tied it yet
        if isinstance(inner, PreTrainedModel) and inner is not module:
            shared |= {f"{name}.{copy}": f"{name}.{source}" for copy, source in inner.all_tied_weights_keys.items()}
    return shared


@torch.no_grad()
def _with_vocabulary(model: nn.Module, larger: nn.Module, old: int, new: int, mean: bool) -> Any:
    """Copy the weights of `model` into `larger`, which differs in the size of its vocabulary."""
    weights = larger.state_dict()
    for name, t in model.state_dict().items():
        target = weights[name]
        if target.shape == t.shape:
            target.copy_(t)
        elif t.shape[0] == old and target.shape[0] == new and t.shape[1:] == target.shape[1:]:
            target[: min(old, new)] = t[: min(old, new)]
            if mean:
                target[old:] = t.mean(0)
        else:
            raise ConfigError(f"the vocabulary cannot be resized: {name} of shape {list(t.shape)} would become {list(target.shape)}")
    return larger


AutoModelForCausalLM.register(MemseqConfig, MemseqForCausalLM, exist_ok=True)
