"""`memseq probe` and `memseq report`: what a checkpoint remembers, and several side by side."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional

from memseq.cli_flags import Json, device, positive, show, words

__all__ = ["Probe", "Report"]


@dataclass(frozen=True, kw_only=True)
class Probe:
    """What a checkpoint remembers: recall, capacity, retention, copying and more, as a table, as JSON and as a page."""

    checkpoint: Annotated[
        Positional[Path], words("a directory that `memseq train` wrote, or a causal language model of transformers", "CHECKPOINT")
    ]
    tasks: Annotated[
        Positional[tuple[str, ...]],
        words("recall, capacity, copying, ... or task:NAME for what the model was trained on (default: all probes)", "TASK"),
    ] = ()
    text: Annotated[tuple[str, ...], words("text to read (default: what was held out when the model was trained)", "FILE")] = ()
    length: Annotated[int, words("how far back to ask, in tokens (default 4096; half a minute for a tiny model)", "N")] = 4096
    samples: Annotated[int, words("streams that are asked (default 16)", "N")] = 16
    seed: Annotated[int, words("decides what is shown and asked (default 0)", "N")] = 0
    out: Annotated[Path | None, words("where probe.json and report.html go (default runs/NAME-probe)", "DIR")] = None
    resume: Annotated[bool, words("go on with what --out holds")] = False
    overwrite: Annotated[bool, words("begin anew where --out holds a probe")] = False
    quiet: Annotated[bool, words("no progress bar")] = False
    set: Annotated[tuple[str, ...], words("set fields of the tasks named, such as n_noise=0", "FIELD=VALUE")] = ()
    json: Json = False

    def run(self) -> int:
        from memseq.recipes.probe_checkpoint import folder_of, probe_checkpoint
        from memseq.recipes.settings import assignments
        from memseq.report.answers import spoken

        positive({"length": self.length, "samples": self.samples})
        out = folder_of(self.checkpoint, self.out)
        told = probe_checkpoint(
            self.checkpoint,
            self.tasks,
            out=out,
            places=self.text,
            length=self.length,
            samples=self.samples,
            seed=self.seed,
            values=assignments(self.set),
            resume=self.resume,
            overwrite=self.overwrite,
            quiet=self.quiet,
            device=device(),
        )
        show(self.json, told, spoken([told]), None)
        if not self.json:
            for why in told["skipped"].values():
                print(f"Left out: {why}")
            print(f"{told['seconds']:.0f} s. The page is {out / 'report.html'}")
        return 0


@dataclass(frozen=True, kw_only=True)
class Report:
    """Lay several probed models side by side, in one table and one page."""

    probes: Annotated[Positional[tuple[Path, ...]], words("folders that `memseq probe` wrote, or their probe.json", "DIR")]
    out: Annotated[Path, words("the page (default report.html)", "FILE")] = Path("report.html")
    overwrite: Annotated[bool, words("replace the page where there is one")] = False
    json: Json = False

    def run(self) -> int:
        from memseq.report.answers import spoken
        from memseq.report.combined import opened, written

        results = [opened(path) for path in self.probes]
        written(results, self.out, overwrite=self.overwrite)
        show(self.json, results, spoken(results), None)
        if not self.json:
            print(f"The page is {self.out}")
        return 0
