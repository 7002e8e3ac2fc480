"""Questions about official papers and meetings, asked of a model that knows its language: stories260K with a memory and without.

Sources: HMT (He et al., arXiv:2405.06067), which is measured on both sets; PubMedQA (Jin et al., arXiv:1909.06146); QMSum (Zhong et al.,
arXiv:2104.05938). Files: `tasks/inquiries.py`. `recipes/long_answers.py` asks the same of models that begin with nothing.

    python -m memseq.recipes.answers pubmedqa path/to/data --file ori_pqal.json --json results.json
    python -m memseq.recipes.answers qmsum    path/to/data --file val.jsonl --json results.json

The model has read novels first (`recipes/retrofit.py`). A text is eight segments of 128 tokens, passages that the question is about among
others of the file, and one more segment: its first half ends with the question, its second begins with the answer. So HMT, which summarises
the first half, knows the question and not the answer. Trained on four fifths of the questions, each as often as any; scored are the others.

    alone       the model with the last segment and nothing before it: the question, and what answers look like
    rmt         8 vectors
    hmt         the last 16 vectors, one a segment, recalled by the question (`query="current"`, as published)

Learned are the answer and, so that passages are read as language too, the second half of every segment. Scored is the answer alone, by the
segments of text, in perplexity a token: `own` after its text, `another's` after that of another question. `right` is PubMedQA's decision.
"""

import argparse
import copy
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor
from torch.nn import functional as F

from memseq.recipes.fitting import Table, facts, fit
from memseq.recipes.long_answers import DECISIONS
from memseq.recipes.machine import keep_freed_memory
from memseq.recipes.retrofit import Contender, adapted, novels, wrapped
from memseq.state import select
from memseq.tasks import inquiries
from memseq.tasks.inquiries import Inquiry
from memseq.tasks.llama2c import read_llama2c_tokenizer
from memseq.tasks.task import IGNORE

__all__ = ["Asked", "Questions", "contenders", "main", "run", "scores"]

L, READ, BATCH = 128, 8, 4
ASKED = (4, 8, 16)  # segments of text


class Asked(NamedTuple):
    """Texts, and the segment that asks and answers; targets are the answer's, each at the token before it."""

    text: Int[Tensor, "B S"]
    last: Int[Tensor, "B L"]
    targets: Int[Tensor, "B L"]


@dataclass(frozen=True, eq=False)
class Questions:
    """What a file asks, as tokens."""

    held: Sequence[Inquiry]
    tokenizer: Any
    chain: bool  # contexts of other questions fill a text
    known: dict[str, list[int]] = field(default_factory=dict)  # passages come again and again

    def ids(self, text: str) -> list[int]:
        if text not in self.known:
            self.known[text] = self.tokenizer.encode(text.encode()).tolist()
        return self.known[text]

    @property
    def train(self) -> Sequence[Inquiry]:
        return self.held[: len(self.held) - len(self.test)]

    @property
    def test(self) -> Sequence[Inquiry]:
        return self.held[len(self.held) - max(1, len(self.held) // 5) :]

    def draw(self, asked: Sequence[Inquiry], of: Sequence[Inquiry], segments: int, chance: random.Random) -> Asked:
        """Each with its text, what it lacks in length before it from others of the same part of the file."""
        texts, lasts, targets, half = [], [], [], L // 2
        for one in asked:
            others = [other for other in chance.sample(list(of), min(len(of), 4)) if other.passages != one.passages]
            kept = inquiries.chained(one, others if self.chain else [], segments * L, lambda text: len(self.ids(text)), chance)
            question, answer = self.ids(one.question)[-half:], self.ids(f"{one.decision} {one.answer}".strip())[:half]
            text = self._joined(kept.passages)[-segments * L :]
            while len(text) + len(question) < segments * L + half:
                text = self._joined(chance.choice(of).passages) + text
            text = (text + question)[-segments * L - half :]
            texts.append(text[:-half])
            lasts.append(text[-half:] + answer + (half - len(answer)) * [0])
            targets.append((half - 1) * [IGNORE] + answer + (half + 1 - len(answer)) * [IGNORE])
        return Asked(*(torch.tensor(part) for part in (texts, lasts, targets)))

    def _joined(self, passages: Sequence[str]) -> list[int]:
        return [number for passage in passages for number in self.ids(passage)]


def contenders() -> list[Contender]:
    """Every row of the table."""
    settings: dict[str, dict[str, Any]] = {
        "alone": {"n_slots": 0},
        "rmt": {"n_slots": 8},
        "hmt": {"n_kept": 16, "n_sensory": 8, "query": "current"},
    }
    return [
        Contender(name=name, system="hmt" if name == "hmt" else "rmt", settings={**of, "segment_length": L}, rate=3.0)
        for name, of in settings.items()
    ]


@torch.no_grad()
def scores(model: Any, asked: Asked, decided: Sequence[int]) -> dict[str, float]:
    """Of the answers, in evaluation mode; `decided` are the first tokens of the decisions, where there are any."""
    rows = len(asked.text)
    state = model.eval().advance(asked.text, model.init_state(rows))
    found = {}
    for name, begun in (("own", state), ("another's", select(state, torch.arange(rows).roll(1)))):
        logits = model(asked.last, begun)[0]
        nats = F.cross_entropy(logits.flatten(0, 1), asked.targets.flatten(), ignore_index=IGNORE)
        found[name] = round(math.exp(float(nats)), 3)
        if decided and name == "own":
            first = L // 2 - 1
            said = torch.tensor(decided)[logits[:, first, list(decided)].argmax(-1)]
            found["right"] = round(float((said == asked.targets[:, first]).float().mean()), 4)
    return found


def run(what: Contender, hub: Any, questions: Questions, *, epochs: float, seed: int = 0) -> dict[str, Any]:
    """Train a row and ask it. Seconds are of this process's processor time."""
    model, chance, lr = wrapped(what, hub), random.Random(seed), 1e-3
    torch.manual_seed(seed)
    steps, left = max(1, round(epochs * len(questions.train) / BATCH)), []

    def loss(_: int) -> Tensor:
        nonlocal left
        if len(left) < BATCH:
            left = chance.sample(list(questions.train), len(questions.train))
        asked, left = questions.draw(left[:BATCH], questions.train, READ, chance), left[BATCH:]
        following = torch.cat([asked.text[:, 1:], asked.last[:, :1]], dim=1).unflatten(1, (-1, L)).clone()
        following[:, :, : L // 2 - 1] = IGNORE
        read, n_read, state = model.loss(asked.text, following.flatten(1), model.init_state(BATCH))
        said, n_said, _ = model.loss(asked.last, asked.targets, state)
        return read / n_read + said / n_said

    decided = [questions.ids(word)[0] for word in DECISIONS] if questions.test[0].decision else []
    tests = {n: questions.draw(questions.test, questions.test, n, random.Random(n)) for n in ASKED}
    before = scores(model, tests[READ], [])
    seconds = fit(model, loss, steps=steps, lr=lr, weight_decay=0.01)
    row = facts(model, name=what.name, seed=seed, steps=steps, lr=lr, seconds=seconds)
    found: dict[str, dict[str, float]] = {}
    for n, asked in tests.items():
        for metric, value in scores(model, asked, decided).items():
            found.setdefault(metric, {})[str(n)] = value
    answers = [one.decision for one in questions.test]
    likeliest = {"likeliest": round(max(map(answers.count, answers)) / len(answers), 4)} if decided else {}
    asked_of = {"trained_on": len(questions.train), "asked": len(questions.test)}
    return row | asked_of | {"untrained": before} | found | likeliest


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Questions about official papers and meetings, asked of stories260K with a memory.")
    parser.add_argument("kind", choices=("pubmedqa", "qmsum"), help="what is asked")
    parser.add_argument("data", type=Path, help="a folder that holds models/stories260K and books")
    parser.add_argument("--file", required=True, help="the official file")
    parser.add_argument("--epochs", type=float, default=1.5, help="times that every question of training is seen (default 1.5)")
    parser.add_argument("--adapt", type=int, default=1_200_000, help="tokens of novels for the model alone, first (default 1,200,000)")
    parser.add_argument("--adapted", type=Path, help="keep that model's weights in this file, or take them from it")
    parser.add_argument("--seeds", type=int, default=1, help="trainings of each row (default 1)")
    parser.add_argument("--only", action="append", help="a row, by its name; may be given again (default: all)")
    parser.add_argument("--json", help="write the result to this file; rows that it holds are kept")
    given = parser.parse_args(arguments)
    keep_freed_memory()
    tokenizer = read_llama2c_tokenizer(given.data / "models" / "stories260K" / "tok512.bin")
    read = inquiries.read_pubmedqa if given.kind == "pubmedqa" else inquiries.read_qmsum
    questions = Questions(read(given.file), tokenizer, chain=given.kind == "pubmedqa")
    there_already = given.adapted is not None and given.adapted.is_file()
    train = [] if there_already else novels(given.data, rows=1, segments=1).train
    hub = adapted(given.data, train, given.adapt, given.adapted)
    command = f"python -m memseq.recipes.answers KIND DATA --file FILE --epochs {given.epochs:g} --adapt {given.adapt}"
    table = Table(command, given.json, segment_length=L)
    there = {(row["task"], row["name"], row["seed"]) for row in table.rows}
    for seed in range(given.seeds):
        for what in contenders():
            if (given.only is None or what.name in given.only) and (given.kind, what.name, seed) not in there:
                table.add(task=given.kind, **run(what, copy.deepcopy(hub), questions, epochs=given.epochs, seed=seed))


if __name__ == "__main__":
    main()
