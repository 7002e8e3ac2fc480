"""Text by position: bits per byte as reading goes on, with the memory carried and with the memory cleared.

What clearing costs is what the memory is worth; `compression.py` measures both on the same tokens.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from memseq.probes.compression import bits_per_byte
from memseq.probes.probe import Probe, Subject, say

__all__ = ["TextProbe"]


@dataclass(frozen=True, kw_only=True)
class TextProbe(Probe):
    name: ClassVar[str] = "text"
    about: ClassVar[str] = "text it has not seen is predicted, by how much of it was read before"
    needs: ClassVar[tuple[str, ...]] = ("text",)

    forget_every: int = 128  # where the model has no segment of its own

    def parts(self, subject: Subject) -> list[str]:
        return ["memory", "memory cleared"]

    def measure(self, subject: Subject, part: str) -> dict[str, Any]:
        every = getattr(subject.model, "segment_length", None) or self.forget_every
        width = np.ones(subject.vocab_size, dtype=np.int64) if subject.token_bytes is None else subject.token_bytes
        forget = every if part == "memory cleared" else None
        documents = ([ids] for ids in self._documents(subject))
        curve = bits_per_byte(subject.model, documents, token_bytes=width, forget_every=forget)
        return {
            "bits_per_byte": curve.bits_per_byte,
            "tokens": curve.tokens,
            "cleared_every": every,
            "bins": [{"first": b.first, "last": b.last, "bits_per_byte": b.bits_per_byte, "tokens": b.tokens} for b in curve.bins],
            "state_bytes": curve.state_bytes,
            "tokens_per_second": curve.tokens_per_second,
        }

    def _documents(self, subject: Subject) -> Iterator[NDArray[Any]]:
        """About eight times `length` tokens, of documents no longer than the model can read."""
        left, longest = 8 * self.length, min(subject.longest or 2 * self.length, 2 * self.length)
        for ids in subject.documents:
            for start in range(0, len(ids), longest):
                piece = ids[start : start + min(longest, left)]
                if len(piece) > 1:
                    yield piece
                    left -= len(piece)
                if left < 2:
                    return

    def conclude(self, subject: Subject, parts: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
        carried, cleared = parts["memory"], parts["memory cleared"]
        bins = [{**a, "cleared": b["bits_per_byte"]} for a, b in zip(carried["bins"], cleared["bins"], strict=True)]
        return {
            "bits_per_byte": carried["bits_per_byte"],
            "cleared": cleared["bits_per_byte"],
            "cleared_every": carried["cleared_every"],
            "tokens": carried["tokens"],
            "bins": bins,
            "state_bytes": carried["state_bytes"],
            "tokens_per_second": carried["tokens_per_second"],
        }

    def says(self, result: Mapping[str, Any]) -> list[dict[str, Any]]:
        worth = result["cleared"] - result["bits_per_byte"]
        return [
            say("How well does it predict text?", f"{result['bits_per_byte']:.3f} bits a byte", result["bits_per_byte"]),
            say(
                "What is its memory worth on text?",
                f"{worth:.3f} bits a byte, against clearing it every {result['cleared_every']} tokens",
                worth,
            ),
        ]
