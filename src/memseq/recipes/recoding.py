"""Recoding: what a step down the gradient of its own error is worth to an LSTM, on text and after an accident.

Source: Ulmer (arXiv:2101.00674), who found minor gains with surprisal and losses with entropy on Penn Treebank.

    python -m memseq.recipes.recoding --json results.json

    text        bytes of Python's standard library, held-out files: bits a byte; ECE, how far confidence is from being right;
                processor seconds a training, of which the first row is the LSTM without steps (alpha = 0)
    accident    noise of half their size is added to h and c in the middle of held-out text: bits lost over the next 20 bytes, by the
                same trained weights with steps of other sizes
    memories    the same accident in the state of models that were trained without steps, with `Recode` put around them afterwards: what
                steps cost where nothing happened, and how much of the loss they take away, by alpha and by tokens between two steps

All models have one layer of equal width, read the same batches and are trained alike; with decoders of their own there are more weights.
"""

import argparse
import statistics
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from memseq.memories.gated_deltanet import GatedDeltaNetConfig
from memseq.memories.lstm import LSTMConfig
from memseq.memories.mamba2 import Mamba2Config
from memseq.models.recode import RecodeConfig
from memseq.models.recoding import Decoders, FixedStep, LearnedStep, Masks, RecodingConfig, RecodingLM, Surprisal
from memseq.models.stack import StackConfig
from memseq.recipes.fitting import Table, fit, weights
from memseq.state import map_state
from memseq.tasks.text import stdlib
from memseq.tasks.tokenizers import Bytes

__all__ = ["MEMORIES", "MODELS", "accident", "calibration", "main", "repaired", "trained"]

D = 64
MODELS: dict[str, RecodingConfig] = {
    "no step": RecodingConfig(vocab_size=256, d_model=D, n_layers=1, step=FixedStep(alpha=0.0)),
    "surprisal, 0.1": RecodingConfig(vocab_size=256, d_model=D, n_layers=1, step=FixedStep(alpha=0.1)),
    "surprisal, 0.5": RecodingConfig(vocab_size=256, d_model=D, n_layers=1, step=FixedStep(alpha=0.5)),
    "surprisal, learned": RecodingConfig(vocab_size=256, d_model=D, n_layers=1, step=LearnedStep()),
    "masks, 0.1": RecodingConfig(vocab_size=256, d_model=D, n_layers=1, signal=Masks(n=5), step=FixedStep(alpha=0.1)),
    "decoders, 0.1": RecodingConfig(
        vocab_size=256, d_model=D, n_layers=1, signal=Decoders(n=3, prior_scale=1 / D, noise=0.01), step=FixedStep(alpha=0.1)
    ),
}
MEMORIES: dict[str, Any] = {
    "gated_deltanet": GatedDeltaNetConfig(d_model=D, n_heads=2),
    "mamba2": Mamba2Config(d_model=D, head_size=16, state_size=32),
    "lstm": LSTMConfig(d_model=D),
}
ALPHAS, SEGMENTS = (0.003, 0.01, 0.03, 0.1), (1, 4)  # of steps around a trained model: how long, and after how many tokens
STEPS = 300
LENGTH, STREAMS = 64, 32  # bytes of a row, rows of a batch
AFTER = 20  # bytes after an accident


def data(n_bytes: int) -> tuple[Tensor, Tensor]:
    """(training, held-out) bytes of the standard library, from files as they come."""
    found = []
    for text, n in zip(stdlib(Bytes()), (n_bytes, n_bytes // 4), strict=True):
        held: list[Any] = []
        order = np.random.default_rng(0).permutation(len(text))
        for document in order:
            held += [ids for _, ids in text.chunks(int(document))]
            if sum(map(len, held)) >= n:
                break
        found.append(torch.from_numpy(np.concatenate(held)[:n].astype(np.int64)))
    return found[0], found[1]


def rows(ids: Tensor, generator: torch.Generator, batch_size: int, length: int) -> Tensor:
    """Pieces of text, one byte longer than what is read."""
    starts = torch.randint(len(ids) - length, (batch_size, 1), generator=generator)
    return ids[starts + torch.arange(length + 1)]


def trained(config: Any, ids: Tensor, *, steps: int, seed: int, lr: float = 4e-3) -> tuple[Any, float]:
    """A model after `steps` batches, and the processor seconds."""
    torch.manual_seed(seed)
    model, generator = config.build(), torch.Generator().manual_seed(seed)

    def loss(step: int) -> Tensor:
        piece = rows(ids, generator, STREAMS, LENGTH)
        total, count, _ = model.loss(piece[:, :-1], piece[:, 1:], model.init_state(STREAMS))
        held = model.anchor_loss(len(ids)) if isinstance(getattr(config, "signal", None), Decoders) else total.new_zeros(())
        return total / count + held

    return model, fit(model, loss, steps=steps, lr=lr)


@torch.no_grad()
def judged(model: Any, ids: Tensor) -> dict[str, float]:
    """Bits a byte on held-out text and the error of calibration, over the same pieces for every model."""
    piece = rows(ids, torch.Generator().manual_seed(0), batch_size=64, length=256)
    logits, _ = model(piece[:, :-1], model.init_state(len(piece)))
    logits, wanted = logits.flatten(0, 1), piece[:, 1:].flatten()
    bits = float(F.cross_entropy(logits, wanted)) / float(np.log(2))
    return {"bits_per_byte": round(bits, 4), "ece": round(calibration(logits.softmax(-1), wanted), 4)}


def calibration(p: Tensor, wanted: Tensor, n_bins: int = 15) -> float:
    """Expected calibration error: confidence against accuracy in bins of confidence, weighed by their share."""
    sure, said = p.max(-1)
    place = (sure * n_bins).long().clamp(max=n_bins - 1)
    apart = torch.zeros(n_bins, dtype=torch.float64).index_add_(0, place, (sure - (said == wanted).float()).double())
    return float(apart.abs().sum() / len(wanted))


@torch.no_grad()
def accident(model: RecodingLM, ids: Tensor, *, size: float = 0.5, seed: int = 0) -> float:
    """Bits a byte lost over the next `AFTER` bytes by noise of `size` times their norm in h and c, over 256 places."""
    generator = torch.Generator().manual_seed(seed)
    piece = rows(ids, generator, batch_size=256, length=64 + AFTER)
    state = model.advance(piece[:, :64], model.init_state(len(piece)))
    h, c = noised((state.h, state.c), size, generator)
    return bits_after(model, piece, state._replace(h=h, c=c)) - bits_after(model, piece, state)


def noised(state: Any, size: float, generator: torch.Generator) -> Any:
    """Every floating leaf of every stream with noise of `size` times its norm."""

    def hit(t: Tensor) -> Tensor:
        if not t.is_floating_point():
            return t
        noise = torch.randn(t.shape, generator=generator).flatten(1)
        noise = noise / noise.norm(dim=1, keepdim=True) * t.flatten(1).norm(dim=1, keepdim=True)
        return t + size * noise.view(t.shape)

    return map_state(hit, state)


def bits_after(model: Any, piece: Tensor, state: Any) -> float:
    """Bits a byte over what follows the 64 bytes that made the state."""
    logits = model(piece[:, 64:-1], state)[0].flatten(0, 1)
    return float(F.cross_entropy(logits, piece[:, 65:].flatten())) / float(np.log(2))


@torch.no_grad()
def repaired(model: Any, ids: Tensor, *, size: float = 0.5, seed: int = 0) -> dict[str, Any]:
    """The accident to a model that knows no steps: bits lost without any, and by steps around it what they cost and what they save."""
    generator = torch.Generator().manual_seed(seed)
    piece = rows(ids, generator, batch_size=256, length=64 + AFTER)
    state = model.advance(piece[:, :64], model.init_state(len(piece)))
    clean, hit = state, noised(state, size, generator)
    before = {name: bits_after(model, piece, held) for name, held in (("clean", clean), ("hit", hit))}
    lost, steps = before["hit"] - before["clean"], []
    for length in SEGMENTS:
        for alpha in ALPHAS:
            recode = RecodeConfig(model=model.config, step=FixedStep(alpha=alpha), segment_length=length).build(model).eval()
            start, after = recode.init_state(len(piece)), {}
            for name, held in (("clean", clean), ("hit", hit)):
                after[name] = bits_after(recode, piece, start._replace(before=held, now=held if length > 1 else ()))
            saved = {name: before[name] - after[name] for name in before}
            found = {"costs": -saved["clean"], "saves": saved["hit"], "of_the_loss": saved["hit"] / lost if lost else 0.0}
            steps.append({"tokens": length, "alpha": alpha, **{name: round(value, 4) for name, value in found.items()}})
    return {"bits_lost": round(lost, 4), "steps_around": steps}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Recoding: states that step down the gradient of their own error.")
    named = {name.replace(", ", " "): name for name in [*MODELS, *MEMORIES]}
    parser.add_argument(
        "--names", default=",".join(named), help="rows, with commas between; 'surprisal 0.1' and 'lstm' are some (default: all)"
    )
    parser.add_argument("--steps", type=int, default=STEPS, help=f"of a training (default {STEPS}); a part of its own for any other number")
    parser.add_argument("--bytes", type=int, default=1_000_000, help="of text to train on (default 1,000,000)")
    parser.add_argument("--seeds", type=int, default=3, help="trainings of each row (default 3)")
    parser.add_argument("--first-seed", type=int, default=0, help="of them (default 0)")
    parser.add_argument("--json", help="write the result to this file; rows of other parts that it holds stay")
    given = parser.parse_args(arguments)
    table = Table("python -m memseq.recipes.recoding", given.json, claims=claims, source="arXiv:2101.00674")
    train, held_out = data(given.bytes)
    longer = "" if given.steps == STEPS else f", {given.steps} steps"
    for seed in range(given.first_seed, given.first_seed + given.seeds):
        for name in (named[short] for short in given.names.split(",")):
            if name in MEMORIES:
                table.add(part=f"memories{longer}", name=name, seed=seed, **around(name, train, held_out, steps=given.steps, seed=seed))
                continue
            model, seconds = trained(MODELS[name], train, steps=given.steps, seed=seed)
            facts = {"weights": weights(model), "steps": given.steps, "cpu_seconds": round(seconds, 1)}
            table.add(part=f"text{longer}", name=name, seed=seed, **judged(model, held_out), **facts)
            if isinstance(model.config.signal, Surprisal) and not isinstance(model.config.step, LearnedStep):
                lost = {f"{alpha:g}": round(accident(with_step(model, alpha), held_out, seed=seed), 4) for alpha in (0.0, 0.1, 0.5, 2.0)}
                table.add(part=f"accident{longer}", name=name, seed=seed, bits_lost_by_alpha=lost)


def claims(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Bits a byte saved on text against the LSTM without steps of the same seed: mean and s.d. of the seeds; shown beyond 2 s.d."""
    told: dict[str, Any] = {}
    for part in sorted({row["part"] for row in rows if row["part"].startswith("text")}):
        bits = {(row["name"], row["seed"]): row["bits_per_byte"] for row in rows if row["part"] == part}
        for name in MODELS:
            saved = [bits["no step", seed] - value for (other, seed), value in bits.items() if other == name and ("no step", seed) in bits]
            if name != "no step" and len(saved) > 1:
                mean, sd = statistics.mean(saved), statistics.stdev(saved)
                told[f"{part}: {name}"] = {"saved": round(mean, 4), "sd": round(sd, 4), "seeds": len(saved), "ok": abs(mean) > 2 * sd}
    return told


def around(name: str, train: Tensor, held_out: Tensor, *, steps: int, seed: int) -> dict[str, Any]:
    """One row of the part "memories"."""
    config = StackConfig(vocab_size=256, d_model=D, layers=(MEMORIES[name],), ff_mult=2.0)
    model, seconds = trained(config, train, steps=steps, seed=seed)
    facts = {"weights": weights(model), "steps": steps, "cpu_seconds": round(seconds, 1)}
    return judged(model, held_out) | facts | repaired(model, held_out, seed=seed)


def with_step(model: RecodingLM, alpha: float) -> RecodingLM:
    """The same weights with a fixed step of another size."""
    other = replace(model.config, step=FixedStep(alpha=alpha)).build()
    other.load_state_dict({name: w for name, w in model.state_dict().items() if not name.startswith("step_size.")})
    return other.eval()


if __name__ == "__main__":
    main()
