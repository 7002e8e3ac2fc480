"""Five minutes that show what a memory buys: `python3 dev.py demo`.

A small Memformer learns by memory replay to keep four symbols through noise, and is asked for them after many more segments than
it was trained on, beside the same model without slots. Then a Memformer and a model of the same size without slots learn the source
text of Python's standard library, each for the same time, and read files they have not seen. Tables say what was recalled, what
the slots are worth on text, what a stream holds beside a cache of keys and values, and how fast it reads. The text model stays in
runs/demo, for `memseq eval` and `memseq generate`.
"""

import argparse
import shutil
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from memseq.errors import ConfigError, MemseqError
from memseq.memories.segment_attention import SegmentAttentionConfig
from memseq.models.presets import preset
from memseq.probes import Curve, bits_per_byte, shallow, stream_costs
from memseq.recipes import memformer_recall
from memseq.recipes.evaluate_text import curves, first_tokens
from memseq.recipes.fitting import weights_of
from memseq.recipes.machine import keep_freed_memory
from memseq.recipes.memformer_recall import RecallRun
from memseq.recipes.memformer_text import as_large_as
from memseq.recipes.train_text import TextRecipe, train_text
from memseq.report.tables import as_json, print_table, size
from memseq.streams import Session
from memseq.tasks.text import stdlib
from memseq.tasks.tokenizers import Bytes
from memseq.training.backends import Backpropagation
from memseq.training.loop import TrainingConfig
from memseq.training.optim import AdamWConfig, WarmupCosine

__all__ = ["Demo", "demo", "memformer", "without_slots"]

PROMPT = "def "


@dataclass(frozen=True, kw_only=True)
class Demo:
    """How long, how much text, and where to."""

    minutes: float = 1.6  # of training on text, for each of the two models
    recall_steps: int = 450  # of training on recall, at most
    asked: int = 256  # samples of recall at each length
    tokens: int = 1 << 16  # of files that were held out, at most
    reading_seconds: float = 12.0  # for each of the three readings of them: a busy machine reads fewer
    lengths: tuple[int, ...] = (1_024, 16_384)  # at which streams are weighed
    sample: int = 400  # bytes that are generated
    out: Path = Path("runs/demo")
    seed: int = 0


def memformer(vocab_size: int) -> Any:
    """The model of the demo: one block reads the slots, because a training of minutes pays for every block that does (`memformer_text`)."""
    return replace(preset("memformer", "tiny", vocab_size=vocab_size), reading=(1,))


def without_slots(config: Any) -> Any:
    """The same near attention and no slots; what their weights took goes to the feedforwards, so that the sizes are equal."""
    return as_large_as(config, preset("sliding_window", "tiny", vocab_size=config.vocab_size))


def demo(settings: Demo, *, quiet: bool = False) -> dict[str, Any]:
    """Train both models, read, weigh, generate; everything the tables say, as JSON values."""
    began = time.perf_counter()
    training = TrainingConfig(
        steps=None,
        minutes=settings.minutes,
        segment_length=32,
        horizon=8,
        optimizer=AdamWConfig(lr=2e-3),
        rate=WarmupCosine(warmup=50),
        backend=Backpropagation(),  # the gradients of replay; a window this small fits, and its activations need no second forward
        seed=settings.seed,
        save_every=10_000,
    )
    ours, plain = memformer(256), without_slots(memformer(256))
    told: dict[str, Any] = {"parameters": weights_of(ours), "baseline_parameters": weights_of(plain), "minutes": settings.minutes}
    say("1 of 5  teaching a small Memformer to recall what it saw eight segments ago", quiet)
    told["recall"] = recalled(settings)
    say(f"2 of 5  training a Memformer of {told['parameters']:,} weights on Python's own source, {settings.minutes:g} minutes", quiet)
    make_room(settings.out)
    run = train_text(TextRecipe(model=memformer, training=training, scored=1), settings.out, quiet=quiet, command={"system": "demo"})
    if run.exit_code:
        raise KeyboardInterrupt
    with tempfile.TemporaryDirectory() as folder:
        say(f"3 of 5  training a model of the same size without the slots, {settings.minutes:g} minutes", quiet)
        other = train_text(TextRecipe(model=lambda _: plain, training=training, scored=1), folder, quiet=quiet)
        if other.exit_code:
            raise KeyboardInterrupt
        say("4 of 5  reading files that both have not seen", quiet)
        told |= measured(settings, folder)
    say("5 of 5  weighing streams, and writing", quiet)
    told |= {"tokens_trained": run.tokens, "baseline_tokens_trained": other.tokens, "dtype": run.dtype}
    told |= {"training_tokens_per_second": run.tokens / run.seconds}
    told["streams"] = weighed(settings, ours)
    told["sample"] = written(settings)
    return told | {"seconds": time.perf_counter() - began}


def recalled(settings: Demo) -> list[dict[str, Any]]:
    """Accuracy of recall by the number of segments between, with slots and without."""
    steps = settings.recall_steps
    asked: dict[str, Any] = {"train_on": (8,), "test_on": (8, 16, 64), "asked": settings.asked}
    size: dict[str, Any] = {"d_model": memformer_recall.D, "n_heads": 4, "segment_length": memformer_recall.L}
    plain = memformer_recall.stack(SegmentAttentionConfig(**size))
    runs = [
        RecallRun(name="Memformer", model=memformer_recall.memformer(), steps=steps, stop_at=0.995, **asked),
        RecallRun(name="the same without slots", model=plain, steps=max(1, steps // 4), **asked),
    ]
    return [memformer_recall.run(what, seed=settings.seed) for what in runs]


def measured(settings: Demo, baseline: str) -> dict[str, Any]:
    """Bits per byte on held-out files: with the slots, with the slots cleared, without slots, and of compressors."""
    from memseq.pretrained import load_pretrained

    tokenizer = Bytes()
    aside, model = stdlib()[1], load_pretrained(settings.out)
    trial = bits_per_byte(model, ([ids] for ids in first_tokens(aside, min(settings.tokens, 4096))), token_bytes=tokenizer.token_bytes)
    affordable = max(8192, round(trial.tokens_per_second * settings.reading_seconds))
    documents = first_tokens(aside, min(settings.tokens, affordable))
    every = model.segment_length
    carried, cleared = curves(model, documents, tokenizer, every)
    other = bits_per_byte(load_pretrained(baseline), ([ids] for ids in documents), token_bytes=tokenizer.token_bytes)
    told = {"memory": carried.bits_per_byte, "memory cleared": cleared.bits_per_byte, "without memory": other.bits_per_byte}
    told |= shallow(b"".join(tokenizer.decode_bytes(ids) for ids in documents))
    far = {name: beyond(curve, 1024) for name, curve in (("memory", carried), ("memory cleared", cleared), ("without memory", other))}
    return {
        "bits_per_byte": told,
        "bits_per_byte_after_1024": far,
        "forget_every": every,
        "tokens": carried.tokens,
        "reading_tokens_per_second": carried.tokens_per_second,
    }


def beyond(curve: Curve, place: int) -> float:
    """Bits per byte of the tokens from `place` of their document on."""
    return replace(curve, bins=tuple(b for b in curve.bins if b.first >= place) or curve.bins[-1:]).bits_per_byte


def weighed(settings: Demo, config: Any) -> list[dict[str, Any]]:
    """The cost of one stream at several lengths, for the Memformer and for a Transformer of the same width and depth."""
    cache = preset("attention", "tiny", vocab_size=config.vocab_size)
    costs = {"Memformer": config, "Transformer with a cache": cache}
    return [
        {"model": name, "length": cost.length, "state_bytes": cost.state_bytes, "step_ms": cost.step_ms}
        for name, each in costs.items()
        for cost in stream_costs(each.build(), lengths=settings.lengths, steps=32)
    ]


def written(settings: Demo) -> str:
    from memseq.pretrained import load_pretrained

    session = Session(load_pretrained(settings.out), tokenizer=Bytes(), seed=settings.seed)
    session.read(torch.tensor(list(PROMPT.encode())))
    return PROMPT + str(session.generate(settings.sample, temperature=0.6))


def make_room(out: Path) -> None:
    """Remove an earlier demo in `out`, and nothing else."""
    command = out / "command.json"
    if command.is_file() and '"demo"' in command.read_text():
        shutil.rmtree(out)
    elif out.exists() and any(out.iterdir()):
        raise ConfigError(f"{out} holds something else than an earlier demo; name another folder by --out")


def say(line: str, quiet: bool) -> None:
    if not quiet:
        print(line, file=sys.stderr, flush=True)


def tell(settings: Demo, told: dict[str, Any]) -> None:
    """The tables, and what to do next."""
    bits, far = told["bits_per_byte"], told["bits_per_byte_after_1024"]
    names = {
        "memory": "Memformer: near attention and a memory",
        "memory cleared": f"the same model, its memory cleared every {told['forget_every']} bytes",
        "without memory": "same size, trained as long, near attention alone",
    }
    rows = [
        {"bits per byte, fewer is better": text, "all": bits[name], "from byte 1,024 on": far.get(name)} for name, text in names.items()
    ]
    print()
    chance = memformer_recall.question().chance
    asked = [
        {"symbols recalled": row["name"]} | {f"{n} segments": f"{a:.0%}" for n, a in row["accuracy"].items()} for row in told["recall"]
    ]
    print_table(asked, title=f"Recalled, after that many segments of noise (trained on 8; guessing gives {chance:.0%})")
    print_table(rows, title=f"How well it predicts files it has not seen ({told['tokens']:,} bytes of them)")
    rows = [
        {
            "one stream": row["model"],
            "bytes read": row["length"],
            "it holds": size(row["state_bytes"]),
            "ms for one more byte": row["step_ms"],
        }
        for row in told["streams"]
    ]
    print_table(rows, title="What remembering costs (equal width and depth)")
    print(f"It learned {told['training_tokens_per_second']:,.0f} bytes a second and reads {told['reading_tokens_per_second']:,.0f}.\n")
    print(f"What it writes, {settings.minutes:g} minutes old:\n")
    print("\n".join(f"    {line}" for line in told["sample"].splitlines()))
    out = settings.out
    print(f"\nThe model is in {out}. It took {told['seconds'] / 60:.1f} minutes. Next:\n")
    print(f'    .venv/bin/memseq generate {out} --prompt "class " --tokens 300')
    print(f"    .venv/bin/memseq eval {out}")


def main() -> int:
    parser = argparse.ArgumentParser(prog="dev.py demo", description=(__doc__ or "").partition("\n\n")[2])
    parser.add_argument("--minutes", type=float, default=Demo.minutes, help="of training, for each of the two models (default %(default)s)")
    parser.add_argument("--out", type=Path, default=Demo.out, help="where the model goes (default %(default)s)")
    parser.add_argument("--json", action="store_true", help="print JSON in place of the tables")
    given = parser.parse_args()
    settings = Demo(minutes=given.minutes, out=given.out)
    keep_freed_memory()
    try:
        told = demo(settings)
    except MemseqError as error:
        print(f"demo: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("demo: stopped", file=sys.stderr)
        return 130
    print(as_json(told)) if given.json else tell(settings, told)
    return 0


if __name__ == "__main__":
    sys.exit(main())
