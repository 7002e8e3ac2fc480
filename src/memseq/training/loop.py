"""The training loop: windows of segments, gradients by replay, states carried from window to window.

    repeat:  window of `horizon` segments  ->  gradients of (sum of losses) / (scored tokens of all processes)
             clip, step, carry the detached state on;   log, evaluate, save when due

A run stops after `steps`, after `minutes` of training steps, or on SIGINT and SIGTERM: the step at hand is finished, a
checkpoint is written and the summary says what happened. A loss or gradient that is not finite stops the run before the
weights are touched. Resuming goes on bit for bit: weights, optimiser, text position, states, generators.
"""

import math
import random
import signal
import time
from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import torch

from memseq.contract import Memory
from memseq.errors import CheckpointError, ConfigError, TrainingError
from memseq.pretrained import save_pretrained
from memseq.state import State, detach, fingerprint, state_bytes
from memseq.training import checkpoint, distributed
from memseq.training.backends import Backend, Replay
from memseq.training.cell import StreamCell
from memseq.training.curriculum import Curriculum
from memseq.training.distributed import OneProcess, Strategy, all_sum
from memseq.training.lanes import Documents, Lanes, Segment, SegmentSource
from memseq.training.optim import AdamWConfig, OptimizerConfig, Optimizers, WarmupCosine, clip_gradients
from memseq.training.progress import Bar, MetricsLog
from memseq.training.scores import Scores, autocast, measured_dtype, score, text_bytes
from memseq.training.stopping import Asked, listening

__all__ = ["Run", "TrainingConfig", "train"]


@runtime_checkable
class Tokenizer(Protocol):
    """What a run asks of the tokenizer its text went through."""

    @property
    def token_bytes(self) -> Any:
        """Bytes of text that each token stands for, [V]."""
        ...

    def save(self, directory: Any) -> Any:
        """Write the files that make a directory a tokenizer."""
        ...


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """What a run does; lengths in tokens, `batch_size` in lanes per process.

    The run ends at `steps` or after `minutes` of training steps, whichever comes first; the learning rate falls with the
    budget that is nearer its end.
    """

    steps: int | None = 1000
    minutes: float | None = None  # training steps alone; a run by minutes cannot repeat itself bit for bit
    clock: Literal["wall", "processor"] = "wall"  # what minutes are of: processor time does not run while others hold the cores
    batch_size: int = 16
    segment_length: int = 64
    horizon: int | Curriculum = 8  # segments the gradient flows back through; a curriculum lets it grow, stage by stage
    optimizer: OptimizerConfig = field(default_factory=AdamWConfig)
    rate: WarmupCosine = field(default_factory=WarmupCosine)
    clip: float | None = 1.0  # the gradient's norm at most; None: as it comes
    backend: Backend = field(default_factory=Replay)
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"  # of the products; weights and recurrent states stay float32
    seed: int = 0
    log_every: int = 10
    eval_every: int | None = None  # None: at the end only
    save_every: int = 500
    keep_last: int = 2

    def __post_init__(self) -> None:
        for name in ("batch_size", "segment_length", "horizon", "log_every", "save_every", "keep_last"):
            if name == "horizon" and isinstance(self.horizon, Curriculum):
                continue
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)} must be at least 1")
        if self.steps is None and self.minutes is None:
            raise ConfigError("steps=None and minutes=None: a run needs an end; give one of them")
        for name in ("steps", "minutes", "eval_every", "clip"):
            if getattr(self, name) is not None and not getattr(self, name) > 0:
                raise ConfigError(f"{name}={getattr(self, name)} must be more than 0, or None")
        if isinstance(self.horizon, Curriculum) and (self.horizon.mastered is not None or self.horizon.steps is None):
            raise ConfigError("a run goes by steps: a curriculum as its horizon has steps=N and mastered=None")
        if self.clock not in ("wall", "processor"):
            raise ConfigError(f"clock={self.clock!r} must be 'wall' or 'processor'")
        if self.dtype not in ("auto", "float32", "bfloat16"):
            raise ConfigError(f"dtype={self.dtype!r} must be 'auto', 'float32' or 'bfloat16'")

    def lanes(self, documents: Documents) -> Lanes:
        """This process's lanes over `documents`."""
        size = {"batch_size": self.batch_size, "segment_length": self.segment_length}
        return Lanes(documents, **size, seed=self.seed, rank=distributed.rank(), world=distributed.world())

    def window(self, step: int) -> int:
        """Segments of the window that a step reads."""
        return self.horizon if isinstance(self.horizon, int) else self.horizon.n_segments(self.horizon.at(step), self.seed)

    def spent(self, step: int, seconds: float) -> float:
        """The share of the budget that is spent, 0 to 1."""
        by_steps = step / self.steps if self.steps is not None else 0.0
        by_time = seconds / (60.0 * self.minutes) if self.minutes is not None else 0.0
        return min(1.0, max(by_steps, by_time))


@dataclass(frozen=True, kw_only=True)
class Run:
    """What a run came to."""

    out: Path
    steps: int
    tokens: int  # scored, over all processes
    seconds: float  # of training steps
    loss: float  # nats a token over the last logged steps
    valid: "Scores | None"
    dtype: str
    stopped_by: str  # "steps", "minutes", "SIGINT" or "SIGTERM"

    @property
    def exit_code(self) -> int:
        """0, or 128 and the signal's number, as a shell reports it."""
        return 0 if self.stopped_by in ("steps", "minutes") else 128 + signal.Signals[self.stopped_by].value


def train(
    model: Memory[Any],
    data: SegmentSource,
    config: TrainingConfig,
    out: str | Path,
    *,
    valid: Iterable[Segment] | None = None,
    strategy: Strategy | None = None,
    resume: bool = False,
    tokenizer: Tokenizer | None = None,
    quiet: bool = False,
) -> Run:
    """Train `model` on the segments of `data` and leave log, checkpoints and the model in `out`.

    `out` itself holds the model as others load it, renewed at every checkpoint. `valid` is read anew at each evaluation
    (`lanes.EachOnce`). `tokenizer` is saved with the model, and adds bits per byte to the log.

    Raises `TrainingError` where a loss is not finite, `CheckpointError` where a checkpoint cannot be written or does not
    fit, `ConfigError` where `out` holds another run.
    """
    loop = _Loop(model, data, config, Path(out), strategy or OneProcess(), tokenizer)
    loop.begin(resume)
    with listening() as asked, Bar(quiet=quiet or distributed.rank() > 0) as bar:
        return loop.run(valid, asked, bar)


class _Loop:
    def __init__(
        self,
        model: Memory[Any],
        data: SegmentSource,
        config: TrainingConfig,
        out: Path,
        strategy: Strategy,
        tokenizer: Tokenizer | None,
    ) -> None:
        self.model, self.data, self.config = model, data, config
        self.out, self.strategy, self.tokenizer = out, strategy, tokenizer
        self.device = next(model.parameters()).device
        self.token_bytes = None if tokenizer is None else torch.as_tensor(tokenizer.token_bytes)
        with torch.no_grad():  # before an engine takes the weights apart
            self.fresh: State = detach(model.init_state(config.batch_size))
        self.cell = StreamCell(model)
        self.module = strategy.wrap(config.backend.prepare(self.cell))
        self.backward = config.backend.bind(self.module)
        self.optimizers: Optimizers = config.optimizer.build(model)
        self.checkpoints = checkpoint.Checkpoints(folder=out / "checkpoints", keep_last=config.keep_last)
        self.clock = time.process_time if config.clock == "processor" else time.perf_counter
        self.step, self.tokens, self.seconds, self.saved_at = 0, 0, 0.0, -1
        self.recent: list[tuple[float, int, int, float]] = []  # of each step since the last line: nats, tokens, bytes, seconds
        self.loss = math.nan

    # -- beginning and resuming

    def begin(self, resume: bool) -> None:
        latest = self.checkpoints.latest()
        if latest is not None and not resume:
            raise ConfigError(
                f"{self.out} holds a run already, at {latest.name}; go on with it by resume (--resume), or name another directory"
            )
        seed = self.config.seed * 1009 + distributed.rank()
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002 (what a model may draw from)
        self.state: State = self.fresh
        if latest is not None:
            self._load(latest)
        else:
            self.dtype = self._choose_dtype()
        self.log = MetricsLog(self.out, resumed_at=self.step) if distributed.rank() == 0 else None

    def _choose_dtype(self) -> str:
        if self.config.dtype != "auto":
            return self.config.dtype
        mine = measured_dtype(self.device) if distributed.rank() == 0 else "float32"  # all processes follow the first
        return "bfloat16" if all_sum([mine == "bfloat16"], self.device)[0] else "float32"

    def _load(self, folder: Path) -> None:
        told = checkpoint.read_json(folder / "training.json")
        size = {"batch_size": self.config.batch_size, "segment_length": self.config.segment_length, "processes": distributed.world()}
        for name, here in (size | {"model": fingerprint(self.model)}).items():
            if told[name] != here:
                raise CheckpointError(f"{folder} was trained with {name}={told[name]} and this run has {name}={here}; resume with the same")
        self.step, self.tokens, self.seconds, self.dtype = told["step"], told["tokens"], told["seconds"], told["dtype"]
        self.saved_at = self.step
        if distributed.is_sharded(self.model):
            distributed.load_shards(folder / "shards", self.model, self.optimizers.members)
        else:
            checkpoint.load_weights(folder / "model.safetensors", self.model)
            self.optimizers.load_tensors(checkpoint.read_tensors(folder / "optimizer.safetensors"))
        self.state, position = checkpoint.load_rank(folder, distributed.rank(), self.state)
        self.data.load_state_dict(position)

    # -- the steps

    def run(self, valid: Iterable[Segment] | None, asked: Asked, bar: Bar) -> Run:
        config, scores, scored_at = self.config, None, -1
        stopped_by = self._stopped_by(0)
        try:
            self.model.train()
            while not stopped_by:
                try:
                    signals = self._one_step(asked)
                except TrainingError as error:
                    raise TrainingError(self._unfinished(str(error))) from error
                stopped_by = self._stopped_by(signals)
                if self.step % config.log_every == 0 or stopped_by:
                    line = self._line()
                    self._write(line)
                    bar.show(config.spent(self.step, self.seconds), line)
                if valid is not None and config.eval_every and self.step % config.eval_every == 0:
                    scores, scored_at = self._evaluate(valid), self.step
                if self.step % config.save_every == 0:
                    self._save()
            if self.saved_at != self.step:
                self._save()
            if valid is not None and scored_at != self.step and stopped_by in ("steps", "minutes"):
                scores = self._evaluate(valid)
        finally:
            if self.log is not None:
                self.log.close()
        return Run(
            out=self.out,
            steps=self.step,
            tokens=self.tokens,
            seconds=self.seconds,
            loss=self.loss,
            valid=scores,
            dtype=self.dtype,
            stopped_by=stopped_by,
        )

    def _one_step(self, asked: Asked) -> int:
        """One window; returns the number of the signal that some process got, or 0."""
        began, config = self.clock(), self.config
        window = [self._segment() for _ in range(config.window(self.step))]
        counts = sum(int((segment.targets != -100).sum()) for segment in window)
        text = sum(text_bytes(segment.targets, self.token_bytes) for segment in window)
        tokens, text = (int(n) for n in all_sum([counts, text], self.device))
        self.optimizers.set_rate(config.rate.factor(self.step, config.spent(self.step, self.seconds)))
        self.optimizers.zero_grad()
        # engines average over processes, so each process's share is divided by the mean count, not by its own
        scale = distributed.world() / max(1, tokens)
        loss, state, failed = math.nan, self.state, None
        try:
            with autocast(self.device, self.dtype):
                loss, state = self.backward([segment.to(self.device) for segment in window], self.state, scale)
        except TrainingError as error:
            failed = error
        nats, failures = all_sum([float(loss), failed is not None], self.device)  # all stop together, or none
        if failures:
            raise failed or TrainingError("another process could not use its window; its own message says why")
        if not math.isfinite(nats):
            raise TrainingError(f"the loss is {nats}")
        for p in self.optimizers.parameters:  # engines disagree on None; decay must not depend on the engine
            p.grad = torch.zeros_like(p) if p.grad is None else p.grad
        self.norm = clip_gradients(self.optimizers.parameters, config.clip)
        self.optimizers.step()
        self.optimizers.zero_grad()
        # all processes go by the same clock, and stop when one of them is asked to
        number = asked.number
        took, interrupted, terminated = all_sum([self.clock() - began, number == signal.SIGINT, number == signal.SIGTERM], self.device)
        took /= distributed.world()
        self.state, self.step, self.tokens, self.seconds = (
            checkpoint.settled(state),
            self.step + 1,
            self.tokens + tokens,
            self.seconds + took,
        )
        self.recent.append((nats, tokens, text, took))
        return signal.SIGINT if interrupted else signal.SIGTERM if terminated else 0

    def _segment(self) -> Segment:
        segment, size = next(self.data), (self.config.batch_size, self.config.segment_length)
        if tuple(segment.tokens.shape) != size:
            raise ConfigError(
                f"the data give segments of {tuple(segment.tokens.shape)} and the config says {size} (lanes, tokens); make them the same"
            )
        return segment

    def _stopped_by(self, signals: int) -> str:
        if signals:
            return signal.Signals(signals).name
        if self.config.steps is not None and self.step >= self.config.steps:
            return "steps"
        if self.config.minutes is not None and self.seconds >= 60.0 * self.config.minutes:
            return "minutes"
        return ""

    # -- what is written

    def _line(self) -> dict[str, Any]:
        nats, tokens, text, seconds = (sum(column) for column in zip(*self.recent, strict=True))
        self.recent = []
        scores = Scores(nats, int(tokens), int(text) or None)
        self.loss = scores.loss
        more = {"tokens": self.tokens, "tokens_per_second": tokens / seconds, "lr": self.optimizers.lr, "grad_norm": self.norm}
        return {"step": self.step} | scores.line() | more | {"state_bytes": state_bytes(self.state), "seconds": self.seconds}

    def _write(self, line: dict[str, Any]) -> None:
        if self.log is not None:
            self.log.add(line)

    def _evaluate(self, valid: Iterable[Segment]) -> Scores:
        loss: Any = self.module.loss if distributed.is_sharded(self.model) else self.cell.loss  # sharded weights are gathered by the engine
        scores = score(loss, self.model, self.fresh, valid, device=self.device, dtype=self.dtype, token_bytes=self.token_bytes)
        self._write({"step": self.step} | scores.line("valid_") | {"valid_tokens": scores.tokens})
        return scores

    def _save(self) -> None:
        """A checkpoint, and the model for others: all processes take part."""
        rank, beside = distributed.rank(), self.checkpoints.beside(self.step)
        with self.checkpoints.writing(self.step) if rank == 0 else nullcontext():
            distributed.barrier()  # the directory is there
            if distributed.is_sharded(self.model):
                distributed.save_shards(beside / "shards", self.model, self.optimizers.members)
            elif rank == 0:
                checkpoint.save_weights(beside / "model.safetensors", self.model)
                checkpoint.save_file(self.optimizers.tensors(), beside / "optimizer.safetensors")
            checkpoint.save_rank(beside, rank, self.state, self.data.state_dict())
            if rank == 0:
                checkpoint.write_json(beside / "training.json", self._told())
            distributed.barrier()  # every process has written
        self.saved_at = self.step
        whole = self.strategy.whole(self.model)
        if whole is not None and rank == 0:
            try:
                save_pretrained(whole, self.out, self.tokenizer)
            except OSError as error:
                raise CheckpointError(
                    f"the model could not be written to {self.out} ({error}); the checkpoint of step {self.step} is whole:"
                    " free some space and resume"
                ) from error
        distributed.barrier()

    def _told(self) -> dict[str, Any]:
        told = {"step": self.step, "tokens": self.tokens, "seconds": self.seconds, "dtype": self.dtype, "model": fingerprint(self.model)}
        size = {"batch_size": self.config.batch_size, "segment_length": self.config.segment_length, "processes": distributed.world()}
        return told | size | {"config": repr(self.config)}

    def _unfinished(self, why: str) -> str:
        latest = self.checkpoints.latest()
        kept = f"{latest} is the last good checkpoint" if latest else "no checkpoint was written yet"
        rates = f"Lower lr={self.config.optimizer.lr}, or lengthen warmup={self.config.rate.warmup}"
        return f"training stopped at step {self.step + 1}: {why}; {kept}. {rates}"
