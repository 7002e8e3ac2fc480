"""A few heads of attention retrieve, and recall is lost without them: the claim of Retrieval Heads, small.

Source: Wu et al. (arXiv:2404.15574): in language models a few heads in a hundred look at what they are about to say; silencing them breaks
needle tests, and silencing as many others does not. Here a stack of full attention learns to answer keys of pairs it was shown, with
unrelated tokens in between (`probes/asking.py`), and `probes/retrieval_heads.py` finds and silences its heads.

    python -m memseq.recipes.retrieval_heads --json results.json

    score       the strongest head looks at the answer in at least 0.8 of the right trials
    lost        without the strongest tenth of the heads, recall falls by at least 50 points
    kept        without as many others, it falls by at most 5
    order       a head's score and what recall loses without it alone rank alike: Spearman's correlation is at least 0.6
"""

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from memseq.memories.attention import AttentionConfig
from memseq.models.stack import StackConfig
from memseq.probes import Subject
from memseq.probes.asking import Alphabet, Pairs, ask, read_on
from memseq.probes.retrieval_heads import RetrievalHeadsProbe
from memseq.recipes.machine import describe
from memseq.recipes.probe_subject import anatomy_of
from memseq.training.optim import AdamWConfig, clip_gradients

__all__ = ["alone", "claims", "lesson", "main", "run", "spearman"]

V, D, H, LAYERS = 96, 64, 4, 3
PAIRS, BETWEEN, ASKED, BATCH = 8, 24, 8, 32
TARGETS = {"score": 0.8, "lost": 0.5, "kept": 0.05, "order": 0.6}


def lesson(subject: Subject, alphabet: Alphabet, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """(tokens, targets): pairs, unrelated tokens, and keys with their values; the values are what is to be said."""
    pairs = Pairs.draw(alphabet, BATCH, PAIRS, generator)
    length = int(torch.randint(1, BETWEEN + 1, (1,), generator=generator))
    start = int(torch.randint(1 << 30, (1,), generator=generator))
    between = torch.stack([alphabet.filler(subject).text(length, start=start + row) for row in range(BATCH)])
    asked = pairs.some(ASKED, generator)
    questions = torch.stack([pairs.keys.gather(1, asked), alphabet.values[pairs.values.gather(1, asked)]], dim=2).flatten(1)
    tokens = torch.cat([pairs.tokens, between, questions], dim=1)
    targets = torch.full_like(tokens, -100)
    first = tokens.shape[1] - 2 * ASKED
    targets[:, first::2] = tokens[:, first + 1 :: 2]
    return tokens, targets


def run(*, seed: int = 0, steps: int = 2000, stop_at: float = 0.995, samples: int = 64) -> dict[str, Any]:
    """Train one model and probe it; seconds are of this process's processor time."""
    torch.manual_seed(seed)
    config = StackConfig(vocab_size=V, d_model=D, layers=LAYERS * (AttentionConfig(d_model=D, n_heads=H),))
    model = config.build()
    subject = Subject(name="attention", model=model, anatomy=anatomy_of(model))
    alphabet, optimizer = Alphabet.of(subject), AdamWConfig(lr=3e-3, weight_decay=0.01).build(model)
    generator, began, step, accuracy = torch.Generator().manual_seed(seed), time.process_time(), 0, 0.0
    for step in range(1, steps + 1):
        tokens, targets = lesson(subject, alphabet, generator)
        logits, _ = model(tokens, model.init_state(len(tokens)))
        optimizer.set_rate(min(1.0, step / 50))
        F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-100).backward()
        clip_gradients(optimizer.parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if step % 50 == 0:
            said, scored = logits.argmax(-1), targets != -100
            accuracy = float((said == targets)[scored].float().mean())
            if accuracy >= stop_at:
                break
    trained = time.process_time() - began
    probe = RetrievalHeadsProbe(samples=samples, load=PAIRS, distance=BETWEEN // 2, seed=seed)
    found = probe.run(subject)
    losses = alone(subject, alphabet, probe)
    scores = [head["score"] for head in found["heads"]]
    return {
        "seed": seed,
        "steps": step,
        "cpu_seconds": round(trained, 1),
        "parameters": sum(p.numel() for p in model.parameters()),
        "training_accuracy": round(accuracy, 4),
        **{
            name: found[name]
            for name in ("accuracy", "successes", "trials", "retrieval_heads", "silenced", "without_top", "without_others")
        },
        "scores": [round(s, 4) for s in scores],
        "lost_alone": [round(loss, 4) for loss in losses],
        "spearman": round(spearman(scores, losses), 4),
    }


@torch.no_grad()
def alone(subject: Subject, alphabet: Alphabet, probe: RetrievalHeadsProbe) -> list[float]:
    """What recall loses without each head by itself."""
    generator, rows = torch.Generator().manual_seed(1), 4 * probe.samples
    pairs = Pairs.draw(alphabet, rows, probe.load, generator)
    asked = pairs.some(1, generator)
    keys, values = pairs.keys.gather(1, asked), pairs.values.gather(1, asked)
    between = torch.stack([alphabet.filler(subject).text(probe.distance, start=row << 10) for row in range(rows)])
    shown = torch.cat([pairs.tokens, between], dim=1)
    attention = subject.anatomy.attention

    def accuracy(heads: Sequence[tuple[int, int]]) -> float:
        with attention.silenced(heads):
            return ask(subject.model, read_on(subject.model, shown, subject.model.init_state(rows)), keys, values, alphabet).accuracy

    whole = accuracy([])
    return [whole - accuracy([head]) for head in attention.heads]


def spearman(a: Sequence[float], b: Sequence[float]) -> float:
    """The correlation of ranks, equal values sharing the mean of theirs; 0 where one side does not vary.

    >>> spearman([1, 2, 3], [10, 20, 90])
    1.0
    """

    def ranks(values: Sequence[float]) -> Tensor:
        t = torch.tensor(values, dtype=torch.float64)
        return ((t[:, None] > t).sum(1) + (t[:, None] >= t).sum(1)).double() / 2

    x, y = (r - r.mean() for r in (ranks(a), ranks(b)))
    size = float(x.norm() * y.norm())
    return round(float(x @ y) / size, 12) if size else 0.0


def claims(rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """What was to be reached, and what the worst seed reached."""
    reached = {
        "score": min(max(row["scores"]) for row in rows),
        "lost": min(row["accuracy"] - row["without_top"] for row in rows),
        "kept": max(row["accuracy"] - sum(row["without_others"]) / len(row["without_others"]) for row in rows),
        "order": min(row["spearman"] for row in rows),
    }
    return {
        name: {
            "target": TARGETS[name],
            "reached": round(value, 4),
            "ok": value <= TARGETS[name] if name == "kept" else value >= TARGETS[name],
        }
        for name, value in reached.items()
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Heads of attention that retrieve, and recall without them.")
    parser.add_argument("--seeds", type=int, default=3, help="trainings (default 3)")
    parser.add_argument("--steps", type=int, default=2000, help="steps of each at most (default 2000)")
    parser.add_argument("--samples", type=int, default=64, help="a quarter of the trials of the probe (default 64)")
    parser.add_argument("--json", help="write the result to this file")
    given = parser.parse_args(arguments)
    rows: list[dict[str, Any]] = []
    for seed in range(given.seeds):
        rows.append(run(seed=seed, steps=given.steps, samples=given.samples))
        result = {"machine": describe(), "command": "python -m memseq.recipes.retrieval_heads", "rows": rows, "claims": claims(rows)}
        if given.json:  # after each row: a run that is cut keeps what it has
            Path(given.json).write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
