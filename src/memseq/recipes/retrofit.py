"""A memory around a pretrained model: what it costs inside a segment, and what it brings beyond it.

    python -m memseq.recipes.retrofit path/to/data --json results.json

The model is stories260K (a Llama of 260,032 parameters, trained on children's stories), the text is novels, which it never saw: the
folder holds `models/stories260K` and `books`. Three trainings of equal processor time, all weights learning, on the same documents of
about 12 segments, by memory replay over windows of 1 to 8 segments: the model alone, segment by segment; inside RMT; inside ARMT.
Then held-out novels:

    inside     perplexity of a text's first segment, where there is nothing to remember: what the memory costs
    beyond     perplexity of its second to last segment: what it brings
    cleared    the same with the state made anew at every segment: what of it is the memory's

And before any training, on a story that the model itself tells: what wrapping alone changes.
"""

import argparse
import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from memseq.recipes.machine import describe
from memseq.retrofit import load_llama2c, with_memory
from memseq.state import state_bytes
from memseq.tasks.llama2c import read_llama2c_tokenizer
from memseq.tasks.text import books
from memseq.training.cell import StreamCell
from memseq.training.curriculum import Curriculum
from memseq.training.lanes import Lanes
from memseq.training.optim import AdamWConfig, clip_gradients
from memseq.training.replay import replay_backward

__all__ = ["Contender", "claims", "contenders", "losses", "main", "run"]

L = 64
WINDOWS = Curriculum(stages=(1, 2, 4, 8), steps=40)
DOCUMENTS = 10_000
COST = 1.005  # of perplexity inside a segment, at most


@dataclass(frozen=True, kw_only=True)
class Contender:
    """One row: the system around the model, with its settings."""

    name: str
    system: str
    settings: dict[str, Any] = field(default_factory=dict)


def contenders() -> list[Contender]:
    """Every row of the table; the first is what the others are compared with."""
    return [
        Contender(name="alone", system="rmt", settings={"n_slots": 0}),
        Contender(name="rmt", system="rmt", settings={"n_slots": 8}),
        Contender(name="armt", system="armt", settings={"n_slots": 8, "key_size": 16}),
    ]


def wrapped(what: Contender, folder: Path) -> Any:
    torch.manual_seed(0)
    return with_memory(load_llama2c(folder / "stories260K.bin"), what.system, segment_length=L, **what.settings)


@torch.no_grad()
def losses(model: Any, texts: Tensor, *, cleared: bool = False) -> list[float]:
    """Nats a token of texts [B, S L + 1], segment by segment, in evaluation mode."""
    training, state, found = model.training, model.init_state(len(texts)), []
    model.eval()
    for at in range(0, texts.shape[1] - 1, L):
        loss, count, state = model.loss(texts[:, at : at + L], texts[:, at + 1 : at + L + 1], state)
        found.append(float(loss) / int(count))
        state = model.init_state(len(texts)) if cleared else state
    model.train(training)
    return found


def held_out(folder: Path, tokenizer: Any, rows: int, segments: int) -> Tensor:
    """Passages of the validation novels, from places all over them."""
    length, text, found = segments * L + 1, books(folder, "valid", tokenizer), []
    for document in range(len(text)):
        ids = np.concatenate([chunk for _, chunk in text.chunks(document)])
        share = rows // len(text) + (document < rows % len(text))
        starts = np.linspace(0, len(ids) - length, share).astype(int)
        found += [ids[start : start + length] for start in starts]
    return torch.from_numpy(np.stack(found).astype(np.int64))


def story(folder: Path, rows: int) -> Tensor:
    """Stories by the model itself, one a row: text of the kind it knows."""
    hub = load_llama2c(folder / "stories260K.bin")
    torch.manual_seed(0)
    begin = torch.ones(rows, 1, dtype=torch.int64)
    with torch.no_grad():
        return hub.generate(begin, max_new_tokens=2 * L, min_new_tokens=2 * L, do_sample=True, temperature=0.8, pad_token_id=0)


def run(what: Contender, data: Path, *, minutes: float, seed: int = 0, rows: int = 48, segments: int = 8) -> dict[str, Any]:
    """Train on novels and score held-out ones. Seconds are of this process's processor time."""
    folder = data / "models" / "stories260K"
    tokenizer, model = read_llama2c_tokenizer(folder / "tok512.bin"), wrapped(what, folder)
    before = losses(model, story(folder, 16))
    model.train()
    documents = books(data / "books", "train", tokenizer).at_least(DOCUMENTS)  # of about 12 segments: beginnings are learned too
    lanes = Lanes(documents, batch_size=8, segment_length=L, seed=seed)
    cell, optimizer = StreamCell(model), AdamWConfig(lr=1e-3, weight_decay=0.01).build(model)
    state, began, step, tokens = model.init_state(8), time.process_time(), 0, 0
    while (spent := (time.process_time() - began) / (60 * minutes)) < 1:
        window = [next(lanes) for _ in range(WINDOWS.n_segments(WINDOWS.at(step), seed))]
        count = sum(int((segment.targets != -100).sum()) for segment in window)
        optimizer.set_rate(min(1.0, (step + 1) / 20) * (0.1 + 0.45 * (1 + math.cos(math.pi * min(1.0, spent)))))
        state = replay_backward(cell, window, state, scale=1 / count).state
        clip_gradients(optimizer.parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        step, tokens = step + 1, tokens + count
    seconds = time.process_time() - began
    texts = held_out(data / "books", tokenizer, rows, segments)
    nats, without = losses(model, texts), losses(model, texts, cleared=True)
    return {
        "name": what.name,
        "seed": seed,
        "steps": step,
        "tokens": tokens,
        "cpu_seconds": round(seconds, 1),
        "parameters": sum(p.numel() for p in model.parameters()),
        "state_bytes": state_bytes(model.init_state(1)),
        "own_story_before_training": {"inside": _perplexity(before[:1]), "beyond": _perplexity(before[1:])},
        "inside": _perplexity(nats[:1]),
        "beyond": _perplexity(nats[1:]),
        "beyond_cleared": _perplexity(without[1:]),
        "nats_by_segment": [round(n, 4) for n in nats],
    }


def claims(rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Inside a segment at most half a per cent more perplexity than the model alone, beyond it less."""
    alone = {row["seed"]: row for row in rows if row["name"] == "alone"}
    found = {}
    for row in rows:
        if row["name"] != "alone" and row["seed"] in alone:
            inside, beyond = (round(row[place] / alone[row["seed"]][place], 4) for place in ("inside", "beyond"))
            ok = inside <= COST and beyond < 1
            found[f"{row['name']}, seed {row['seed']}"] = {
                "inside, of alone": inside,
                "beyond, of alone": beyond,
                "target inside": COST,
                "ok": ok,
            }
    return found


def _perplexity(nats: Sequence[float]) -> float:
    return round(math.exp(sum(nats) / len(nats)), 3)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="stories260K with a memory, on novels.")
    parser.add_argument("data", type=Path, help="a folder that holds models/stories260K and books")
    parser.add_argument("--minutes", type=float, default=1.2, help="of training, each, in processor time (default 1.2)")
    parser.add_argument("--seeds", type=int, default=1, help="trainings of each row (default 1)")
    parser.add_argument("--only", default=None, help="one row, by its name")
    parser.add_argument("--json", type=Path, help="write the result to this file; rows that it holds are kept")
    given = parser.parse_args(arguments)
    rows = json.loads(given.json.read_text())["rows"] if given.json and given.json.is_file() else []
    there = {(row["name"], row["seed"]) for row in rows}
    for seed in range(given.seeds):
        for what in contenders():
            if given.only not in (None, what.name) or (what.name, seed) in there:
                continue
            rows.append(run(what, given.data, minutes=given.minutes, seed=seed))
            print(json.dumps(rows[-1]), flush=True)  # noqa: T201 (rows appear as they are measured)
            if given.json:
                command = f"python -m memseq.recipes.retrofit DATA --minutes {given.minutes}"
                result = {"machine": describe(), "command": command, "segment_length": L, "rows": rows, "claims": claims(rows)}
                given.json.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(claims(rows), indent=1))  # noqa: T201


if __name__ == "__main__":
    main()
