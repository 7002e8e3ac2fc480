"""Any causal language model of transformers as a memory over tokens: `logits, state = model(tokens, state)`.

    model = load_hub("path/to/a/directory")
    logits, state = model(tokens, model.init_state(batch_size))

The state is the model's cache, taken apart into tensors: keys and values with time on axis 1 (they grow), convolution and
recurrent states as they are. Each call puts a cache together from copies, so the state given is never written. Rows that have
read different numbers of tokens are read by groups.

Not every cache of transformers keeps the law: some models forget a recurrent state when several tokens follow it, some keep it
inside their modules. So a cache is trusted only after it was tried, on a few tokens: reading them in pieces must give what reading
them whole gives. Where it does not, the pieces are single tokens; where that fails too, or the cache is of a kind not known here, the
state is the tokens themselves, and all are read again at every call: slow, and right for every model.
"""

from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from memseq.contract import Memory, check_rows
from memseq.errors import CheckpointError, InputError, MissingExtraError
from memseq.state import select, stack

try:
    from transformers import AutoConfig, AutoModelForCausalLM, cache_utils
    from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer, LinearAttentionLayer
except ModuleNotFoundError:
    raise MissingExtraError("transformers", extra="hf") from None

__all__ = ["HubModel", "HubState", "is_hub_directory", "load_hub"]

TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-9}  # of differences of logits, in their standard deviation; else 0.05
TRIED = 9  # tokens that a cache is tried on
HYBRIDS = ("LinearAttentionAndFullAttentionLayer", "LinearAttentionAndSlidingWindowAttentionLayer")  # not in every release
KNOWN = {DynamicLayer, DynamicSlidingWindowLayer, LinearAttentionLayer} | {vars(cache_utils)[n] for n in HYBRIDS if n in vars(cache_utils)}

Part = tuple[str, int]  # what a tensor of a cache is, and its number
KEYS, VALUES = ("keys", 0), ("values", 0)


class HubState(NamedTuple):
    """What a stream keeps; `layers` is empty where the tokens themselves are kept."""

    layers: tuple[tuple[Tensor, ...], ...]  # of each layer: keys and values [B, S, H, K], or states of constant size
    tokens: Int[Tensor, "B S"]  # on the host; S = 0 where a cache is kept
    position: Int[Tensor, "B"]  # tokens read, on the host


class HubModel(Memory[HubState]):
    """Wraps a causal language model of transformers; `how` says what the state is: "cache", "steps" or "tokens"."""

    def __init__(self, wrapped: Any) -> None:
        super().__init__()
        self.wrapped, self.config = wrapped.eval(), wrapped.config.get_text_config()
        limit = getattr(self.config, "max_position_embeddings", None)
        self.longest: int | None = limit if isinstance(limit, int) and limit > 0 else None
        self.how = "tokens"
        self._empty: tuple[tuple[Tensor, ...], ...] = ()
        self._parts: tuple[tuple[Part, ...], ...] = ()
        self.how = self._found_out()

    @property
    def bounded(self) -> bool:  # type: ignore[override]
        return self.how != "tokens" and not any(KEYS in layer for layer in self._parts)

    @property
    def vocab_size(self) -> int:
        return self.config.vocab_size

    # --------------------------------------------------------------------------------------------------------- the law

    def init_state(self, batch_size: int) -> HubState:
        layers = self._empty if self.how != "tokens" else ()
        nothing = torch.zeros(batch_size, 0, dtype=torch.int64)
        rows = tuple(tuple(t.expand(batch_size, *t.shape[1:]) for t in layer) for layer in layers)
        return HubState(rows, nothing, torch.zeros(batch_size, dtype=torch.int64))

    def forward(self, tokens: Int[Tensor, "B T"], state: HubState) -> tuple[Float[Tensor, "B T V"], HubState]:
        groups = state.position.unique().tolist()
        if len(groups) == 1:
            return self._read(tokens, state)
        rows = [(state.position == at).nonzero()[:, 0] for at in groups]
        read = [self._read(tokens[group.to(tokens.device)], select(state, group)) for group in rows]
        order = torch.cat(rows).argsort()
        logits = torch.cat([y for y, _ in read])[order.to(tokens.device)]
        return logits, select(stack([s for _, s in read]), order)

    def step(self, tokens: Int[Tensor, "B"], state: HubState) -> tuple[Float[Tensor, "B V"], HubState]:
        logits, state = self(tokens[:, None], state)
        return logits[:, 0], state

    def check_input(self, tokens: Tensor, state: HubState) -> None:
        if tokens.ndim != 2 or tokens.is_floating_point():
            raise InputError(f"{self.name} reads integer tokens of shape [B, T], got {tokens.dtype} of shape {list(tokens.shape)}")
        if tokens.shape[1] == 0:
            raise InputError(f"{self.name} was given a piece of T = 0 tokens; give at least one, or keep the state as it is")
        check_rows(tokens.shape[0], tokens.device, state)
        end = int(state.position.max()) + tokens.shape[1]
        if self.longest is not None and end > self.longest:
            raise InputError(f"{self.name} has {self.longest} positions and would read token {end}; start a new stream")

    @property
    def name(self) -> str:
        return type(self.wrapped).__name__

    # ---------------------------------------------------------------------------------------------------- what it does

    def _read(self, tokens: Tensor, state: HubState) -> tuple[Tensor, HubState]:
        """Rows that all stand at one position."""
        position = state.position + tokens.shape[1]
        if self.how == "tokens":
            held = state.tokens[:, : int(state.position[0])]
            read = torch.cat([held.to(tokens.device), tokens], dim=1)
            logits = self.wrapped(read, use_cache=False).logits[:, -tokens.shape[1] :]
            return logits, HubState((), read.cpu(), position)
        cache, logits = self._assembled(state), []
        for piece in tokens.split(1 if self.how == "steps" else tokens.shape[1], dim=1):
            out = self._call(piece, cache)
            logits.append(out.logits)
        return torch.cat(logits, dim=1), HubState(self._taken_apart(cache), state.tokens, position)

    def _call(self, tokens: Tensor, cache: Any) -> Any:
        """transformers has two words for a cache."""
        return self.wrapped(tokens, use_cache=True, **{self._word: cache})

    @property
    def _word(self) -> str:
        from inspect import signature

        named = signature(self.wrapped.forward).parameters
        return "cache_params" if "cache_params" in named and "past_key_values" not in named else "past_key_values"

    def _assembled(self, state: HubState) -> Any:
        """A cache that holds copies of the state; a new one for streams that have read nothing."""
        cache, read = DynamicCache(config=self.wrapped.config), int(state.position[0])
        if read == 0:
            return cache
        for layer, parts, held in zip(cache.layers, self._parts, state.layers, strict=True):
            named = dict(zip(parts, held, strict=True))
            if KEYS in named:
                longest = min(read, layer.sliding_window - 1) if isinstance(layer, DynamicSlidingWindowLayer) else read
                layer.update(*(named[part][:, :longest].transpose(1, 2) for part in (KEYS, VALUES)))
                if isinstance(layer, DynamicSlidingWindowLayer):
                    layer.cumulative_length = read
            for (kind, i), t in named.items():
                if kind == "conv_states":
                    layer.update_conv_state(t.clone(), state_idx=i)
                elif kind == "recurrent_states":
                    layer.update_recurrent_state(t.clone(), state_idx=i)
                    layer.has_previous_state[i] = True
        return cache

    def _taken_apart(self, cache: Any) -> tuple[tuple[Tensor, ...], ...]:
        """What a cache holds, as leaves of a state; a window that is a view of more is copied, so that it keeps no more alive."""
        held = (_parts_of(layer).values() for layer in cache.layers)
        return tuple(tuple(t.clone() if t.untyped_storage().nbytes() > t.nbytes else t for t in layer) for layer in held)

    # ------------------------------------------------------------------------------------------------ what it can keep

    @torch.no_grad()
    def _found_out(self) -> str:
        """Which kind of state keeps the law, tried on a few tokens."""
        tokens = torch.arange(3, 3 + TRIED)[None] % self.vocab_size
        tokens = tokens.to(next(self.wrapped.parameters()).device)
        whole = self.wrapped(tokens, use_cache=False).logits
        try:
            cache = DynamicCache(config=self.wrapped.config)
            self._call(tokens[:, :2], cache)
            found = [_parts_of(layer) for layer in cache.layers]
        except (TypeError, ValueError, AttributeError, KeyError, RuntimeError, NotImplementedError):
            return "tokens"
        if not all(found):
            return "tokens"
        self._parts = tuple(tuple(layer) for layer in found)
        self._empty = tuple(
            tuple(t[:1, :0] if part in (KEYS, VALUES) else torch.zeros_like(t[:1]) for part, t in layer.items()) for layer in found
        )
        for self.how in ("cache", "steps"):
            if self._keeps_the_law(tokens, whole):
                return self.how
        return "tokens"

    def _keeps_the_law(self, tokens: Tensor, whole: Tensor) -> bool:
        """Whether pieces of several sizes give what the whole gives."""
        try:
            state, read = self.init_state(1), []
            for piece in tokens.split([4, 1, TRIED - 5], dim=1):
                logits, state = self._read(piece, state)
                read.append(logits)
        except (TypeError, ValueError, AttributeError, KeyError, RuntimeError, IndexError):
            return False
        return bool((torch.cat(read, dim=1) - whole).abs().max() <= TOLERANCE.get(whole.dtype, 0.05) * whole.std())


def _parts_of(layer: Any) -> dict[Part, Tensor]:
    """What one layer of a cache holds, batch first and time second; empty for a kind of layer that is not known here."""
    if type(layer) not in KNOWN:
        return {}
    found: dict[Part, Tensor] = {}
    if isinstance(layer, DynamicLayer) and layer.keys is not None and layer.keys.numel():
        found |= {KEYS: layer.keys.transpose(1, 2), VALUES: layer.values.transpose(1, 2)}
    if isinstance(layer, LinearAttentionLayer):
        kinds = {"conv_states": layer.conv_states, "recurrent_states": layer.recurrent_states}
        found |= {(kind, i): t for kind, states in kinds.items() for i, t in states.items() if t is not None}
    return found


def is_hub_directory(directory: Path) -> bool:
    """Whether `directory` holds the config of a causal language model that transformers knows."""
    try:
        return type(AutoConfig.from_pretrained(directory)) in AutoModelForCausalLM._model_mapping
    except (OSError, ValueError, KeyError):
        return False


def load_hub(directory: str | Path, *, device: str = "cpu") -> HubModel:
    """The causal language model in `directory`, read from the disk alone.

    Raises `CheckpointError` where transformers knows no causal language model of its kind, or cannot load it.
    """
    directory = Path(directory)
    if not is_hub_directory(directory):
        raise CheckpointError(
            f"{directory} holds no model of memseq, and no causal language model that transformers knows; give a directory with a"
            " config.json of either"
        )
    try:
        wrapped = AutoModelForCausalLM.from_pretrained(directory, local_files_only=True)
    except (OSError, ValueError, RuntimeError, ImportError) as error:
        raise CheckpointError(f"{directory} holds a model that transformers cannot load: {error}") from None
    return HubModel(wrapped.to(device))
