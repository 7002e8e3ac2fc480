"""What recipes that compare memories share: one way to train, and a table that is written after every row.

The rate rises over the first tenth of the steps and falls to nothing along a cosine; gradients are clipped to length 1. Seconds are of this
process's processor time, so that they mean the same on a machine that is shared.
"""

import json
import math
import sys
import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from memseq.recipes.machine import describe
from memseq.state import state_bytes
from memseq.training.curriculum import Curriculum
from memseq.training.optim import AdamWConfig, clip_gradients

__all__ = ["Table", "as_wide", "facts", "fit", "fit_stages", "fit_within", "verdict", "weights", "weights_of"]

Row = dict[str, Any]
Claims = Callable[[list[Row]], dict[str, Any]]  # by name: what was to be reached, and what was


def weights(model: nn.Module) -> int:
    """The numbers a model learns."""
    return sum(p.numel() for p in model.parameters())


def weights_of(config: Any) -> int:
    """The numbers that the model of `config` learns, counted without making them."""
    with torch.device("meta"):
        return weights(config.build())


def as_wide(config: Any, n_weights: int) -> Any:
    """`config` with its feedforward, or that of its backbone, as wide as gives it `n_weights` weights."""
    if hasattr(config, "backbone"):
        rest = weights_of(config) - weights_of(config.backbone)
        return replace(config, backbone=as_wide(config.backbone, n_weights - rest))
    at_four, at_eight = (weights_of(replace(config, ff_mult=float(n))) for n in (4, 8))
    return replace(config, ff_mult=4 + 4 * (n_weights - at_four) / (at_eight - at_four))


def fit(model: nn.Module, loss: Callable[[int], Tensor], *, steps: int, lr: float, weight_decay: float = 0.0) -> float:
    """Minimise `loss(step)`, step 1 to `steps`; the processor seconds it took."""
    optimizer, began = AdamWConfig(lr=lr, weight_decay=weight_decay).build(model), time.process_time()
    model.train()
    for step in range(1, steps + 1):
        optimizer.set_rate(min(1.0, 10 * step / steps) * 0.5 * (1 + math.cos(math.pi * (step - 1) / steps)))
        loss(step).backward()
        clip_gradients(optimizer.parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
    model.eval()
    return time.process_time() - began


def fit_within(model: nn.Module, loss: Callable[[float], Tensor], *, seconds: float, lr: float) -> tuple[int, float]:
    """Minimise `loss(share)` for so many processor seconds, `share` of which are spent; (steps, the seconds it took)."""
    optimizer, began, steps = AdamWConfig(lr=lr, weight_decay=0.0).build(model), time.process_time(), 0
    model.train()
    while (share := (time.process_time() - began) / seconds) < 1:
        steps += 1
        optimizer.set_rate(min(1.0, steps / 30) * 0.5 * (1 + math.cos(math.pi * share)))
        loss(share).backward()
        clip_gradients(optimizer.parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
    model.eval()
    return steps, time.process_time() - began


def fit_stages(
    model: nn.Module,
    lesson: Callable[[int, int], tuple[Tensor, Tensor]],
    curriculum: Curriculum,
    *,
    seconds: float,
    lr: float,
    seed: int = 0,
    stages: str = "stages",
) -> Row:
    """Lessons that grow, for so many processor seconds, and what there is to say of it; `stages` names what the curriculum counts.

    `lesson(n, step)` gives what is to be minimised and the mean loss of an answer, for n of what the curriculum counts. What a stage has
    mastered is the probability of what is right, exp(-loss), over its last six lessons of full length. The rate falls over the last
    third of the time: nobody knows before when a stage is mastered.
    """
    optimizer, began = AdamWConfig(lr=lr, weight_decay=0.0, betas=(0.9, 0.99)).build(model), time.process_time()
    progress, steps, mastered = curriculum.begin(), 0, []
    lately: deque[float] = deque(maxlen=6)
    model.train()
    while (share := (time.process_time() - began) / seconds) < 1:
        steps += 1
        n = curriculum.n_segments(progress, seed)
        optimizer.set_rate(min(1.0, steps / 30, max(0.02, 3 * (1 - share))))
        total, answer = lesson(n, steps)
        total.backward()
        clip_gradients(optimizer.parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if n == curriculum.stages[progress.stage]:
            lately.append(float(answer))
        after = curriculum.after(progress, math.exp(-sum(lately) / 6) if len(lately) == 6 else None)
        if after.stage > progress.stage:
            lately.clear()
            mastered.append(round(share, 2))
        progress = after
    model.eval()
    reached = {f"{stages}_in_training": curriculum.stages[progress.stage], "mastered_at_share": mastered}
    return {"steps": steps, "cpu_seconds": round(time.process_time() - began, 1), "parameters": weights(model), "lr": lr} | reached


def facts(model: Any, *, name: str, seed: int, steps: int, lr: float, seconds: float, read: int = 0) -> dict[str, Any]:
    """What a row of a comparison tells of its training; bytes of state are those of a stream that has read `read` tokens."""
    with torch.no_grad():
        state = model.init_state(1)
        state = model.advance(torch.zeros(1, read, dtype=torch.int64), state) if read else state
    return {
        "name": name,
        "seed": seed,
        "steps": steps,
        "lr": lr,
        "cpu_seconds": round(seconds, 1),
        "parameters": weights(model),
        "state_bytes": state_bytes(state),
    }


def verdict(target: float, reached: float, *, at_most: bool = False) -> dict[str, Any]:
    """One claim as it stands in a file: what was to be reached, what was, and whether that is enough."""
    return {"target": round(target, 4), "reached": round(reached, 4), "ok": reached <= target if at_most else reached >= target}


class Table:
    """Rows as they are measured: shown at once, and in the file after each, so that a run that is cut keeps what it has.

    Rows that a file already holds stay, unless a row of the same part, name and seed replaces them: parts can be run one by one.
    What `claims` makes of all rows stands beside them.
    """

    def __init__(self, command: str, path: str | None, *, claims: Claims | None = None, **facts: Any) -> None:
        self.path = None if path is None else Path(path)
        self.rows: list[Row] = []
        if self.path is not None and self.path.is_file():
            self.rows = json.loads(self.path.read_text())["rows"]
        self.facts, self.claims = {"machine": describe(), "command": command, **facts}, claims

    def add(self, **row: Any) -> None:
        sys.stdout.write(json.dumps(row) + "\n")
        sys.stdout.flush()
        self.rows = [old for old in self.rows if _key(old) != _key(row)] + [row]
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            claimed = {} if self.claims is None else {"claims": self.claims(self.rows)}
            self.path.write_text(json.dumps(self.facts | {"rows": self.rows} | claimed, indent=1) + "\n")


def _key(row: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(row.get(name) for name in ("part", "name", "seed", "task"))
