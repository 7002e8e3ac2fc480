"""What Aaren claims, run: a stream costs the same at every token, and on series of numbers it is about as good as a Transformer.

Source: Attention as an RNN (Feng et al., arXiv:2405.13956). Every model here is two or three blocks around `aaren` or `attention`, equal in
width, depth and feedforward: an Aaren has one vector a layer more.

    python -m memseq.recipes.aaren --vowels data/japanesevowels --json results.json

    stream      a stream token by token: processor seconds so far and bytes held, beside a Transformer with its keys and values kept
    vowels      who speaks: Japanese Vowels, 270 utterances to learn from
    pairs       the limit: which value went with this key (MQAR). A query that is the same for all tokens cannot ask for one of them

Its forecasts of series are rows of `recipes/forecasting.py`.
"""

import argparse
import statistics
import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from memseq.memories.aaren import AarenConfig
from memseq.memories.attention import AttentionConfig
from memseq.memories.base_conv import BaseConvConfig
from memseq.models.stack import StackConfig
from memseq.recipes.fitting import Table, fit, weights
from memseq.recipes.forecasting import SeriesReader
from memseq.state import state_bytes
from memseq.tasks.mqar import MQARTask
from memseq.tasks.series import LabelledSeries, japanese_vowels

__all__ = ["main", "pairs", "stream", "vowels"]

MEMORIES = {"aaren": AarenConfig, "attention": AttentionConfig}


def language_model(name: str, *, d_model: int = 64, n_layers: int = 2) -> nn.Module:
    layers = n_layers * (MEMORIES[name](d_model=d_model, n_heads=4),)
    return StackConfig(vocab_size=256, d_model=d_model, layers=layers).build().eval()


# ---------------------------------------------------------------- what a stream costs


@torch.no_grad()
def stream(name: str, *, marks: Sequence[int] = (1024, 2048, 4096, 8192), seed: int = 0) -> dict[str, Any]:
    """Step through a stream, token by token: seconds so far, of the last thousand tokens, and bytes held, at each mark."""
    torch.manual_seed(seed)
    model = language_model(name)
    tokens = torch.randint(256, (max(marks), 1))
    model.step(tokens[0], model.init_state(1))  # the first call of anything is slow
    state, spent, seconds, late, held = model.init_state(1), 0.0, {}, {}, {}
    for i, token in enumerate(tokens, 1):
        began = time.process_time()
        state = model.step(token, state)[1]
        took = time.process_time() - began
        spent += took
        late.setdefault((i - 1) // 1000, []).append(took)
        if i in marks:
            seconds[str(i)], held[str(i)] = round(spent, 2), state_bytes(state)
    per_token = {str(1000 * (k + 1)): round(1e3 * statistics.median(times), 3) for k, times in late.items()}
    return {"parameters": weights(model), "cumulative_seconds": seconds, "bytes": held, "ms_per_token": per_token}


# ---------------------------------------------------------------- series of numbers


def vowels(name: str, train: LabelledSeries, test: LabelledSeries, *, steps: int = 540, d_model: int = 64, seed: int = 0) -> dict[str, Any]:
    """Accuracy on the test speakers. What lies behind an utterance's end is read and never asked: readers are causal."""
    torch.manual_seed(seed)
    longest = max(len(s) for s in (*train.series, *test.series))
    model = SeriesReader(MEMORIES[name](d_model=d_model, n_heads=4), channels=12, outputs=len(train.classes), context=longest, dropout=0.2)
    train, test = train.normalised(train), test.normalised(train)

    def answers(data: LabelledSeries, rows: Tensor) -> tuple[Tensor, Tensor]:
        batch = data.batch(rows)
        return model(batch.inputs)[torch.arange(len(rows)), batch.lengths - 1], batch.labels

    seconds = fit(
        model, lambda _: F.cross_entropy(*answers(train, torch.randperm(len(train))[:30])), steps=steps, lr=2e-3, weight_decay=0.01
    )
    with torch.no_grad():
        said, labels = answers(test, torch.arange(len(test)))
    accuracy = float((said.argmax(-1) == labels).float().mean())
    return {"accuracy": round(accuracy, 4), "parameters": weights(model), "steps": steps, "cpu_seconds": round(seconds, 1)}


# ---------------------------------------------------------------- the limit


def pairs(name: str, *, n_pairs: int = 8, steps: int = 1200, d_model: int = 64, seed: int = 0) -> dict[str, Any]:
    """MQAR: two blocks, each a short gated convolution, which puts a key beside its value, and the memory."""
    torch.manual_seed(seed)
    task = MQARTask(vocabulary=64, n_tokens=48, n_pairs=n_pairs)
    layer = (BaseConvConfig(d_model=d_model), MEMORIES[name](d_model=d_model, n_heads=2))
    model = StackConfig(vocab_size=task.vocab_size, d_model=d_model, layers=2 * (layer,), ff_mult=1.0).build()

    def loss(step: int) -> Tensor:
        batch = task.sample(32, seed=step + 1_000_000 * seed)
        total, count, _ = model.loss(batch.inputs, batch.labels, model.init_state(32))
        return total / count

    seconds = fit(model, loss, steps=steps, lr=3e-3)
    batch = task.sample(512, seed=seed, split="test")
    with torch.no_grad():
        accuracy = task.metric(model(batch.inputs, model.init_state(512))[0], batch)["accuracy"]
    return {
        "accuracy": round(accuracy, 4),
        "chance": round(task.chance, 4),
        "among_shown": task.among_shown,
        "parameters": weights(model),
        "steps": steps,
        "cpu_seconds": round(seconds, 1),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Aaren: what a stream costs, series of numbers, and the limit.")
    parser.add_argument("--only", default="stream,vowels,pairs", help="parts to run, in this order")
    parser.add_argument("--vowels", help="folder of JapaneseVowels_TRAIN.ts and _TEST.ts, packed or not; without it the part is left out")
    parser.add_argument("--seeds", type=int, default=3, help="trainings of each row (default 3)")
    parser.add_argument("--first-seed", type=int, default=0, help="of them (default 0)")
    parser.add_argument("--steps", type=int, help="of every training, in place of each part's own")
    parser.add_argument("--json", help="write the result to this file; rows of other parts that it holds stay")
    given = parser.parse_args(arguments)
    parts, steps = given.only.split(","), {} if given.steps is None else {"steps": given.steps}
    seeds = range(given.first_seed, given.first_seed + given.seeds)
    table = Table("python -m memseq.recipes.aaren --vowels FOLDER", given.json)
    if "stream" in parts:
        for name in MEMORIES:
            table.add(part="stream", name=name, **stream(name))
    if "vowels" in parts and given.vowels:
        data = japanese_vowels(given.vowels)
        for seed in seeds:
            for name in MEMORIES:
                table.add(part="vowels", name=name, seed=seed, **vowels(name, *data, seed=seed, **steps))
    if "pairs" in parts:
        for seed in seeds:
            for name in MEMORIES:
                table.add(part="pairs", name=name, seed=seed, **pairs(name, seed=seed, **steps))


if __name__ == "__main__":
    main()
