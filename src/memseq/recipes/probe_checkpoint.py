"""All probes of one checkpoint, into one folder: the recipe behind `memseq probe`.

    DIR/parts/settings.json      what is measured: the weights' fingerprint, lengths, seed, text
    DIR/parts/NAME.N.json        one part of one probe, written when it is done; --resume measures what is not there
    DIR/probe.json               everything
    DIR/report.html              the same for people

A probe that the model has no use for (slots of a model without slots) is left out and named under `skipped`; asked for by name,
it is an error.
"""

import json
import os
import shutil
import sys
import time
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from types import TracebackType
from typing import Any, cast, get_type_hints

from memseq.errors import ConfigError, DataError, nearest
from memseq.probes import PROBES, Probe, Subject, find_probe
from memseq.recipes.machine import describe
from memseq.recipes.probe_subject import subject_of
from memseq.recipes.settings import typed
from memseq.report.combined import FORMAT
from memseq.report.html import page
from memseq.report.tables import as_json
from memseq.streams.reading import fingerprint_weights
from memseq.systems import stem_of
from memseq.tasks import task_class

__all__ = ["folder_of", "probe_checkpoint", "probe_subject"]

OURS = ("parts", "probe.json", "report.html")


def probe_checkpoint(
    checkpoint: str | Path,
    names: Sequence[str] = (),
    *,
    out: str | Path | None = None,
    places: Sequence[str] = (),
    length: int = 4096,
    samples: int = 16,
    seed: int = 0,
    values: Mapping[str, str] | None = None,
    resume: bool = False,
    overwrite: bool = False,
    quiet: bool = False,
    device: str = "cpu",
) -> dict[str, Any]:
    """Probe the model in `checkpoint` (all probes, or those of `names`) and write `out`; what was found, as JSON values.

    length    tokens read at most after what is to be remembered
    samples   streams that are asked
    values    fields of the tasks among `names`, as text
    places    text to read in place of what was held out when the model was trained

    Raises what a name, a folder or a checkpoint that cannot be used raises, before anything is written.
    """
    probes = planned_probes(names, values or {}, length=length, samples=samples, seed=seed)
    if resume and overwrite:
        raise ConfigError("--resume keeps what is there and --overwrite removes it; give one of them")
    out = folder_of(checkpoint, out)
    check_folder(out, resume=resume, overwrite=overwrite)
    needs_text = not names or any("text" in probe.needs for probe in probes.values())
    subject = subject_of(checkpoint, places=places, needs_text=needs_text, max_tokens=max(1 << 15, 8 * length), device=device)
    for name, probe in probes.items():
        if name in names and (why := probe.unmet(subject)):
            raise DataError(why)
    settings: dict[str, Any] = {
        "weights": fingerprint_weights(subject.model),
        "length": length,
        "samples": samples,
        "seed": seed,
        "text": list(places),
    }
    settings |= {"values": dict(values)} if values else {}
    if overwrite:
        clear(out)
    parts = Parts(out / "parts", settings)
    return probe_subject(subject, probes, parts, checkpoint=str(checkpoint), quiet=quiet)


def folder_of(checkpoint: str | Path, out: str | Path | None = None) -> Path:
    """Where a probe of `checkpoint` goes unless `out` says."""
    return Path(out) if out is not None else Path("runs") / f"{Path(checkpoint).resolve().name}-probe"


def planned_probes(names: Sequence[str], values: Mapping[str, str], **common: int) -> dict[str, Probe]:
    """The probes of `names`, all there are by default; `values` are fields of the tasks among them."""
    tasks = [name for name in names if name.startswith("task:")]
    if values and not tasks:
        raise ConfigError(f"--set {next(iter(values))}=... sets a field of a task, and none is named; name one, such as task:recall")
    probes = {}
    for name in names or PROBES:
        found = find_probe(name, **common)
        if name in tasks and values:
            cls = task_class(name.removeprefix("task:"))
            hints = {field.name: get_type_hints(cls)[field.name] for field in fields(cast(Any, cls))}
            for field in values:
                if field not in hints:
                    raise ConfigError(f"{name} has no field {field!r}; {nearest(field, list(hints))}")
            found = replace(cast(Any, found), settings={field: typed(text, hints[field], field) for field, text in values.items()})
        probes[name] = found
    return probes


def probe_subject(subject: Subject, probes: dict[str, Probe], parts: "Parts", *, checkpoint: str, quiet: bool) -> dict[str, Any]:
    """Run `probes` on `subject`, keeping each part; write probe.json and report.html beside the parts."""
    fitting = {name: probe for name, probe in probes.items() if probe.unmet(subject) is None}
    planned = {name: probe.parts(subject) for name, probe in fitting.items()}
    told: dict[str, Any] = {
        "format": FORMAT,
        "model": described(subject, checkpoint),
        "settings": parts.settings,
        "machine": describe(),
        "probes": {},
        "skipped": {name: probe.unmet(subject) for name, probe in probes.items() if name not in fitting},
    }
    with Progress(sum(map(len, planned.values())), quiet=quiet) as progress:
        for name, probe in fitting.items():
            kept = {part: parts.kept[name, part] for part in planned[name] if (name, part) in parts.kept}
            progress.on(name, len(kept))
            began = time.perf_counter()

            def done(part: str, found: dict[str, Any], name: str = name) -> None:
                nonlocal began
                now = time.perf_counter()
                parts.keep(name, part, found, now - began)
                began = now
                progress.on(name, 1)

            result = probe.run(subject, kept=kept, done=done)
            seconds = sum(parts.seconds.get((name, part), 0.0) for part in planned[name])
            told["probes"][name] = {"about": probe.about, "seconds": round(seconds, 2), "result": result}
    told["seconds"] = round(sum(probe["seconds"] for probe in told["probes"].values()), 2)
    text = as_json(told)
    told = json.loads(text)  # as a reader of the file will see it
    write(parts.folder.parent / "report.html", page([told]))
    write(parts.folder.parent / "probe.json", text + "\n")
    return told


def described(subject: Subject, checkpoint: str) -> dict[str, Any]:
    """The model in a few words."""
    wrapped = getattr(subject.model, "wrapped", None)
    system = type(wrapped).__name__ if wrapped is not None else stem_of(type(subject.model.config)) or type(subject.model).__name__
    return {
        "name": subject.name,
        "checkpoint": checkpoint,
        "system": system,
        "parameters": sum(p.numel() for p in subject.model.parameters()),
        "vocab_size": subject.vocab_size,
        "bounded": bool(getattr(subject.model, "bounded", True)),
        "state": getattr(subject.model, "how", "state"),
        "segment_length": getattr(subject.model, "segment_length", None),
        "trained_length": subject.trained_length,
        "longest": subject.longest,
        "tokenizer": repr(subject.tokenizer) if subject.tokenizer is not None else None,
    }


def check_folder(out: Path, *, resume: bool, overwrite: bool) -> None:
    """Raise `ConfigError` where `out` holds something that must not be touched."""
    if out.is_file():
        raise ConfigError(f"{out} is a file; name a folder by --out")
    held = sorted(p.name for p in out.iterdir()) if out.is_dir() else []
    if not held or resume:
        return
    if not set(held) <= set(OURS):
        other = next(name for name in held if name not in OURS)
        raise ConfigError(f"{out} holds {other}, which is not of a probe; name another folder by --out")
    if not overwrite:
        raise ConfigError(f"{out} exists: --resume goes on with what is in it, --overwrite begins anew, --out names another folder")


def clear(out: Path) -> None:
    """Remove an earlier probe's files, and nothing else."""
    for name in OURS:
        place = out / name
        shutil.rmtree(place) if place.is_dir() else place.unlink(missing_ok=True)


class Parts:
    """What was measured so far, a file a part; what is in `folder` already counts."""

    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        self.folder, self.settings = folder, settings
        self.kept: dict[tuple[str, str], dict[str, Any]] = {}
        self.seconds: dict[tuple[str, str], float] = {}
        file = folder / "settings.json"
        if file.is_file():
            self._read(file)
        folder.mkdir(parents=True, exist_ok=True)
        write(file, as_json(settings) + "\n")

    def _read(self, file: Path) -> None:
        try:
            before = json.loads(file.read_text(encoding="utf-8"))
            found = [json.loads(part.read_text(encoding="utf-8")) for part in sorted(self.folder.glob("*.*.json"))]
        except (ValueError, OSError) as error:
            raise ConfigError(f"{self.folder} holds a part that cannot be read ({error}); begin anew by --overwrite") from None
        for name, value in self.settings.items():
            if before.get(name) != value:
                what = "the model's weights changed" if name == "weights" else f"{name} was {before.get(name)} and is {value}"
                raise ConfigError(f"{self.folder.parent} cannot be resumed: {what}; begin anew by --overwrite, or name another --out")
        for part in found:
            self.kept[part["probe"], part["part"]] = part["found"]
            self.seconds[part["probe"], part["part"]] = part["seconds"]

    def keep(self, probe: str, part: str, found: dict[str, Any], seconds: float) -> None:
        self.seconds[probe, part] = seconds
        value = {"probe": probe, "part": part, "seconds": round(seconds, 3), "found": found}
        write(self.folder / f"{probe.replace(':', '-')}.{zlib.crc32(part.encode()):08x}.json", json.dumps(value) + "\n")


def write(file: Path, text: str) -> None:
    """Beside its place and then renamed: a process that is killed leaves no half file."""
    beside = file.with_name(f".{file.name}.{os.getpid()}.part")
    try:
        beside.write_text(text, encoding="utf-8")
        os.replace(beside, file)
    finally:
        beside.unlink(missing_ok=True)


class Progress:
    """Which probe is at work: a bar on a terminal, a line for each probe elsewhere, nothing when quiet."""

    def __init__(self, total: int, *, quiet: bool) -> None:
        self.total, self.quiet, self.done, self.name = total, quiet, 0, ""
        self._bar: Any = None
        self._task: Any = None

    def __enter__(self) -> "Progress":  # noqa: PYI034 (the shape checks of the tests know no Self)
        if not self.quiet and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
            from rich.progress import Progress as Bar

            columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
            self._bar = Bar(*columns, console=Console(stderr=True), refresh_per_second=4)
            self._bar.start()
            self._task = self._bar.add_task("", total=self.total)
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.stop()

    def on(self, name: str, parts: int) -> None:
        """`parts` more are done, and `name` is at work."""
        self.done += parts
        if self._bar is not None:
            self._bar.update(self._task, completed=self.done, description=name)
        elif not self.quiet and name != self.name:
            print(f"{self.done:3}/{self.total}  {name}", file=sys.stderr, flush=True)  # noqa: T201 (what a long run says)
        self.name = name
