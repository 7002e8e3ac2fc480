"""A curriculum on the number of segments: few at first, more when the stage is mastered, so that a memory learns to reach far.

Source: "Scaling Transformer to 1M tokens and beyond with RMT" (Bulatov et al., arXiv:2304.11062): stages of 1, 2, 4, 6, 8 ... segments, and
within a stage a number drawn for every batch ("vary_n_segments"), so that what was learned on few segments is kept.

    progress = curriculum.begin()
    n        = curriculum.n_segments(progress, seed)          of the next window
    progress = curriculum.after(progress, score)              after every step; `score` where one was measured, None elsewhere

Both are functions of what is given: a saved `Progress` (two numbers) continues as if it had never stopped. A training loop that goes
by steps takes a curriculum as its `horizon`.
"""

import random
from dataclasses import dataclass
from typing import NamedTuple

from memseq.errors import ConfigError

__all__ = ["Curriculum", "Progress"]


class Progress(NamedTuple):
    """Where a training stands."""

    stage: int  # which of the stages
    step: int  # steps done in it


@dataclass(frozen=True, kw_only=True)
class Curriculum:
    """A stage ends after `steps`, or when a score of `mastered` was measured, whichever comes first; the last one does not end."""

    stages: tuple[int, ...] = (1, 2, 4, 6, 8)  # segments, growing
    least: int = 1  # of the numbers drawn
    full: float = 0.5  # share of windows that have all the segments of the stage; the others are drawn evenly from `least` on
    steps: int | None = 1000
    mastered: float | None = None

    def __post_init__(self) -> None:
        if not self.stages or any(b <= a for a, b in zip(self.stages, self.stages[1:], strict=False)):
            raise ConfigError(f"stages={self.stages} must be numbers of segments that grow, such as (1, 2, 4, 8)")
        if not 1 <= self.least <= self.stages[0]:
            raise ConfigError(f"least={self.least} must lie in 1 to the first stage, {self.stages[0]}")
        if not 0.0 <= self.full <= 1.0:
            raise ConfigError(f"full={self.full} must be a share between 0 and 1")
        if self.steps is None and self.mastered is None and len(self.stages) > 1:
            raise ConfigError("steps=None and mastered=None: no stage would end; give one of them")
        if self.steps is not None and self.steps < 1:
            raise ConfigError(f"steps={self.steps} must be at least 1, or None")

    def begin(self) -> Progress:
        return Progress(0, 0)

    def at(self, step: int) -> Progress:
        """Where a training stands at `step` when stages go by steps."""
        if self.steps is None:
            return Progress(0, step)
        stage = min(step // self.steps, len(self.stages) - 1)
        return Progress(stage, step - stage * self.steps)

    def n_segments(self, progress: Progress, seed: int) -> int:
        """Segments of the next window; every process of a training draws the same."""
        most = self.stages[progress.stage]
        chance = random.Random(f"{seed} {progress.stage} {progress.step}")
        return most if chance.random() < self.full else chance.randint(self.least, most)

    def after(self, progress: Progress, score: float | None = None) -> Progress:
        """Where a training stands after one more step."""
        stage, step = progress.stage, progress.step + 1
        over = self.steps is not None and step >= self.steps
        mastered = self.mastered is not None and score is not None and score >= self.mastered
        return Progress(stage + 1, 0) if (over or mastered) and stage + 1 < len(self.stages) else Progress(stage, step)
