"""Any task of `memseq.tasks` as a probe, for models that were trained on it: `task:recall`, `task:mqar`, ...

Samples of the test split are read as streams, a segment at a time, and scored by the task's own metric. A task whose settings
are swept gives a map: recall by the number of segments and of symbols, say. Vocabularies must agree: the task's tokens are the
model's tokens, by number.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import product
from typing import Any, ClassVar

import torch

from memseq.errors import DataError
from memseq.probes.probe import Probe, Subject, say
from memseq.tasks import make_task
from memseq.tasks.task import IGNORE, Task

__all__ = ["SWEEPS", "TaskProbe", "ask_task"]

SWEEPS: dict[str, dict[str, tuple[Any, ...]]] = {  # settings of a task that its probe goes through
    "recall": {"n_shown": (1, 2, 4), "n_segments": (4, 8, 16, 32, 64)},
    "recall_overwritten": {"n_segments": (4, 8, 16, 32)},
    "copy": {"n_source": (4, 8, 16, 24)},
    "reverse": {"n_source": (4, 8, 16, 24)},
    "mqar": {"n_pairs": (2, 4, 8, 16)},
    "passkey": {"n_filler": (256, 1024, 4096)},
    "passkey_depth": {"n_blocks": (4, 16, 64)},
}


def ask_task(model: Any, task: Task, *, samples: int, seed: int, piece: int = 64) -> dict[str, float]:
    """The task's metric on `samples` test samples, read as streams in pieces."""
    batch = task.sample(samples, seed, "test")
    state, said = model.init_state(samples), []
    device = next(model.parameters()).device
    for tokens, labels, _ in batch.segments(piece):
        if bool((labels == IGNORE).all()):
            state = model.advance(tokens.to(device), state)
            said.append(torch.zeros_like(tokens))
            continue
        logits, state = model(tokens.to(device), state)
        said.append(logits.argmax(-1).cpu())
    return task.metric(torch.cat(said, dim=1), batch)


@dataclass(frozen=True, kw_only=True)
class TaskProbe(Probe):
    name: ClassVar[str] = "task"
    about: ClassVar[str] = "the questions of a task that the model was trained on"

    task: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    sweep: Mapping[str, tuple[Any, ...]] | None = None  # None: that of SWEEPS

    def _swept(self) -> dict[str, tuple[Any, ...]]:
        return dict(SWEEPS.get(self.task, {}) if self.sweep is None else self.sweep)

    def parts(self, subject: Subject) -> list[str]:
        swept = self._swept()
        swept = {name: values for name, values in swept.items() if name not in self.settings}  # what is set is not swept
        rows = [dict(zip(swept, values, strict=True)) for values in product(*swept.values())]
        fitting = [row for row in rows if self._fits(subject, row)]
        if not fitting:
            needed = make_task(self.task, **self.settings).vocab_size
            raise DataError(
                f"task:{self.task} asks with {needed} tokens and {subject.name} knows {subject.vocab_size}; give a model trained on it"
            )
        return [json.dumps(row) for row in fitting]

    def _fits(self, subject: Subject, row: Mapping[str, Any]) -> bool:
        task = make_task(self.task, **self.settings, **row)
        return task.vocab_size <= subject.vocab_size and task.length <= self.length and self.room(subject, task.length)

    def measure(self, subject: Subject, part: str) -> dict[str, Any]:
        row = json.loads(part)
        task = make_task(self.task, **self.settings, **row)
        scores = ask_task(subject.model, task, samples=max(64, self.samples), seed=self.seed)
        return {"settings": row, "length": task.length, "chance": task.chance, "scores": scores}

    def conclude(self, subject: Subject, parts: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
        rows = list(parts.values())
        axes = {name: sorted({row["settings"][name] for row in rows}) for name in rows[0]["settings"]}
        told: dict[str, Any] = {"task": self.task, "axes": axes, "rows": rows, "chance": rows[0]["chance"]}
        if len(axes) == 2:
            down, across = axes
            at = {(row["settings"][down], row["settings"][across]): row["scores"]["accuracy"] for row in rows}
            told["accuracy"] = [[at.get((d, a)) for a in axes[across]] for d in axes[down]]
        return told

    def says(self, result: Mapping[str, Any]) -> list[dict[str, Any]]:
        rows = result["rows"]
        worst = min(rows, key=lambda row: row["scores"]["accuracy"])
        best = max(rows, key=lambda row: row["scores"]["accuracy"])
        answer = f"{best['scores']['accuracy']:.0%} of its answers are right at best, {worst['scores']['accuracy']:.0%} at worst"
        return [say(f"Does it solve {result['task']}?", f"{answer} (guessing: {result['chance']:.0%})", worst["scores"]["accuracy"])]
