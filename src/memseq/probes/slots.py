"""What a slot holds: which tokens write to which slot, which slots each token reads, and how long a slot keeps what it has.

Of a model whose slots are written by one softmax over a segment's tokens and the slot itself (Memformer), read from a text:

    write   a_ij: the share of slot i that comes from token j, over the segment that wrote it      averaged over heads
    keep    a_i0: the share of slot i that is what it was                                          of each segment
    read    b_ji: the share of token j's read that is of slot i                                    averaged over heads and layers

    half-life of slot i = ln 2 / mean(-ln keep_i), in segments

Weights are computed again from what entered the readers and writers while the model read; nothing in the model is changed.
"""

import math
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, cast, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from memseq.probes.probe import Probe, Subject, say

__all__ = ["SlotsProbe", "half_lives", "read_weights", "write_weights"]


@runtime_checkable
class Writer(Protocol):
    """What the probe uses of a module that writes slots."""

    config: Any  # n_heads, n_slots, segment_length, temperature, keep_bias
    query: nn.Linear
    key: nn.Linear


@runtime_checkable
class Reader(Protocol):
    """What the probe uses of a module that reads slots."""

    n_heads: int
    query: nn.Linear
    key: nn.Linear


def write_weights(
    writer: Writer, tokens: Float[Tensor, "B L D"], slots: Float[Tensor, "B N D"]
) -> tuple[Float[Tensor, "B N L"], Float[Tensor, "B N"]]:
    """(shares of the tokens, share kept) of each slot after a whole segment `tokens` met `slots`, averaged over heads."""
    c = writer.config
    q, own_k = (_heads(F.linear(slots, layer.weight.to(slots.dtype)), c.n_heads) for layer in (writer.query, writer.key))
    k = _heads(F.linear(tokens.to(slots.dtype), writer.key.weight.to(slots.dtype)), c.n_heads)
    scale = 1 / (math.sqrt(q.shape[-1]) * c.temperature)
    own = (q * own_k).sum(-1, keepdim=True) * scale + c.keep_bias
    weights = torch.cat([own, q @ k.mT * scale], dim=-1).softmax(-1).mean(1)
    return weights[..., 1:], weights[..., 0]


def read_weights(reader: Reader, tokens: Float[Tensor, "B L D"], slots: Float[Tensor, "B N D"]) -> Float[Tensor, "B L N"]:
    """The share of each token's read that is of each slot, averaged over heads."""
    q = _heads(F.linear(tokens, reader.query.weight), reader.n_heads)
    k = _heads(F.linear(slots.to(tokens.dtype), reader.key.weight), reader.n_heads)
    return (q @ k.mT / math.sqrt(q.shape[-1])).softmax(-1).mean(1)


def half_lives(keep: Float[Tensor, "S N"]) -> list[float | None]:
    """Segments after which half of a slot is left, from the shares it kept in each segment; None where it keeps all."""
    rate = -keep.double().clamp(1e-300, 1).log().mean(0)
    return [math.log(2) / r if r > 0 else None for r in rate.tolist()]


def _heads(x: Tensor, n_heads: int) -> Tensor:
    return x.unflatten(-1, (n_heads, -1)).transpose(1, 2)


@dataclass(frozen=True, kw_only=True)
class SlotsProbe(Probe):
    name: ClassVar[str] = "slots"
    about: ClassVar[str] = "which tokens each slot is written from, which slots each token reads, and how long a slot keeps"
    needs: ClassVar[tuple[str, ...]] = ("slots",)

    shown: int = 8  # segments whose map is kept
    warm: int = 16  # segments read before

    def parts(self, subject: Subject) -> list[str]:
        return ["reading"]

    def measure(self, subject: Subject, part: str) -> dict[str, Any]:
        model, anatomy = subject.model, subject.anatomy
        writer = cast(Writer, anatomy.writers[0])
        length = writer.config.segment_length
        segments = max(self.shown, min(64, self.length // length)) + self.warm
        state, keep, maps = model.init_state(1), [], []
        for number in range(segments):
            tokens = subject.text(length, start=number * length)[None]
            seen, state = _overheard(model, anatomy, tokens, state)
            if number < self.warm:
                continue
            shares, kept = write_weights(writer, *seen["write"])
            keep.append(kept[0])
            if len(maps) < self.shown:
                reads = torch.stack([read_weights(cast(Reader, m), *seen[m]) for m in anatomy.readers]).mean(0) if anatomy.readers else None
                maps.append(
                    {
                        "tokens": tokens[0].tolist(),
                        "text": _shown(subject, tokens[0].tolist()),
                        "write": _rounded(shares[0]),
                        "keep": _rounded(kept[0]),
                        "read": None if reads is None else _rounded(reads[0].mT),
                    }
                )
        kept = torch.stack(keep).float().cpu()
        lives = half_lives(kept)
        return {
            "segment_length": length,
            "n_slots": writer.config.n_slots,
            "segments": len(keep),
            "keep": [round(float(k), 6) for k in kept.mean(0)],
            "half_life": lives,
            "maps": maps,
        }

    def conclude(self, subject: Subject, parts: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
        return parts["reading"]

    def says(self, result: Mapping[str, Any]) -> list[dict[str, Any]]:
        lives = [math.inf if life is None else life for life in result["half_life"]]
        ordered = sorted(lives)
        middle, length = ordered[len(ordered) // 2], result["segment_length"]
        answer = f"half of it is rewritten after {middle * length:,.0f} tokens ({middle:.2g} segments); slots range from"
        answer += f" {ordered[0] * length:,.0f} to {ordered[-1] * length:,.0f}"
        return [say("How long does a slot keep what it holds?", answer, middle * length)]


def _overheard(model: Any, anatomy: Any, tokens: Tensor, state: Any) -> tuple[dict[Any, tuple[Tensor, Tensor]], Any]:
    """Read one segment: what the first writer was given and the slots it met, and what each reader was given."""
    seen: dict[Any, Any] = {m: [] for m in anatomy.readers} | {"write": []}
    with ExitStack() as hooks:
        write = lambda _, args: seen["write"].append((args[0], args[1].slots))  # noqa: E731 (a hook and what it is called)
        hooks.callback(anatomy.writers[0].register_forward_pre_hook(write).remove)
        for module in anatomy.readers:
            hooks.callback(module.register_forward_pre_hook(lambda m, args: seen[m].append((args[0], args[1]))).remove)
        state = model.advance(tokens, state)
    joined = {key: (torch.cat([x for x, _ in calls], dim=1), calls[0][1]) for key, calls in seen.items() if calls}
    return joined, state


def _shown(subject: Subject, tokens: list[int]) -> list[str]:
    """Each token as a person reads it."""
    if subject.tokenizer is None:
        return [str(token) for token in tokens]
    return [subject.tokenizer.decode_bytes([token]).decode("utf-8", errors="replace") for token in tokens]


def _rounded(t: Tensor) -> list[Any]:
    return [[round(x, 4) for x in row] for row in t.tolist()] if t.ndim == 2 else [round(x, 4) for x in t.tolist()]
