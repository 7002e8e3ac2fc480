"""Recognition, recall and retention of texts that a small language model studied once, twice and three times.

Source: Orhan (arXiv:2303.17557), here with bytes, a small GRU and prose of Python's documentation; memory is in the weights.

    python -m memseq.recipes.few_shot_memory --json results.json

    before        a model that has read other prose: which text of each pair it finds likelier
    exposures     after each of three passes over the texts of a study set: recognition against each kind of foil, and of what follows the
                  first half, said greedily, ROUGE-2 on words and the share of bytes that are right
    retention     the model of three exposures reads other prose on: the same after 1, 10, 30, 100 steps, the optimiser begun anew

Texts are lines of their own, read from the start of a stream; a loss is the mean over a text's bytes but the first.
"""

import argparse
import random
import time
from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from memseq.memories.gru import GRUConfig
from memseq.models.stack import StackConfig
from memseq.recipes.fitting import Table, fit, weights
from memseq.streams import read_ragged_last
from memseq.tasks.prose import sentences_of
from memseq.tasks.study import Kind, Pair, recognised, rouge, study_pairs
from memseq.training.optim import AdamWConfig

__all__ = ["losses", "main", "recalled", "studied"]

D = 128
STUDIES: dict[str, tuple[Kind, ...]] = {"sentences": ("sentence", "word"), "words": ("words", "against"), "gibberish": ("gibberish",)}
SHORTEST, LONGEST = 50, 120  # bytes of a text
RETAINED = (1, 10, 30, 100)  # steps on other prose


def padded(texts: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Bytes [n, L] and what is to be predicted of them, -100 behind the end of each."""
    ids = [torch.tensor(list(text.encode())) for text in texts]
    inputs = torch.nn.utils.rnn.pad_sequence([i[:-1] for i in ids], batch_first=True)
    return inputs, torch.nn.utils.rnn.pad_sequence([i[1:] for i in ids], batch_first=True, padding_value=-100)


@torch.no_grad()
def losses(model: Any, texts: Sequence[str]) -> list[float]:
    """Nats a byte of each text; what stands behind the end of a shorter one is never looked at."""
    inputs, targets = padded(texts)
    logits, _ = model(inputs, model.init_state(len(texts)))
    each = F.cross_entropy(logits.mT, targets, reduction="none")
    return (each.sum(1) / (targets != -100).sum(1)).tolist()


@torch.no_grad()
def recalled(model: Any, texts: Sequence[str]) -> tuple[float, float]:
    """(ROUGE-2 of the words, share of right bytes) of what is said after the first half of each text, the likeliest byte at a time."""
    ids = [list(text.encode()) for text in texts]
    logits, state = read_ragged_last(model, [text[: len(text) // 2] for text in ids])
    said = [logits.argmax(-1)]
    for _ in range(max(map(len, ids)) // 2):  # all texts go on side by side; what is said beyond the end of one is not looked at
        logits, state = model.step(said[-1], state)
        said.append(logits.argmax(-1))
    runs, right = [], []
    for text, row in zip(ids, torch.stack(said, dim=1).tolist(), strict=True):
        wanted = text[len(text) // 2 :]
        row = row[: len(wanted)]
        runs.append(rouge(bytes(row).decode(errors="replace").split(), bytes(wanted).decode(errors="replace").split()))
        right.append(sum(a == b for a, b in zip(row, wanted, strict=True)) / len(wanted))
    return sum(runs) / len(runs), sum(right) / len(right)


def study(model: Any, texts: Sequence[str], *, batch_size: int, chance: random.Random, optimizer: Any) -> None:
    """One pass over texts in a new order, a row each."""
    model.train()
    order = chance.sample(list(texts), len(texts))
    for first in range(0, len(texts), batch_size):
        inputs, targets = padded(order[first : first + batch_size])
        total, count, _ = model.loss(inputs, targets, model.init_state(len(inputs)))
        (total / count).backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()


def asked(model: Any, kinds: Sequence[Kind], pairs: dict[Kind, list[Pair]]) -> dict[str, Any]:
    """Recognition by kind, and recall of what the kinds share."""
    told: dict[str, Any] = {"recognised": {}}
    for kind in kinds:
        seen, foil = (losses(model, [pair[side] for pair in pairs[kind]]) for side in (0, 1))
        told["recognised"][kind] = round(recognised(seen, foil), 4)
    runs, right = recalled(model, [pair.seen for pair in pairs[kinds[0]][:16]])
    return told | {"rouge2": round(runs, 4), "bytes_right": round(right, 4)}


def studied(model: Any, name: str, sentences: Sequence[str], other: Sequence[str], *, n: int, lr: float, seed: int) -> list[dict[str, Any]]:
    """Rows of one study set: before, after each exposure, and while other prose is read on. `model` stays as it is."""
    model, chance, kinds = deepcopy(model), random.Random(seed), STUDIES[name]
    pairs = {kind: study_pairs(kind, sentences, n, seed=seed) for kind in kinds}
    texts = [pair.seen for pair in pairs[kinds[0]]]
    found = [{"exposures": 0, "steps_since": 0, **asked(model, kinds, pairs)}]
    optimizer = AdamWConfig(lr=lr, weight_decay=0.0).build(model)
    for exposure in (1, 2, 3):
        study(model, texts, batch_size=4, chance=chance, optimizer=optimizer)
        found.append({"exposures": exposure, "steps_since": 0, **asked(model, kinds, pairs)})
    optimizer, step = AdamWConfig(lr=lr / 3, weight_decay=0.0).build(model), 0
    for until in RETAINED:
        while step < until:
            study(model, chance.sample(list(other), 16), batch_size=16, chance=chance, optimizer=optimizer)
            step += 1
        found.append({"exposures": 3, "steps_since": step, **asked(model, kinds, pairs)})
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Texts studied one to three times: recognised, recalled, forgotten.")
    parser.add_argument("--steps", type=int, default=400, help="of the training before (default 400)")
    parser.add_argument("--texts", type=int, default=32, help="of a study set (default 32)")
    parser.add_argument("--lr", type=float, default=3e-3, help="while studying (default 0.003)")
    parser.add_argument("--seeds", type=int, default=1, help="runs (default 1)")
    parser.add_argument("--json", help="write the result to this file; rows of other parts that it holds stay")
    given = parser.parse_args(arguments)
    table = Table("python -m memseq.recipes.few_shot_memory", given.json, source="arXiv:2303.17557")
    fitting = sorted({s for s in sentences_of() if SHORTEST <= len(s) <= LONGEST})
    for seed in range(given.seeds):
        torch.manual_seed(seed)
        drawn = random.Random(seed).sample(fitting, len(fitting))
        mine, other = drawn[: 2 * given.texts], drawn[2 * given.texts :]
        model = StackConfig(vocab_size=256, d_model=D, layers=(GRUConfig(d_model=D), GRUConfig(d_model=D))).build()
        chance = random.Random(seed)

        def loss(step: int, model: Any = model, other: list[str] = other, chance: random.Random = chance) -> Tensor:
            inputs, targets = padded(chance.sample(other, 32))
            total, count, _ = model.loss(inputs, targets, model.init_state(32))
            return total / count

        seconds = fit(model, loss, steps=given.steps, lr=4e-3)
        facts = {"weights": weights(model), "steps": given.steps, "texts": given.texts, "lr": given.lr, "seconds_before": round(seconds, 1)}
        for name in STUDIES:
            began = time.process_time()
            for row in studied(model, name, mine, other, n=given.texts, lr=given.lr, seed=seed):
                cpu = round(time.process_time() - began, 1)
                task = f"{row['exposures']} exposures, {row['steps_since']} steps since"
                table.add(part=name, name="gru", seed=seed, task=task, **row, **facts, cpu_seconds=cpu)


if __name__ == "__main__":
    main()
