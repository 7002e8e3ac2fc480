"""A few heads of attention retrieve, and recall is lost without them: the claim of Retrieval Heads, small.

Source: Wu et al. (arXiv:2404.15574): in language models a few heads in a hundred look at what they are about to say; silencing them breaks
needle tests, and silencing as many others does not. Here a stack of full attention, four blocks of four heads, learns to say the value of a
key from the fact it has read, with noise in between (`recall_table.lesson`, where a fact is one token). Its heads are scored, and the
strongest are silenced, one more at a time, beside as many of the others (`probes/retrieval_heads.py`).

    python -m memseq.recipes.retrieval_heads --json results.json

    score       the strongest head looks at the fact in at least 0.8 of the right trials
    few         at most a third of the heads have a score of 0.1
    lost        without these, recall falls by at least 50 points
    kept        without as many others, it falls by at most 5
    order       a head's score and what recall loses without it alone rank alike: Spearman's correlation is at least 0.6
"""

import argparse
import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from memseq.memories.attention import AttentionConfig
from memseq.models.stack import StackConfig
from memseq.probes.asking import ask, read_on
from memseq.probes.retrieval_heads import head_scores, silence
from memseq.recipes.fitting import Table, fit, verdict, weights
from memseq.recipes.machine import keep_freed_memory
from memseq.recipes.probe_subject import anatomy_of
from memseq.recipes.recall_table import ALPHABET, BATCH, Facts, V, lesson, noise

__all__ = ["claims", "main", "run", "spearman"]

D, H, LAYERS = 64, 4, 4
LOAD, DISTANCE = 8, 16  # of the trials
THRESHOLD = 0.1  # the score of a retrieval head, as published
TARGETS = {"score": 0.8, "few": 1 / 3, "lost": 0.5, "kept": 0.05, "order": 0.6}
AT_MOST = ("few", "kept")


def run(*, seed: int = 0, steps: int = 500, trials: int = 256, draws: int = 4) -> dict[str, Any]:
    """Train one model, score its heads and silence them; seconds are of this process's processor time."""
    torch.manual_seed(seed)
    layer = AttentionConfig(d_model=D, n_heads=H)
    model, generator = (
        StackConfig(vocab_size=V, d_model=D, layers=LAYERS * (layer,), ff_mult=1.0).build(),
        torch.Generator().manual_seed(seed),
    )

    def loss(step: int) -> Tensor:
        tokens, targets = lesson(step / steps, generator)
        total, count, _ = model.loss(tokens, targets, model.init_state(BATCH))
        return total / count

    trained = fit(model, loss, steps=steps, lr=5e-3)
    began = time.process_time()
    return {
        "name": "attention",
        "seed": seed,
        "steps": steps,
        "cpu_seconds": round(trained, 1),
        "parameters": weights(model),
        **measured(model, trials=trials, draws=draws, generator=generator),
        "cpu_seconds_of_the_probe": round(time.process_time() - began, 1),
    }


@torch.no_grad()
def measured(model: Any, *, trials: int, draws: int, generator: torch.Generator) -> dict[str, Any]:
    """The score of every head, what is lost without each by itself, and without more and more of the strongest."""
    attention, facts = anatomy_of(model).attention, Facts.draw(trials, LOAD, generator)
    places = torch.randint(LOAD, (trials, 1), generator=generator)
    keys, values = ALPHABET.keys[facts.keys.gather(1, places)], facts.values.gather(1, places)
    shown = torch.cat([facts.tokens, noise(trials, DISTANCE, generator)], dim=1)

    def answers() -> Any:
        return ask(model, read_on(model, shown, model.init_state(trials)), keys, values, ALPHABET)

    whole = answers()
    score, _ = head_scores(attention.weights(torch.cat([shown, keys], dim=1)).float(), places[:, 0], whole.right[:, 0])
    order = score.argsort(descending=True, stable=True).tolist()
    found, alone = int((score >= THRESHOLD).sum()), []
    for head in attention.heads:
        with attention.silenced([head]):
            alone.append(round(whole.accuracy - answers().accuracy, 4))
    silenced = []
    for count in range(1, max(1, min(found, len(order) // 2)) + 1):
        top, others = silence(attention, order, count, lambda: answers().accuracy, draws=draws, generator=generator)
        silenced.append({"heads": count, "without_top": round(top, 4), "without_others": [round(share, 4) for share in others]})
    return {
        "accuracy": round(whole.accuracy, 4),
        "trials": trials,
        "retrieval_heads": found,
        "scores": [round(value, 4) for value in score.tolist()],
        "lost_alone": alone,
        "spearman": round(spearman(score.tolist(), alone), 4),
        "silenced": silenced,
    }


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
    last = [row["silenced"][-1] for row in rows]
    reached = {
        "score": min(max(row["scores"]) for row in rows),
        "few": max(row["retrieval_heads"] / len(row["scores"]) for row in rows),
        "lost": min(row["accuracy"] - end["without_top"] for row, end in zip(rows, last, strict=True)),
        "kept": max(row["accuracy"] - sum(end["without_others"]) / len(end["without_others"]) for row, end in zip(rows, last, strict=True)),
        "order": min(row["spearman"] for row in rows),
    }
    return {name: verdict(TARGETS[name], value, at_most=name in AT_MOST) for name, value in reached.items()}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Heads of attention that retrieve, and recall without them.")
    parser.add_argument("--seeds", type=int, default=3, help="trainings (default 3)")
    parser.add_argument("--steps", type=int, default=500, help="steps of each (default 500; about 10 seconds)")
    parser.add_argument("--trials", type=int, default=256, help="questions of the probe (default 256)")
    parser.add_argument("--json", help="write the rows to this file, each as it is measured; what it holds is not repeated")
    given = parser.parse_args(arguments)
    keep_freed_memory()
    table = Table("python -m memseq.recipes.retrieval_heads", given.json, claims=claims)
    done = {row["seed"] for row in table.rows}
    for seed in range(given.seeds):
        if seed not in done:
            table.add(**run(seed=seed, steps=given.steps, trials=given.trials))


if __name__ == "__main__":
    main()
