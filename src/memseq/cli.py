"""The command line: parse, call, print. Each command is a dataclass; its fields are its flags.

What goes wrong is one line on standard error and exit code 2. `check` exits with 1 where a law is broken, `train` with
128 and the signal's number where it was stopped by one.
"""

import os
import re
import sys
from collections.abc import Sequence
from contextlib import redirect_stderr
from dataclasses import MISSING, asdict, dataclass, fields, is_dataclass
from io import StringIO
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import Positional

from memseq.cli_flags import Json, Sets, device, positive, show, words
from memseq.cli_probe import Probe, Report
from memseq.errors import ConfigError, MemseqError, nearest
from memseq.systems import SYSTEMS, cite, config_class, families, find

__all__ = ["main"]


@dataclass(frozen=True, kw_only=True)
class Train:
    """Train a model on text, and leave it in a directory that eval and generate open."""

    system: Annotated[Positional[str], words("what to train: memformer, transformer_xl, lstm, ... (`memseq list`)", "SYSTEM")]
    files: Annotated[
        Positional[tuple[str, ...]],
        words(
            "text: files, folders, .gz, .jsonl, - for standard input, hf:NAME (default: the source of Python's standard library)", "FILE"
        ),
    ] = ()
    size: Annotated[Literal["tiny", "small", "base"] | None, words("tiny (default): for 2 CPU cores; small; base: for a GPU", "SIZE")] = (
        None
    )
    steps: Annotated[
        int | None,
        words("optimiser steps (default 1000: 9 minutes for memformer, tiny, on one core of an AMD EPYC; no limit with --minutes)", "N"),
    ] = None
    minutes: Annotated[float | None, words("stop after so many minutes of training", "X")] = None
    segment_length: Annotated[int | None, words("tokens read at once, between two writes of the memory (default: the size's)", "N")] = None
    horizon: Annotated[int | None, words("segments the gradient flows back through, by replay (default 8)", "N")] = None
    batch_size: Annotated[int | None, words("streams read side by side, in each process (default 16)", "N")] = None
    slots: Annotated[int | None, words("slots of the memory, of systems that have slots (default: the size's)", "N")] = None
    window: Annotated[int | None, words("tokens that near attention reaches back, where there is such (default: the size's)", "N")] = None
    lr: Annotated[float | None, words("highest learning rate (default 0.001)", "X")] = None
    optimizer: Annotated[Literal["adamw", "muon"] | None, words("adamw (default) or muon", "NAME")] = None
    backend: Annotated[
        Literal["replay", "checkpoints", "backpropagation"] | None,
        words("how gradients reach back: replay (default), a chain of checkpoints, or one graph with every activation alive", "NAME"),
    ] = None
    schedule: Annotated[
        str | None,
        words("states that replay keeps: all (default), sqrt, revolve:N (N of them at most), offload (all, on the host)", "NAME"),
    ] = None
    dtype: Annotated[Literal["auto", "float32", "bfloat16"] | None, words("of products; auto (default) measures", "NAME")] = None
    tokenizer: Annotated[str | None, words("bytes (default), train (byte pairs, on this text), or a tokenizer.json", "NAME|FILE")] = None
    vocab_size: Annotated[int | None, words("tokens of a tokenizer that is trained (default 4096)", "N")] = None
    seed: Annotated[int | None, words("decides weights, order and dropout (default 0)", "N")] = None
    out: Annotated[Path | None, words("where the log, the checkpoints and the model go (default runs/SYSTEM)", "DIR")] = None
    resume: Annotated[bool, words("go on with the run in --out, as it was started; --steps or --minutes may lengthen it")] = False
    shard: Annotated[bool, words("under torchrun: split the weights over processes")] = False
    quiet: Annotated[bool, words("no progress bar")] = False
    set: Annotated[Sets, words("set fields of the model, or of training.*, such as training.clip=0.5", "PATH=VALUE")] = ()
    json: Json = False

    def run(self) -> int:
        from memseq.recipes.train_command import train_command

        told = train_command({f.name: getattr(self, f.name) for f in fields(self)})
        show(self.json, told["summary"], [{"": name, "value": value} for name, value in told["shown"].items()])
        return told["exit_code"]


@dataclass(frozen=True, kw_only=True)
class Eval:
    """Bits per byte of a model by position in the stream: with its memory, with the memory cleared, beside compressors."""

    checkpoint: Annotated[Positional[Path], words("a directory that `memseq train` wrote", "CHECKPOINT")]
    files: Annotated[
        Positional[tuple[str, ...]], words("text, as for train (default: what was held out when the model was trained)", "FILE")
    ] = ()
    forget_every: Annotated[int | None, words("tokens that a cleared memory lasts (default: the model's segment)", "N")] = None
    tokens: Annotated[int, words("tokens read, at most (default 262144)", "N")] = 1 << 18
    json: Json = False

    def run(self) -> int:
        from memseq.recipes.evaluate_text import evaluate_text
        from memseq.report.tables import print_table, size

        positive({"tokens": self.tokens - 1, "forget_every": self.forget_every})
        found = evaluate_text(self.checkpoint, self.files, forget_every=self.forget_every, max_tokens=self.tokens, device=device())
        if self.json:
            show(True, found, [])
            return 0
        memory = found["bits_per_byte"]["memory"]
        rows = [{"": name, "bits per byte": bits, "more than with memory": bits - memory} for name, bits in found["bits_per_byte"].items()]
        print_table(rows, title=f"{found['bytes']:,} bytes of {', '.join(found['text'])}")
        places = [{"bytes or tokens read before": f"{row.pop('first'):,} to {row.pop('last'):,}", **row} for row in found["by_position"]]
        print_table(places, title=f"by position in the document; cleared every {found['forget_every']} tokens")
        print(f"{found['tokens_per_second']:,.0f} tokens/s; a stream holds {size(found['state_bytes'])}")
        return 0


@dataclass(frozen=True, kw_only=True)
class Generate:
    """Continue a text, token by token, in constant memory."""

    checkpoint: Annotated[Positional[Path], words("a directory that `memseq train` wrote", "CHECKPOINT")]
    prompt: Annotated[str | None, words("text to continue, of any length; - reads standard input", "TEXT|-")] = None
    tokens: Annotated[int, words("tokens to generate (default 256)", "N")] = 256
    temperature: Annotated[float, words("0 takes the likeliest token, 1 (default 0.8) the model's own chances", "X")] = 0.8
    top_p: Annotated[float, words("draw from the likeliest tokens of this total chance (default 1: from all)", "X")] = 1.0
    top_k: Annotated[int | None, words("draw from this many of the likeliest tokens (default: from all)", "N")] = None
    seed: Annotated[int | None, words("decides the draws (default 0, or the one in --state)", "N")] = None
    state: Annotated[Path | None, words("go on from this saved stream", "FILE")] = None
    save_state: Annotated[Path | None, words("save the stream here at the end", "FILE")] = None

    def run(self) -> int:
        from memseq.recipes.continue_text import continue_text

        if self.prompt is None and self.state is None:
            raise ConfigError("there is nothing to continue; give --prompt TEXT, --prompt - for standard input, or --state FILE")
        sampling = {"temperature": self.temperature, "top_p": self.top_p, "top_k": self.top_k, "seed": self.seed}
        pieces = continue_text(
            self.checkpoint, self.prompt, self.tokens, state=self.state, save_state=self.save_state, device=device(), **sampling
        )
        for piece in pieces:
            print(piece, end="", flush=True)
        print()
        return 0


@dataclass(frozen=True, kw_only=True)
class Check:
    """Prove the law `y, state = memory(x, state)` for a memory of yours or of ours."""

    config: Annotated[Positional[str], words("module:Config of your own, or a system of `memseq list`", "MODULE:CONFIG")]
    laws: Annotated[tuple[str, ...], words("prove these alone (default: all)", "LAW")] = ()
    quick: Annotated[bool, words("read streams of thousands of tokens in place of a hundred thousand")] = False
    seed: Annotated[int, words("decides weights and inputs (default 0)", "N")] = 0
    set: Annotated[Sets, words("values of the config's fields (d_model is 16 unless set)", "PATH=VALUE")] = ()
    json: Json = False

    def run(self) -> int:
        from memseq.checking import QUICK, STANDARD, check_memory
        from memseq.recipes.settings import assignments

        config = config_named(self.config, assignments(self.set))
        report = check_memory(config, laws=self.laws or None, seed=self.seed, effort=QUICK if self.quick else STANDARD)
        rows = [
            {
                "law": r.law,
                "holds": r.passed,
                "deviation": r.deviation,
                "tolerance": r.tolerance,
                "where": r.where,
                "s": round(r.seconds, 1),
            }
            for r in report.rows
        ]
        show(self.json, report.to_dict(), rows, report.subject)
        return 0 if report.passed else 1


@dataclass(frozen=True, kw_only=True)
class Bench:
    """What a stream costs as it grows: latency of one token, tokens read a second, bytes held."""

    systems: Annotated[Positional[tuple[str, ...]], words("systems of `memseq list` (default: all that have sizes)", "SYSTEM")] = ()
    size: Annotated[Literal["tiny", "small", "base"], words("tiny (default), small or base", "SIZE")] = "tiny"
    lengths: Annotated[tuple[int, ...], words("tokens read before measuring (default 1024 4096 16384)", "N")] = (1024, 4096, 16384)
    steps: Annotated[int, words("tokens timed one by one at each length (default 32)", "N")] = 32
    json: Json = False

    def run(self) -> int:
        from memseq.models.presets import preset, systems_with_presets
        from memseq.probes import stream_costs
        from memseq.report.tables import size

        positive({"steps": self.steps, "lengths": min(self.lengths, default=0)})
        configs = {name: preset(name, self.size) for name in self.systems or systems_with_presets()}
        costs, rows = [], []
        for name, config in configs.items():
            for cost in stream_costs(config.build().to(device()), lengths=self.lengths, steps=self.steps):
                costs.append({"system": name, **asdict(cost)})
                rows.append({"system": name, "tokens read": cost.length, "ms for one more": cost.step_ms})
                rows[-1] |= {"tokens read/s": cost.read_tokens_per_second, "held": size(cost.state_bytes)}
        show(self.json, costs, rows, f"one stream of each, {self.size}")
        return 0


@dataclass(frozen=True, kw_only=True)
class List:
    """The systems there are."""

    families: Annotated[bool, words("by what they are, names only")] = False
    markdown: Annotated[bool, words("print a table in Markdown")] = False
    json: Json = False

    def run(self) -> int:
        from memseq.models.presets import systems_with_presets
        from memseq.report import tables

        if self.families:
            mark = "`{}`" if self.markdown else "{}"
            rows = [{"family": name, "systems": ", ".join(mark.format(s.stem) for s in found)} for name, found in families().items()]
            if self.json or self.markdown:
                print(tables.as_json(rows) if self.json else tables.markdown(rows))
            else:
                tables.print_table(rows)
            return 0
        trainable, systems = systems_with_presets(), SYSTEMS.values()
        if self.json:
            told = ({"system": s.stem, "kind": s.kind, "about": s.about, "cites": s.cites, "train": s.stem in trainable} for s in systems)
            print(tables.as_json(list(told)))
        elif self.markdown:
            rows = [{"system": f"`{s.stem}`", "kind": s.kind, "what it is": s.about, "source": sources(s)} for s in systems]
            print(tables.markdown(rows))
        else:
            tables.print_table([{"system": s.stem, "kind": s.kind, "what it is": s.about, "train": s.stem in trainable} for s in systems])
        return 0


@dataclass(frozen=True, kw_only=True)
class Cite:
    """The BibTeX of a system's sources."""

    system: Annotated[Positional[str], words("a name of `memseq list`", "SYSTEM")]

    def run(self) -> int:
        print(cite(self.system))
        return 0


@dataclass(frozen=True, kw_only=True)
class Show:
    """What a system is: its source, equations and state, and its settings."""

    system: Annotated[Positional[str], words("a name of `memseq list`", "SYSTEM")]
    json: Json = False

    def run(self) -> int:
        from importlib import import_module

        system = find(self.system)
        rows = [] if system.config is None else settings(config_class(system.stem))
        if not self.json:
            print(f"{system.stem} ({system.kind}): {system.about}\n")
            print((import_module(system.config[0]).__doc__ or "").strip() if system.config else "")
            print("\nSources: " + ("; ".join(f"{p.title} ({p.year})" for p in system.papers) or "this library"))
        show(self.json, {"system": system.stem, "kind": system.kind, "about": system.about, "settings": rows}, rows)
        return 0


COMMANDS: dict[str, Any] = {
    "train": Train,
    "eval": Eval,
    "generate": Generate,
    "probe": Probe,
    "report": Report,
    "check": Check,
    "bench": Bench,
}
COMMANDS |= {"list": List, "cite": Cite, "show": Show}


def main(given: Sequence[str] | None = None) -> int:
    """Run one command; the exit code."""
    # threads that wait by spinning take the cores from each other when the machine has other work; read when torch is loaded
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    try:
        return parse(list(sys.argv[1:] if given is None else given)).run()
    except MemseqError as error:
        return refused(error)
    except OSError as error:
        if isinstance(error, BrokenPipeError):  # who read our output has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 141
        return refused(f"{error.strerror or error}: {error.filename}" if error.filename else error)
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return 130


def refused(why: object) -> int:
    print(f"memseq: {' '.join(str(why).split())}", file=sys.stderr)
    return 2


def parse(given: list[str]) -> Any:
    """The command that `given` names. tyro explains in boxes; here an explanation is one line."""
    import tyro
    from tyro.conf import FlagCreatePairsOff

    if given and given[0] not in COMMANDS and not given[0].startswith("-"):
        raise ConfigError(f"there is no command {given[0]!r}; {nearest(given[0], list(COMMANDS))}")
    description = "Memory for sequence models. `memseq COMMAND --help` says more; `memseq train memformer` is a good beginning."
    commands: dict[str, Any] = dict(COMMANDS)
    told = StringIO()
    try:
        with redirect_stderr(told):
            return tyro.extras.subcommand_cli_from_dict(
                commands, args=gathered(given) or ["--help"], prog="memseq", description=description, config=[FlagCreatePairsOff]
            )
    except SystemExit as end:
        if not end.code:
            raise
        raise ConfigError(f"{unboxed(told.getvalue(), given[0])}; see memseq {given[0]} --help") from None


def unboxed(box: str, command: str) -> str:
    """What tyro says in a box (or, where boxes cannot be drawn, between lines), on one line and without its hints at the help."""
    lines = [line.strip("│|╭╮╰╯ ") for line in box.splitlines()[1:]]
    parts = " ".join(";" if line and set(line) <= set("─-") else line for line in lines).split(";")
    text = "; ".join(" ".join(part.split()) for part in parts if part.strip())
    if (unknown := re.match(r"Unrecognized options: (--[\w-]+)", text)) and command in COMMANDS:
        flags = [f"--{f.name.replace('_', '-')}" for f in fields(COMMANDS[command])]
        return f"{command} has no flag {unknown[1]}; {nearest(unknown[1], flags)}"
    text = re.sub(r"no type matching \{None\}\|(\w+) could be instantiated from \['(.*?)'\].*?; Arg", r"\2 is no \1; Arg", text)
    text = text.replace("'None', ", "").replace(", 'None'", "")
    return re.split(r"; (?:For full helptext|Argument helptext)", text)[0]


def gathered(given: list[str]) -> list[str]:
    """`--set a=1 --set b=2` as `--set a=1 b=2`: the flag may come as often as it likes."""
    others: list[str] = []
    found: list[str] = []
    place, latest = others, ""
    for word in given:
        if word.startswith("--set="):
            found.append(word.removeprefix("--set="))
        elif word == "--set":
            place = found
        else:
            # the first word after --set belongs to it, whatever it is; then those that set something
            own = place is found and not word.startswith("-") and (latest == "--set" or "=" in word)
            place = found if own else others
            place.append(word)
        latest = word
    return [*others, "--set", *found] if found else others


def sources(system: Any) -> str:
    linked = (f"[{p.title}](https://arxiv.org/abs/{p.arxiv})" if p.arxiv else p.title for p in system.papers)
    return "; ".join(f"{title}, {p.year}" for title, p in zip(linked, system.papers, strict=True))


def settings(config: Any) -> list[dict[str, Any]]:
    """The fields of a config class and their defaults."""
    rows = []
    for f in fields(config):
        default = f.default_factory() if f.default_factory is not MISSING else f.default
        rows.append({"setting": f.name, "type": getattr(f.type, "__name__", str(f.type)), "default": repr(default)})
        if default is MISSING:
            rows[-1]["default"] = "required"
    return rows


def config_named(name: str, values: dict[str, str]) -> Any:
    """The config at `module:Config`, or of a system of ours, with `values` for its fields."""
    from importlib import import_module
    from typing import get_type_hints

    from memseq.recipes.settings import typed, with_values

    module, colon, attribute = name.partition(":")
    if not colon:
        found = config_class(find(name).stem)
    else:
        sys.path.insert(0, str(Path.cwd()))
        try:
            found = getattr(import_module(module), attribute)
        except ImportError as error:
            raise ConfigError(f"{module} cannot be imported from {Path.cwd()}: {error}") from None
        except AttributeError:
            raise ConfigError(f"{module} has no {attribute!r}; {nearest(attribute, dir(import_module(module)))}") from None
    if not isinstance(found, type) or not is_dataclass(found):
        return with_values(found() if callable(found) and not hasattr(found, "build") else found, values)
    needed = [f.name for f in fields(found) if f.default is MISSING and f.default_factory is MISSING]
    hints = get_type_hints(found)
    given = {name: typed(values[name], hints[name], name) for name in needed if name in values}
    given |= {"d_model": 16} if "d_model" in needed and "d_model" not in given else {}
    missing = [name for name in needed if name not in given]
    if missing:
        raise ConfigError(
            f"{name} needs {', '.join(missing)}; give --set {' '.join(f'{m}=VALUE' for m in missing)}, or name a config with values"
        )
    return with_values(found(**given), {path: value for path, value in values.items() if path not in given})
