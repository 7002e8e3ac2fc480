"""What remembering costs: the bytes of a stream and the time of one more token, after little and after much reading."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

from memseq.probes.probe import Probe, Subject, say
from memseq.probes.speed import stream_costs

__all__ = ["CostProbe"]


@dataclass(frozen=True, kw_only=True)
class CostProbe(Probe):
    name: ClassVar[str] = "cost"
    about: ClassVar[str] = "the bytes that one stream holds, and the time of one more token, as the stream grows"

    def parts(self, subject: Subject) -> list[str]:
        return ["streams"]

    def measure(self, subject: Subject, part: str) -> dict[str, Any]:
        longest = min(self.length, (subject.longest or self.length + 64) - 33)
        lengths = sorted({max(1, longest // n) for n in (16, 4, 1)})
        piece = min(512, lengths[-1])
        costs = stream_costs(subject.model, lengths=lengths, steps=16, piece=piece)
        return {"bounded": bool(getattr(subject.model, "bounded", True)), "rows": [asdict(cost) for cost in costs]}

    def conclude(self, subject: Subject, parts: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
        return parts["streams"]

    def says(self, result: Mapping[str, Any]) -> list[dict[str, Any]]:
        first, last = result["rows"][0], result["rows"][-1]
        answer = f"{last['state_bytes']:,} bytes after {last['length']:,} tokens"
        if result["bounded"]:
            answer += "; it does not grow"
        elif last is not first:
            answer += f", {last['state_bytes'] / first['state_bytes']:.3g} times what it held after {first['length']:,}"
        return [say("What does a stream hold?", answer, last["state_bytes"])]
