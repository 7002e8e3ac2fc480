"""Any causal language model of transformers as a `Backbone`: the reader inside a segment of RMT, ARMT, HMT and their kin.

    backbone = HuggingFaceBackbone(AutoModelForCausalLM.from_pretrained(name))
    config = HuggingFaceConfig.of(hf_model)                          what is written to disk; build() makes new weights

The model is used as it is, through `inputs_embeds`, `attention_mask`, `position_ids` and a cache object of ours. Two ways to
keep an open segment, and which of them is right for a model is found out, not looked up: on a few vectors the model's answers in
two pieces are compared with its answers in one.

    keys and values    `SegmentCache`, where every layer keeps keys and values: Llama, Qwen, Mistral, GPT-2, GPT-NeoX, ...
    inputs             the segment's inputs, read again from its start: any other model, such as Mamba. A cache that is written in
                       place, as recurrent layers do, would break gradients and forks; a segment is short

At layers a `Visitor` is met by hooks that are registered once; who visits travels in a context variable, so that two threads may
read with one model, and nothing stays behind. Models whose head is more than a linear layer (capped or scaled logits) are refused.
"""

import inspect
import json
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from memseq.contract import empty
from memseq.errors import ConfigError, MissingExtraError, TrainingError
from memseq.layers.rotary import places, shared
from memseq.models.backbone import Backbone, Visitor
from memseq.ops.attention import band
from memseq.ops.cross_entropy import IGNORE, LOGITS_AT_ONCE, linear_cross_entropy
from memseq.retrofit.segment_cache import KeysAndValues, SegmentCache
from memseq.state import State, select, stack

try:
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.cache_utils import CacheLayerMixin, DynamicCache, DynamicLayer, DynamicSlidingWindowLayer
    from transformers.configuration_utils import PreTrainedConfig
    from transformers.modeling_utils import PreTrainedModel
except ModuleNotFoundError:
    raise MissingExtraError("transformers", extra="hf") from None

__all__ = ["HuggingFaceBackbone", "HuggingFaceConfig", "Inputs"]

NOT_OF_THE_FUNCTION = ("transformers_version", "_name_or_path", "architectures", "dtype", "torch_dtype", "use_cache")

NEAR = 0.3  # of the size of an embedding: how far new vectors lie from the mean one, so that no two are alike
TAKE_MASKS = ("sdpa", "eager")  # ways of attention that are given a mask as a tensor

_visit: ContextVar[tuple[Any, Visitor] | None] = ContextVar("visit", default=None)  # whose reading it is, and who comes along


@dataclass(frozen=True, kw_only=True)
class HuggingFaceConfig:
    """`HuggingFaceConfig.of(hf_model)`; `lora`, where there is one, is the adapter inside (`retrofit/adapters.py`)."""

    json: str  # transformers' own config, as text with sorted keys
    lora: str | None = None  # peft's config of the adapter, likewise

    def __post_init__(self) -> None:
        try:
            values = json.loads(self.json)
        except ValueError as error:
            raise ConfigError(f"json is not the text of a transformers config ({error}); use HuggingFaceConfig.of(model)") from None
        if not isinstance(values, dict) or "model_type" not in values:
            raise ConfigError("json names no model_type; use HuggingFaceConfig.of(model)")

    @classmethod
    def of(cls, source: PreTrainedModel | PreTrainedConfig, lora: str | None = None) -> "HuggingFaceConfig":
        """The config of a model, or one of transformers."""
        config = source if isinstance(source, PreTrainedConfig) else source.config
        values = {key: value for key, value in config.to_diff_dict().items() if key not in NOT_OF_THE_FUNCTION}
        return cls(json=json.dumps(values | {"model_type": config.model_type}, sort_keys=True), lora=lora)

    @property
    def hub(self) -> PreTrainedConfig:
        """As transformers has it."""
        values = json.loads(self.json)
        try:
            return AutoConfig.for_model(values.pop("model_type"), **values)
        except ValueError as error:
            raise ConfigError(f"this transformers cannot make the backbone's config: {str(error).splitlines()[0]}") from None

    @property
    def vocab_size(self) -> int:
        return self.hub.get_text_config().vocab_size

    @property
    def d_model(self) -> int:
        return self.hub.get_text_config().hidden_size

    def build(self) -> Backbone:
        """With new weights; those of a saved model are loaded over them."""
        model = AutoModelForCausalLM.from_config(self.hub)
        self.put_adapter(model)
        return HuggingFaceBackbone(model, self)

    def put_adapter(self, model: PreTrainedModel) -> None:
        """Put the adapter of `lora`, if there is one, into the model."""
        if self.lora is not None:
            from memseq.retrofit.adapters import inject

            inject(model, self.lora)

    def around(self, model: PreTrainedModel) -> Backbone:
        """`model` as the backbone that this config describes."""
        return HuggingFaceBackbone(model, self)


class Inputs(NamedTuple):
    """The cache of a model whose own is of no use here: what the open segment has read, and where it is."""

    inputs: Float[Tensor, "B S D"]  # slot i holds input i
    position: Int[Tensor, "B"]  # on the host


class HuggingFaceBackbone(Backbone):
    def __init__(self, model: PreTrainedModel, config: HuggingFaceConfig | None = None) -> None:
        super().__init__()
        self.config = HuggingFaceConfig.of(model) if config is None else config
        self.model = model  # with its head
        if getattr(model.config, "is_encoder_decoder", False):
            raise ConfigError(
                f"{type(model).__name__} has an encoder, and this system wraps a causal language model; use 'membart' for a BART"
            )
        self._layers = _layers_of(self.reader, model.config)
        self._mark = _Mark()
        for i, layer in enumerate(self._layers):
            layer.register_forward_pre_hook(_Before(i, self._mark), with_kwargs=True)
            layer.register_forward_hook(_After(i, self._mark))
        self.takes_positions = "position_ids" in inspect.signature(self.reader.forward).parameters
        self.shapes = self._probe()
        self.takes_mask = self.shapes is not None

    @property
    def reader(self) -> PreTrainedModel:
        """The model up to its head."""
        return cast(PreTrainedModel, self.model.base_model)

    @property
    def n_layers(self) -> int:
        return len(self._layers)

    @property
    def embedding(self) -> nn.Embedding:
        return cast(nn.Embedding, self.model.get_input_embeddings())

    def check_length(self, length: int) -> None:
        config = self.model.config.get_text_config()
        for name in ("max_position_embeddings", "sliding_window"):
            most = getattr(config, name, None)
            if most is not None and length > most and (name != "sliding_window" or _slides(self.model.config)):
                raise ConfigError(
                    f"the backbone has {name}={most} and would read {length} inputs a segment (tokens and memory);"
                    f" make segment_length at least {length - most} shorter"
                )

    def init_cache(self, batch_size: int, length: int) -> State:
        weight, position = self.embedding.weight, torch.zeros(batch_size, dtype=torch.int64)
        if self.shapes is None:
            return Inputs(empty(weight, batch_size, length, weight.shape[1]), position)
        keys, values = (tuple(empty(weight, batch_size, H, length, K) for H, K in shapes) for shapes in self.shapes)
        return KeysAndValues(keys, values, position)

    def read(
        self,
        x: Float[Tensor, "B T D"],
        cache: State | None,
        *,
        mask: Bool[Tensor, "T S"] | None = None,
        visitor: Visitor | None = None,
    ) -> tuple[Float[Tensor, "B T D"], State | None]:
        if (
            self.training
            and torch.is_grad_enabled()
            and any(getattr(m, "gradient_checkpointing", False) for m in (self.reader, self._layers[0]))
        ):
            raise TrainingError(
                "gradient checkpointing inside the backbone drops its cache; switch it off: memory replay keeps one segment"
            )
        token = _visit.set(None if visitor is None else (self._mark, visitor))
        try:
            if cache is None:
                return self._run(x, mask), None
            if shared(cache.position) is None and (self.shapes is None or not self.takes_positions):
                return self._read_by_position(x, cache)
            return self._read_inputs(x, cache) if self.shapes is None else self._read_keys(x, cache, mask)
        finally:
            _visit.reset(token)

    def new_vectors(self, n: int) -> Float[Tensor, "n D"]:
        """Near the mean embedding, which a pretrained network makes little of: random vectors would be words that it takes for text."""
        weight = self.embedding.weight.detach()
        weight = weight.to(torch.promote_types(weight.dtype, torch.float32))
        return weight.mean(0) + NEAR * weight.std() * torch.randn_like(weight.new_empty(n, weight.shape[1]))

    def head(self, h: Float[Tensor, "... D"]) -> Float[Tensor, "... V"]:
        return self.model.get_output_embeddings()(h)

    def score(self, h: Float[Tensor, "N D"], targets: Int[Tensor, "N"]) -> Float[Tensor, ""]:
        head = cast(nn.Module, self.model.get_output_embeddings())
        if type(head) is nn.Linear and head.bias is None:
            return linear_cross_entropy(h, head.weight, targets)
        return score_by_head(self.head, h, targets, self.config.vocab_size)

    def _run(self, x: Tensor, mask: Tensor | None, **given: Any) -> Tensor:
        if mask is not None:
            given["attention_mask"] = self._as_given(mask if mask.ndim == 4 else mask[None, None].expand(len(x), -1, -1, -1), x)
        return self.reader(inputs_embeds=x, use_cache="past_key_values" in given, return_dict=True, **given).last_hidden_state

    def _as_given(self, mask: Tensor, x: Tensor) -> Tensor:
        """A mask in the form that the model's attention takes."""
        kind = self.model.config._attn_implementation
        if kind == "sdpa":
            return mask
        if kind == "eager":
            return torch.zeros(mask.shape, dtype=x.dtype, device=x.device).masked_fill(~mask, torch.finfo(x.dtype).min)
        raise ConfigError(f"attention by {kind!r} takes no mask; load the backbone with attn_implementation='sdpa', or use mask='causal'")

    def _read_keys(self, x: Tensor, cache: KeysAndValues, mask: Tensor | None) -> tuple[Tensor, KeysAndValues]:
        held, n = SegmentCache(cache), x.shape[1]
        given: dict[str, Any] = {"past_key_values": held}
        start = shared(cache.position)
        if start is None:  # rows at positions of their own: slots past a row's own are hidden
            own = places(cache.position, n, x.device)
            given["position_ids"] = own
            mask = (torch.arange(int(cache.position.max()) + n, device=x.device) <= own[..., None])[:, None]
        elif mask is None and start and n > 1 and self.model.config._attn_implementation in TAKE_MASKS:
            mask = band(n, start + n, None, device=x.device)  # transformers would make the same one, for milliseconds
        return self._run(x, mask, **given), held.state(n)

    def _read_inputs(self, x: Tensor, cache: Inputs) -> tuple[Tensor, Inputs]:
        start, n = int(cache.position[0]), x.shape[1]
        inputs = cache.inputs.slice_scatter(x.to(cache.inputs.dtype), 1, start, start + n)
        return self._run(inputs[:, : start + n].to(x.dtype), None)[:, start:], Inputs(inputs, cache.position + n)

    def _read_by_position(self, x: Tensor, cache: Any) -> tuple[Tensor, Any]:
        """Rows at one position together, for models that cannot be told positions."""
        read, order = [], []
        for at in cache.position.unique().tolist():
            rows = (cache.position == at).nonzero()[:, 0]
            part = select(cache, rows)
            rows_x = x[rows.to(x.device)]
            read.append(self._read_inputs(rows_x, part) if self.shapes is None else self._read_keys(rows_x, part, None))
            order.append(rows)
        back = torch.cat(order).argsort()
        return torch.cat([h for h, _ in read])[back.to(x.device)], select(stack([after for _, after in read]), back)

    @torch.no_grad()
    def _probe(self) -> tuple[list[tuple[int, int]], list[tuple[int, int]]] | None:
        """(heads, size) of every layer's keys and values; None where only inputs can be kept. Refuses a head that is not linear."""
        training, weight = self.model.training, self.embedding.weight
        self.eval()
        try:
            ids = torch.arange(4, device=weight.device)[None] % weight.shape[0]
            x = self.embed(ids)
            h, logits = self._run(x, None), self.model(inputs_embeds=x, use_cache=False, return_dict=True).logits
            if not _near(self.head(h), logits):
                raise ConfigError(
                    f"{type(self.model).__name__} does more to its logits than a linear head (it caps or scales them);"
                    " such a model cannot be a backbone yet"
                )
            layers = DynamicCache(config=self.model.config).layers
            if not layers or any(type(t) not in (DynamicLayer, DynamicSlidingWindowLayer) for t in layers):
                return None
            if "past_key_values" not in inspect.signature(self.reader.forward).parameters:
                return None
            seen = DynamicCache(config=self.model.config)
            self._run(x[:, :1], None, past_key_values=seen)
            kept = [cast(CacheLayerMixin, t) for t in seen.layers]
            shapes = [[(t.shape[1], t.shape[3]) for t in of] for of in ([t.keys for t in kept], [t.values for t in kept])]
            self.shapes = shapes[0], shapes[1]
            first, cache = self._read_keys(x[:, :2], self.init_cache(1, 4), None)
            second, _ = self._read_keys(x[:, 2:], cache, None)
            return self.shapes if _near(torch.cat([first, second], dim=1), h) else None
        finally:
            self.train(training)


def score_by_head(head: Callable[[Tensor], Tensor], h: Float[Tensor, "N D"], targets: Int[Tensor, "N"], vocab_size: int) -> Tensor:
    """The sum of the losses in nats behind any head, without the whole table of logits."""

    def scored(h: Tensor, targets: Tensor) -> Tensor:
        logits = head(h)
        return F.cross_entropy(logits.to(torch.promote_types(logits.dtype, torch.float32)), targets, ignore_index=IGNORE, reduction="sum")

    chunk = max(1, LOGITS_AT_ONCE // vocab_size)
    pieces = zip(h.split(chunk), targets.split(chunk), strict=True)
    return torch.stack([checkpoint(scored, *piece, use_reentrant=False) for piece in pieces]).sum()


class _Mark:
    """Which of the backbones around one model a hook belongs to; copied with it."""


class _AtLayer:
    def __init__(self, layer: int, mark: _Mark) -> None:
        self.layer, self.mark = layer, mark

    @property
    def visitor(self) -> Visitor | None:
        """Who comes along with this backbone's reading, if it is this backbone that reads."""
        visit = _visit.get()
        return visit[1] if visit is not None and visit[0] is self.mark else None


class _Before(_AtLayer):
    """Before a layer: the visitor says what it reads."""

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        visitor = self.visitor
        if visitor is None:
            return None
        if args:
            return (visitor.before(self.layer, args[0]), *args[1:]), kwargs
        return args, kwargs | {"hidden_states": visitor.before(self.layer, kwargs["hidden_states"])}


class _After(_AtLayer):
    """After a layer: the visitor sees what it made."""

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        visitor = self.visitor
        if visitor is not None:
            visitor.after(self.layer, output[0] if isinstance(output, tuple) else output)


def _layers_of(reader: nn.Module, config: PreTrainedConfig) -> list[nn.Module]:
    """The layers of the residual stream: the one list of the model that is as long as its config says."""
    depth = config.get_text_config().num_hidden_layers
    for child in reader.modules():
        if isinstance(child, nn.ModuleList) and len(child) == depth:
            return list(child)
    raise ConfigError(f"{type(reader).__name__} has no list of {depth} layers; a backbone is a stack of layers")


def _slides(config: PreTrainedConfig) -> bool:
    """Whether some layer of the model really has the window that its config names."""
    return any(DynamicCache(config=config).is_sliding)


def _near(found: Tensor, wanted: Tensor) -> bool:
    """Equal up to the rounding of the model's dtype."""
    size = float(wanted.abs().max()) or 1.0
    return float((found - wanted).abs().max()) <= 100 * torch.finfo(wanted.dtype).eps * size
