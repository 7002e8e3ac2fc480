"""What came first? Asked with the text in the context and without: a small model that learned such questions, and a pretrained one.

Source: SORT (Pink et al., arXiv:2410.08133): with the excerpt in their context models tell the order of two pieces of it, without it
they guess.

    learned       `OrderTask`: an excerpt of n distinct tokens, then 8 pairs of them, which came first; two blocks, each a short gated
                  convolution and attention, learn it, n = 5, 8 and 12 in turn. Asked with the excerpt and with a mark in place of each
                  of its tokens; full attention, attention to the last 4 tokens, which sees some of it at the first questions, and
                  memories of constant size in its place, at as many weights and seconds
    likelihood    what the probe asks (`probes/order.py`), learned: the same attention learns texts of a line of letters and then lines of
                  one letter, two of that line in their order. Right where the true order of a pair is the likelier one
    pretrained    stories260K (a Llama of 260,032 parameters) as it is, on held-out novels: the probe, after reading the excerpt and after
                  nothing

    python -m memseq.recipes.sort path/to/data --json results.json

The folder holds `models/stories260K` and `books`; without it only the learned part is run. stories260K reads 512 tokens: excerpts are
of 100 words, pieces of 10.
"""

import argparse
import itertools
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor

from memseq.memories.attention import AttentionConfig
from memseq.memories.base_conv import BaseConvConfig
from memseq.memories.gated_deltanet import GatedDeltaNetConfig
from memseq.memories.mamba2 import Mamba2Config
from memseq.memories.memformer import MemformerConfig
from memseq.memories.segment_attention import SegmentAttentionConfig
from memseq.memories.sliding_window import SlidingWindowConfig
from memseq.models.stack import StackConfig
from memseq.probes.order import OrderProbe, order_scores
from memseq.probes.probe import Subject
from memseq.probes.scoring import Scorer
from memseq.recipes.fitting import Table, as_wide, fit_within, verdict, weights, weights_of
from memseq.recipes.machine import keep_freed_memory
from memseq.state import state_bytes
from memseq.tasks.order import OrderQuestion, OrderTask
from memseq.tasks.task import choose_distinct
from memseq.tasks.tokenizers import Bytes

__all__ = ["asked", "claims", "contenders", "learned", "main", "pretrained"]

D, BATCH = 64, 64
STAGES = ((0.15, 5), (0.35, 8), (1.0, 12))  # until this share of the time: tokens of an excerpt
READ = STAGES[-1][1]
LIKELIHOOD = "attention, by likelihood"
LETTERS = torch.tensor(list(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"))
QUESTIONS = 256  # excerpts asked about
TARGETS = {"learned, with": 0.98, "learned, without": 0.52, "likelihood, with": 0.98}


def contenders() -> dict[str, tuple[Any, ...]]:
    """The memories of the two blocks, beside their convolutions. Slots are written when the longest excerpt ends, from what attention to
    the open segment, which begins anew there, has made of it: later questions see the excerpt through slots alone."""
    near = SegmentAttentionConfig(d_model=D, n_heads=4, segment_length=READ + 1)
    return {
        "attention": 2 * (AttentionConfig(d_model=D, n_heads=4),),
        "window of 4": 2 * (SlidingWindowConfig(d_model=D, n_heads=4, window=4),),
        "gated_deltanet": 2 * (GatedDeltaNetConfig(d_model=D, n_heads=4),),
        "mamba2": 2 * (Mamba2Config(d_model=D, head_size=16, state_size=32),),
        "memformer": (near, MemformerConfig(d_model=D, n_heads=4, segment_length=READ + 1, n_slots=16)),
    }


def config_of(name: str) -> Any:
    """Two blocks of a contender, with as many weights as those of attention: what a memory leaves over, the feedforward gets."""

    def made(name: str) -> Any:
        layers = tuple((BaseConvConfig(d_model=D, width=4), memory) for memory in contenders()[name])
        return StackConfig(vocab_size=OrderTask().vocab_size, d_model=D, layers=layers, ff_mult=2.0)

    return made(name) if name == "attention" else as_wide(made(name), weights_of(made("attention")))


def learned(name: str, *, seconds: float, seed: int = 0) -> dict[str, Any]:
    """Train on growing excerpts, and ask with them and without; seconds are of this process's processor time."""
    torch.manual_seed(seed)
    model: Any = config_of(name).build()
    drawn = 0

    def loss(share: float) -> Tensor:
        nonlocal drawn
        drawn += 1
        batch = OrderTask(n_read=_size(share)).sample(BATCH, seed=drawn + 1_000_000 * seed)
        total, count, _ = model.loss(batch.inputs, batch.labels, model.init_state(BATCH))
        return total / count

    steps, spent = fit_within(model, loss, seconds=seconds, lr=3e-3)
    facts = {"steps": steps, "cpu_seconds": round(spent, 1), "parameters": weights(model), "n_read": READ}
    held = state_bytes(model.advance(OrderTask(n_read=READ).sample(1, seed=0).inputs, model.init_state(1)))
    return {"part": "learned", "name": name, "seed": seed, **asked(model), **facts, "state_bytes": held}


@torch.no_grad()
def asked(model: Any) -> dict[str, Any]:
    """Right answers with the excerpt shown and not, of shorter ones too, and by distance: near (1 to 3 apart), middle, far (8 and more)."""
    found: dict[str, Any] = {"questions": QUESTIONS * OrderTask().n_asked, "by_length": {}}
    for _, n in STAGES[:-1]:
        batch = OrderTask(n_read=n).sample(QUESTIONS, seed=0, split="test")
        said = model(batch.inputs, model.init_state(QUESTIONS))[0]
        found["by_length"][str(n)] = round(OrderTask(n_read=n).metric(said, batch)["accuracy"], 4)
    for what, shown in (("read", True), ("unread", False)):
        task = OrderTask(n_read=READ, shown=shown)
        batch = task.sample(QUESTIONS, seed=0, split="test")
        said = model(batch.inputs, model.init_state(QUESTIONS))[0]
        found[what] = round(task.metric(said, batch)["accuracy"], 4)
        if shown:
            right, apart = said.argmax(-1) == batch.labels, batch.slices["distance"]
            bands = {"1 to 3": (1, 3), "4 to 7": (4, 7), "8 to 11": (8, 11)}
            found["by_distance"] = {
                name: round(float(right[(apart >= low) & (apart <= high)].float().mean()), 4) for name, (low, high) in bands.items()
            }
    return found


def lines(n: int, rows: int, pairs: int, generator: torch.Generator) -> tuple[Int64[Tensor, "rows n"], Int64[Tensor, "rows pairs 2"]]:
    """Letters of each excerpt, and places of pairs in it, the earlier first."""
    letters = LETTERS[choose_distinct(rows, n, len(LETTERS), generator)]
    places = choose_distinct(rows * pairs, 2, n, generator).sort(1).values
    return letters, places.view(rows, pairs, 2)


def written(letters: Tensor, places: Tensor) -> tuple[Int64[Tensor, "rows T"], Int64[Tensor, "rows T"]]:
    """(bytes, targets): the letters with spaces between, then each pair as the probe writes it; letters of pairs are predicted."""
    rows, n = letters.shape
    text = torch.full((rows, 2 * n - 1), ord(" "))
    text[:, ::2] = letters
    asked = torch.full((rows, places.shape[1], 5), ord("\n"))
    asked[..., 1::2] = letters.gather(1, places.flatten(1)).view_as(places)
    tokens = torch.cat([text, asked.flatten(1)], dim=1)
    following = tokens[:, 1:].clone()
    following[:, : 2 * n - 1] = -100
    return tokens[:, :-1], torch.where(following == ord("\n"), -100, following)


def likelihood(name: str = LIKELIHOOD, *, seconds: float, seed: int = 0) -> dict[str, Any]:
    """Train on lines of letters, and ask as the probe does; seconds are of this process's processor time."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    model: Any = replace(config_of("attention"), vocab_size=256).build()

    def loss(share: float) -> Tensor:
        tokens, targets = written(*lines(_size(share), BATCH // 2, 8, generator))
        total, count, _ = model.loss(tokens, targets, model.init_state(len(tokens)))
        return total / count

    steps, spent = fit_within(model, loss, seconds=seconds, lr=3e-3)
    letters, places = lines(READ, QUESTIONS, 1, torch.Generator().manual_seed(1000))
    questions = []
    for row, (a, b) in zip(letters.tolist(), places[:, 0].tolist(), strict=True):
        words = tuple(map(chr, row))
        questions.append(OrderQuestion(words, 0, words[a : a + 1], words[b : b + 1], a, b, READ, True))
    found = {}
    for what, context in (("read", True), ("unread", False)):
        scores = torch.tensor(order_scores(Scorer(model, Bytes()), questions, context=context))
        found[what] = round(float((scores > 0).float().mean()), 4)
    facts = {"questions": QUESTIONS, "steps": steps, "cpu_seconds": round(spent, 1), "parameters": weights(model), "n_read": READ}
    return {"part": "learned", "name": name, "seed": seed, **found, **facts}


def _size(share: float) -> int:
    """Tokens of an excerpt when so much of the time is spent."""
    return next((n for until, n in STAGES if share < until), READ)


def pretrained(data: Path, *, excerpts: int, excerpt_length: int = 100, segment_length: int = 10, seed: int = 0) -> dict[str, Any]:
    """The probe of order on stories260K and novels."""
    from memseq.retrofit import load_llama2c
    from memseq.retrofit.hub import HubModel
    from memseq.tasks.llama2c import read_llama2c_tokenizer
    from memseq.tasks.text import books

    folder, began = data / "models" / "stories260K", time.process_time()
    tokenizer, model = read_llama2c_tokenizer(folder / "tok512.bin"), HubModel(load_llama2c(folder / "stories260K.bin"))
    text = books(data / "books", "test", tokenizer)
    # a chunk of each book, the one behind its front matter where there is one
    documents = tuple([ids for _, ids in itertools.islice(text.chunks(n), 2)][-1] for n in range(len(text)))
    subject = Subject(name="stories260K", model=model, tokenizer=tokenizer, documents=documents, longest=model.longest)
    probe = OrderProbe(samples=excerpts, excerpt_length=excerpt_length, segment_length=segment_length, seed=seed)
    result = probe.run(subject)
    told = {key: value for key, value in result.items() if key != "says"}
    return {"part": "pretrained", "name": "stories260K", "seed": seed, **told, "cpu_seconds": round(time.process_time() - began, 1)}


def claims(rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """What the worst seed reached."""
    told: dict[str, dict[str, Any]] = {}
    full = [row for row in rows if row["part"] == "learned" and row["name"] == "attention"]
    if full:
        told["learned, with"] = verdict(TARGETS["learned, with"], min(row["read"] for row in full))
        without = max(row["unread"] for row in rows if row["part"] == "learned")
        told["learned, without"] = verdict(TARGETS["learned, without"], without, at_most=True)
    told_by_likelihood = [row["read"] for row in rows if row["name"] == LIKELIHOOD]
    if told_by_likelihood:
        told["likelihood, with"] = verdict(TARGETS["likelihood, with"], min(told_by_likelihood))
    for row in rows:
        if row["part"] == "pretrained":  # two standard errors above nothing
            told["pretrained"] = verdict(2 * row["gain_error"], row["gain"])
    return told


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Which of two pieces of a text came first, with the text read and not.")
    parser.add_argument("data", type=Path, nargs="?", help="a folder that holds models/stories260K and books")
    names = [*contenders(), LIKELIHOOD]
    parser.add_argument("--names", nargs="+", choices=names, default=names, help="rows to learn (default: all)")
    parser.add_argument("--seeds", type=int, default=2, help="trainings of each (default 2)")
    parser.add_argument("--first-seed", type=int, default=0, help="of them (default 0)")
    parser.add_argument("--seconds", type=float, default=60.0, help="of each training (default 60)")
    parser.add_argument("--excerpts", type=int, default=96, help="of novels, with four questions each (default 96)")
    parser.add_argument("--json", help="write the rows to this file, each as it is measured; what it holds is not repeated")
    given = parser.parse_args(arguments)
    keep_freed_memory()
    table = Table("python -m memseq.recipes.sort path/to/data", given.json, claims=claims)
    done = {(row["name"], row["seed"]) for row in table.rows}
    if given.data is not None and ("stories260K", 0) not in done:
        table.add(**pretrained(given.data, excerpts=given.excerpts))
    for seed in range(given.first_seed, given.first_seed + given.seeds):
        for name in given.names:
            if (name, seed) not in done:
                table.add(**(likelihood if name == LIKELIHOOD else learned)(name, seconds=given.seconds, seed=seed))


if __name__ == "__main__":
    main()
