"""What a run says while it works: a log of JSON lines always, TensorBoard when installed, a bar on a terminal.

`metrics.jsonl` holds one object a line. Training lines: step, loss (nats a token), bits_per_token, bits_per_byte, tokens,
tokens_per_second, lr, grad_norm, state_bytes (of all lanes of process 0), seconds. Evaluation lines: step, valid_loss,
valid_bits_per_token, valid_bits_per_byte, valid_tokens. Seconds are seconds of training steps, without evaluation and saving.
"""

import json
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

__all__ = ["Bar", "MetricsLog"]


class MetricsLog:
    """Appends to `out/metrics.jsonl`; a resumed run drops the lines that its checkpoint has not seen."""

    def __init__(self, out: Path, *, resumed_at: int) -> None:
        out.mkdir(parents=True, exist_ok=True)
        self.path = out / "metrics.jsonl"
        seen = [line for line in self._lines() if line["step"] <= resumed_at] if resumed_at else []
        beside = out / ".metrics.jsonl.part"  # a process that is killed here has lost nothing
        beside.write_text("".join(json.dumps(line) + "\n" for line in seen), encoding="utf-8")
        os.replace(beside, self.path)
        self._file = self.path.open("a", encoding="utf-8")
        self._board = _tensorboard(out, resumed_at)

    def _lines(self) -> list[dict[str, Any]]:
        if not self.path.exists():
            return []
        lines = []
        for text in self.path.read_text(encoding="utf-8").splitlines():
            try:
                lines.append(json.loads(text))
            except ValueError:  # the last line of a process that was killed while it wrote
                continue
        return lines

    def add(self, line: Mapping[str, Any]) -> None:
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()
        if self._board is not None:
            for name, value in line.items():
                if name != "step":
                    self._board.add_scalar(name, value, line["step"])

    def close(self) -> None:
        self._file.close()
        if self._board is not None:
            self._board.close()


def _tensorboard(out: Path, resumed_at: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(out / "tensorboard"), purge_step=resumed_at + 1 if resumed_at else None)


class Bar:
    """How far a run is: a bar on a terminal; elsewhere a line every `every` seconds on standard error; `quiet`: nothing."""

    def __init__(self, *, quiet: bool, every: float = 30.0) -> None:
        self.quiet, self.every, self._next = quiet, every, time.monotonic() + every
        self._rich: Any = None
        self._task: Any = None

    def __enter__(self) -> "Bar":  # noqa: PYI034 (the shape checks of the tests know no Self)
        if not self.quiet and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

            columns = (BarColumn(), TaskProgressColumn(), TextColumn("{task.description}"), TimeRemainingColumn())
            self._rich = Progress(*columns, console=Console(stderr=True), refresh_per_second=4)
            self._rich.start()
            self._task = self._rich.add_task("", total=1.0)
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        if self._rich is not None:
            self._rich.stop()

    def show(self, share: float, line: Mapping[str, Any]) -> None:
        """`share` of the budget is spent; `line` is a training line of the log."""
        if self.quiet:
            return
        if self._rich is not None:
            self._rich.update(self._task, completed=share, description=_words(line))
        elif time.monotonic() >= self._next or share >= 1.0:
            self._next = time.monotonic() + self.every
            left = line["seconds"] * (1.0 - share) / share if share > 0 else 0.0
            print(f"{share:4.0%}  {_words(line)}  {left:.0f} s left", file=sys.stderr, flush=True)  # noqa: T201 (what a long run says)


def _words(line: Mapping[str, Any]) -> str:
    loss = f"{line['bits_per_byte']:.3f} bits a byte" if "bits_per_byte" in line else f"loss {line['loss']:.4f}"
    return f"step {line['step']}  {loss}  {line['tokens_per_second']:,.0f} tokens/s  {_size(line['state_bytes'])} held"


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.4g} {unit}"
        count /= 1000
    return f"{count:.4g} GB"
