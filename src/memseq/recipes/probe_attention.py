"""Heads of attention of our own models and of those of transformers, shown and silenced for `probes/retrieval_heads.py`."""

import math
from collections.abc import Generator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from memseq.memories.attention import AttentionMemory
from memseq.memories.sliding_window import SlidingWindowMemory
from memseq.ops.attention import band

__all__ = ["HubAttention", "OurAttention", "attention_of", "hub_attention"]

PROJECTIONS = {"o_proj", "c_proj", "dense", "out_proj"}  # what transformers calls the way back from the heads


class OurAttention:
    """The layers of full or windowed attention of a stack."""

    def __init__(self, model: Any, memories: Sequence[nn.Module]) -> None:
        self.model = model
        self.memories: list[Any] = list(memories)
        self.heads = [(layer, head) for layer, memory in enumerate(self.memories) for head in range(memory.heads.n_heads)]

    def weights(self, tokens: Int64[Tensor, "B T"]) -> Float[Tensor, "N B T"]:
        """Computed again from the queries and keys of one reading: the last token's row of every head."""
        made: list[list[tuple[Tensor, Tensor]]] = [[] for _ in self.memories]  # a model may read a stream in several pieces

        def look(layer: int) -> Any:
            return lambda _, given, found: made[layer].append((found[0][:, :, -1:], found[1]))

        with ExitStack() as hooks:
            for layer, memory in enumerate(self.memories):
                hooks.callback(memory.heads.register_forward_hook(look(layer)).remove)
            self.model(tokens, self.model.init_state(len(tokens)))
        rows = []
        for memory, pieces in zip(self.memories, made, strict=True):
            q, k = pieces[-1][0], torch.cat([k for _, k in pieces], dim=2)
            seen = band(1, k.shape[2], getattr(memory.config, "window", None), device=k.device)
            logits = (q @ k.mT / math.sqrt(q.shape[-1])).masked_fill(~seen, -torch.inf)
            rows.append(logits.softmax(-1)[:, :, 0].transpose(0, 1))  # [H, B, T]
        return torch.cat(rows)

    @contextmanager
    def silenced(self, heads: Sequence[tuple[int, int]]) -> Generator[None]:
        """What these heads read is zero before it is projected back."""
        with ExitStack() as hooks:
            for layer in sorted({layer for layer, _ in heads}):
                projections = self.memories[layer].heads
                off = [head for where, head in heads if where == layer]
                hooks.callback(projections.out.register_forward_pre_hook(_without(off, projections.n_heads)).remove)
            yield


def attention_of(model: nn.Module) -> OurAttention | None:
    """What shows the heads of `model`; None where it has no attention over its whole past or a window of it."""
    memories = [module for module in model.modules() if isinstance(module, AttentionMemory | SlidingWindowMemory)]
    return OurAttention(model, memories) if memories else None


class HubAttention:
    """The heads of a model of transformers: its own attention weights, and what goes into its output projections."""

    def __init__(self, model: Any, projections: Sequence[nn.Module]) -> None:
        self.model, self.projections = model, list(projections)
        n_heads = model.config.num_attention_heads
        self.heads = [(layer, head) for layer in range(len(self.projections)) for head in range(n_heads)]
        self.n_heads = n_heads

    def weights(self, tokens: Int64[Tensor, "B T"]) -> Float[Tensor, "N B T"]:
        """As the model says them; the fused forms of attention do not, so they are put aside meanwhile."""
        wrapped = self.model.wrapped
        before = wrapped.config._attn_implementation
        wrapped.set_attn_implementation("eager")
        try:
            said = wrapped(tokens, output_attentions=True, use_cache=False).attentions
        finally:
            wrapped.set_attn_implementation(before)
        return torch.cat([layer[:, :, -1].transpose(0, 1) for layer in said])

    @contextmanager
    def silenced(self, heads: Sequence[tuple[int, int]]) -> Generator[None]:
        """What these heads read is zero before it is projected back."""
        with ExitStack() as hooks:
            for layer in sorted({layer for layer, _ in heads}):
                off = [head for where, head in heads if where == layer]
                hooks.callback(self.projections[layer].register_forward_pre_hook(_without(off, self.n_heads)).remove)
            yield


def hub_attention(model: Any, layers: Sequence[nn.Module]) -> HubAttention | None:
    """What shows the heads of a model of transformers; None where it does not show them, or hides what they are projected by."""
    n_heads = getattr(model.config, "num_attention_heads", None)
    found = [[m for name, m in layer.named_modules() if "att" in name and name.rpartition(".")[2] in PROJECTIONS] for layer in layers]
    if not n_heads or not found or any(len(own) != 1 for own in found):
        return None
    attention = HubAttention(model, [own[0] for own in found])
    tokens = torch.zeros(1, 3, dtype=torch.int64, device=next(model.parameters()).device)
    try:
        with torch.no_grad():
            shape = attention.weights(tokens).shape
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError):
        return None
    return attention if tuple(shape) == (len(attention.heads), 1, 3) else None


def _without(off: Sequence[int], n_heads: int) -> Any:
    def hook(_: Any, given: Any) -> Any:
        o = given[0].unflatten(-1, (n_heads, -1)).clone()
        o[..., list(off), :] = 0
        return (o.flatten(-2), *given[1:])

    return hook
