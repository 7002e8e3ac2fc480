"""A memory around a pretrained model: what it costs inside a segment, and what it brings beyond it.

    python -m memseq.recipes.retrofit path/to/data --json results.json

The model is stories260K (a Llama of 260,032 parameters, trained on children's stories), the text is novels; the folder holds
`models/stories260K` and `books`. First the model alone learns novels, at a context of 256 tokens: it is then a model of the text that
somebody has. Around it each row puts a system that reads segments of 64 tokens, and trains further, every row on the same windows of
the same documents: the model alone and segment by segment (what is compared with), RMT, ARMT and HMT; all weights, the memory's alone, or
the memory and LoRA. On held-out novels then, in perplexity a token:

    inside      every segment with a fresh state: there is nothing to remember, and this is what the memory costs
    beyond      from the second segment of a passage on, with the state carried: what it brings
    another's   the same with the state of another passage: what the vectors are worth that remember nothing of this one (HMT, which reads
                the last tokens again, keeps its own tokens)
    context     the model alone without a memory, by the tokens it sees: what there is to be had

The same before that training says what wrapping alone changes. ARMT's rows say by layer how long what the matrices add is beside what it is
added to, and what queries meet. Rows that the file holds already are kept.
"""

import argparse
import copy
import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Int64
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

from memseq.models.hmt import HMTState
from memseq.ops.associative import dpfp
from memseq.recipes.fitting import Table, fit
from memseq.recipes.machine import keep_freed_memory
from memseq.state import detach, select, state_bytes
from memseq.tasks.llama2c import read_llama2c_tokenizer
from memseq.tasks.text import books
from memseq.training.cell import StreamCell
from memseq.training.curriculum import Curriculum
from memseq.training.lanes import Lanes, TokenDocuments
from memseq.training.optim import AdamWConfig, clip_gradients
from memseq.training.replay import replay_backward

__all__ = ["Contender", "Novels", "Scores", "claims", "contenders", "main", "run", "scores"]

L, CONTEXT = 64, 256
PLACES = 8  # parts of a segment, by which losses are told
DOCUMENT = 12  # segments of a document: beginnings are learned too
BATCH = 16
LORA = {"r": 8, "lora_alpha": 16, "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "down_proj"]}
COST = 1.005  # of perplexity inside a segment, at most
ALONE = "alone"


@dataclass(frozen=True, kw_only=True)
class Contender:
    """One row: the system around the model, and what of it learns: "all", "memory" or "lora"."""

    name: str
    system: str
    settings: dict[str, Any] = field(default_factory=dict)
    learns: str = "all"
    rate: float = 1.0  # of the memory's own weights, times that of the model's


class Novels(NamedTuple):
    """The text as tokens of stories260K."""

    train: list[np.ndarray]  # a book each
    passages: Int64[Tensor, "B S"]  # of held-out books, from places all over them


class Scores(NamedTuple):
    """Perplexities a token."""

    inside: float
    beyond: float
    anothers: float
    nats_by_segment: list[float]
    nats_by_place: list[float]  # beyond, by the place in the segment: its first eighth, its second, ...


def contenders() -> list[Contender]:
    """Every row of the table; the first is what the others are compared with."""

    def rmt(name: str, learns: str = "all", begin: str = "nothing") -> Contender:
        return Contender(name=name, system="rmt", settings={"n_slots": 8, "begin": begin}, learns=learns, rate=3.0)

    def armt(name: str, learns: str = "all", rate: float = 3.0, **settings: Any) -> Contender:
        return Contender(name=name, system="armt", settings={"n_slots": 8, "key_size": 16, **settings}, learns=learns, rate=rate)

    def hmt(name: str, learns: str = "all", n_sensory: int = 8) -> Contender:
        return Contender(name=name, system="hmt", settings={"n_kept": 16, "n_sensory": n_sensory}, learns=learns, rate=3.0)

    return [
        Contender(name=ALONE, system="rmt", settings={"n_slots": 0}),
        rmt("rmt"),
        rmt("rmt, begins with learned vectors", begin="learned"),
        rmt("rmt, memory alone", "memory"),
        rmt("rmt, memory and LoRA", "lora"),
        armt("armt"),
        armt("armt, the published epsilon", epsilon=1e-5),
        armt("armt, epsilon 0.05", epsilon=0.05),
        armt("armt, ten times the rate", rate=30.0),
        armt("armt, memory alone", "memory"),
        armt("armt, memory and LoRA", "lora"),
        hmt("hmt"),
        hmt("hmt, reads no tokens again", n_sensory=0),
        hmt("hmt, memory alone", "memory"),
    ]


def novels(data: Path, *, rows: int, segments: int) -> Novels:
    tokenizer, length = read_llama2c_tokenizer(data / "models" / "stories260K" / "tok512.bin"), segments * L + 1

    def read(split: str) -> list[np.ndarray]:
        text = books(data / "books", split, tokenizer)
        return [np.concatenate([ids for _, ids in text.chunks(document)]).astype(np.int64) for document in range(len(text))]

    held, found = read("valid"), []
    for number, ids in enumerate(held):
        share = rows // len(held) + (number < rows % len(held))
        found += [ids[start : start + length] for start in np.linspace(0, len(ids) - length, share).astype(int)]
    return Novels(read("train"), torch.from_numpy(np.stack(found)))


def adapted(data: Path, train: Sequence[np.ndarray], tokens: int, keep: Path | None) -> Any:
    """stories260K after `tokens` tokens of novels; the weights are kept in, and taken from, the file `keep` where one is named."""
    from memseq.retrofit import load_llama2c, with_memory  # loads transformers

    torch.manual_seed(0)
    hub = load_llama2c(data / "models" / "stories260K" / "stories260K.bin")
    if keep is not None and keep.is_file():
        hub.load_state_dict(load_file(keep), strict=False)  # the head is the embedding, which is stored once
        return hub
    model, text, chance = with_memory(hub, "rmt", n_slots=0, segment_length=CONTEXT), np.concatenate(train), np.random.default_rng(0)

    def loss(_: int) -> Tensor:
        places = chance.integers(len(text) - CONTEXT - 1, size=BATCH)
        ids = torch.from_numpy(np.stack([text[at : at + CONTEXT + 1] for at in places]))
        nats, count, _ = model.loss(ids[:, :-1], ids[:, 1:], model.init_state(BATCH))
        return nats / int(count)

    fit(model, loss, steps=max(1, tokens // (BATCH * CONTEXT)), lr=2e-3, weight_decay=0.01)
    if keep is not None:
        save_file({name: p.detach() for name, p in hub.named_parameters()}, keep)
    return hub


def wrapped(what: Contender, hub: Any) -> Any:
    """The row's model, with what learns set; the memory's own weights learn faster."""
    from memseq.retrofit import add_lora, freeze_backbone, with_memory  # loads transformers

    torch.manual_seed(0)
    model: Any = with_memory(hub, what.system, **{"segment_length": L, **what.settings})
    if what.learns == "memory":
        freeze_backbone(model)
    elif what.learns == "lora":
        add_lora(model, LORA)
    for name, p in model.named_parameters():
        if not name.startswith("backbone."):
            p.lr_scale = what.rate
    return model


def parts_of(model: Any) -> list[list[Tensor]]:
    """What learns of the model itself, and of the memory."""
    learns = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    return [[p for name, p in learns if name.startswith("backbone.") == own] for own in (True, False)]


@torch.no_grad()
def scores(model: Any, texts: Int64[Tensor, "B S"]) -> Scores:
    """Of passages of whole segments and one token more, in evaluation mode."""
    rows, training = len(texts), model.training
    state, others = model.init_state(rows), torch.arange(rows).roll(rows // 2)
    nats: dict[str, list[Tensor]] = {"own": [], "fresh": [], "another's": []}
    model.eval()
    for at in range(0, texts.shape[1] - 1, L):
        tokens, targets = texts[:, at : at + L], texts[:, at + 1 : at + L + 1]
        for name, begun in (("fresh", model.init_state(rows)), ("another's", _of_others(state, others)), ("own", state)):
            logits, after = model(tokens, begun)
            nats[name].append(F.cross_entropy(logits.mT, targets, reduction="none").mean(0))
        state = detach(after)
    model.train(training)
    fresh, own, anothers = (torch.stack(of) for of in (nats["fresh"], nats["own"], nats["another's"]))
    return Scores(
        *(round(math.exp(float(of.mean())), 3) for of in (fresh, own[1:], anothers[1:])),
        nats_by_segment=[round(float(n), 4) for n in own.mean(1)],
        nats_by_place=[round(float(n), 4) for n in own[1:].mean(0).unflatten(0, (PLACES, -1)).mean(1)],
    )


def _of_others(state: Any, others: Tensor) -> Any:
    """What other passages left; HMT's last tokens are text that is read, and stay."""
    given = select(state, others)
    return given._replace(sensory=state.sensory) if isinstance(state, HMTState) else given


class Reads:
    """Comes along with a reading of ARMT and notes what its matrices add to the residual stream, and what queries meet: q^T z, by layer."""

    def __init__(self, model: Any, state: Any) -> None:
        self.model, self.state = model, state
        self.added: list[float] = []  # of the length of what they are added to
        self.met: list[float] = []

    def before(self, layer: int, x: Tensor) -> Tensor:
        association, z = self.model.associations[layer], self.state.norms[:, layer]
        read = association.read(x, self.state.matrices[:, layer], z)
        self.added.append(_short(((read - x).norm(dim=-1) / x.norm(dim=-1)).mean()))
        self.met.append(_short((dpfp(association.query(x), association.nu) @ z[..., None]).mean()))
        return read

    def after(self, layer: int, x: Tensor) -> None:
        """The matrices stay as they are."""


def _short(number: Tensor) -> float:
    return float(f"{float(number):.3g}")


@torch.no_grad()
def reads(model: Any, texts: Int64[Tensor, "B S"]) -> dict[str, list[float]]:
    """Of ARMT, in the last segment of passages."""
    last = texts.shape[1] - 1 - L
    look = Reads(model, model.eval().advance(texts[:, :last], model.init_state(len(texts))))
    model.backbone.read(model.backbone.embed(texts[:, last:-1]), None, visitor=look)
    return {"added": look.added, "met": look.met}


@torch.no_grad()
def by_context(hub: Any, texts: Int64[Tensor, "B S"]) -> dict[str, float]:
    """Perplexity of the second half of passages, by the tokens that the model alone sees before each: so many, and up to L more."""
    from memseq.retrofit import with_memory  # loads transformers

    found, half = {}, (texts.shape[1] - 1) // 2
    for before in (0, 8, L, half):
        model: Any = with_memory(hub, "rmt", n_slots=0, segment_length=before + L).eval()
        total, n = 0.0, 0
        for at in range(half, texts.shape[1] - 1, L):
            targets = texts[:, at - before + 1 : at + L + 1].clone()
            targets[:, :before] = -100
            loss, count, _ = model.loss(texts[:, at - before : at + L], targets, model.init_state(len(texts)))
            total, n = total + float(loss), n + int(count)
        found[str(before)] = round(math.exp(total / n), 3)
    return found


def run(what: Contender, hub: Any, text: Novels, *, steps: int, seed: int = 0) -> dict[str, Any]:
    """Train on novels and score held-out ones. Seconds are of this process's processor time."""
    model, before = wrapped(what, hub), None
    if seed == 0:
        before = scores(model, text.passages)
    torch.manual_seed(seed)
    model.train()
    length = DOCUMENT * L + 1
    parts = [ids[at : at + length] for ids in text.train for at in range(0, len(ids) - length, length)]
    lanes = Lanes(TokenDocuments(parts), batch_size=BATCH, segment_length=L, seed=seed)
    windows = Curriculum(stages=(2, 4, 8), steps=max(1, steps // 4))
    cell, optimizer = StreamCell(model), AdamWConfig(lr=1e-3, weight_decay=0.01).build(model)
    state, tokens, began = model.init_state(BATCH), 0, time.process_time()
    for step in range(steps):
        window = [next(lanes) for _ in range(windows.n_segments(windows.at(step), seed))]
        count = sum(int((segment.targets != -100).sum()) for segment in window)
        optimizer.set_rate(min(1.0, (step + 1) / 20) * (0.05 + 0.475 * (1 + math.cos(math.pi * step / steps))))
        state = replay_backward(cell, window, state, scale=1 / count).state
        for part in parts_of(model):  # apart: a new ARMT's gradients are a hundred times the model's, which would stand still
            clip_gradients(part, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        tokens += count
    seconds, after = time.process_time() - began, scores(model, text.passages)
    return {
        "name": what.name,
        "seed": seed,
        "learns": what.learns,
        "steps": steps,
        "tokens": tokens,
        "cpu_seconds": round(seconds, 1),
        "learned_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "added_parameters": sum(p.numel() for name, p in model.named_parameters() if not name.startswith("backbone.")),
        "state_bytes": state_bytes(model.init_state(1)),
        "untrained": before._asdict() if before else None,
        **after._asdict(),
    } | ({"reads": reads(model, text.passages)} if what.system == "armt" else {})


def claims(rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Inside a segment at most half a per cent more perplexity than the model alone after the same training, beyond it less."""
    alone = {row["seed"]: row for row in rows if row["name"] == ALONE}
    found = {}
    for row in rows:
        if row["name"] != ALONE and row["seed"] in alone:
            inside, beyond = (round(row[place] / alone[row["seed"]][place], 4) for place in ("inside", "beyond"))
            ok = inside <= COST and beyond < 1 and row["beyond"] < row["anothers"]
            found[f"{row['name']}, seed {row['seed']}"] = {
                "inside, of alone": inside,
                "beyond, of alone": beyond,
                "beyond, of another's memory": round(row["beyond"] / row["anothers"], 4),
                "target inside": COST,
                "ok": ok,
            }
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="stories260K with a memory, on novels.")
    parser.add_argument("data", type=Path, help="a folder that holds models/stories260K and books")
    parser.add_argument("--adapt", type=int, default=2_000_000, help="tokens of novels for the model alone, first (default 2,000,000)")
    parser.add_argument("--adapted", type=Path, help="keep that model's weights in this file, or take them from it")
    parser.add_argument("--steps", type=int, default=200, help="of each row's training (default 200, of about 3,200 tokens)")
    parser.add_argument("--seeds", type=int, default=1, help="trainings of each row (default 1)")
    parser.add_argument("--only", action="append", help="a row, by its name; may be given again (default: all)")
    parser.add_argument("--rows", type=int, default=96, help="held-out passages of 8 segments (default 96)")
    parser.add_argument("--json", help="write the result to this file; rows that it holds are kept")
    given = parser.parse_args(arguments)
    keep_freed_memory()
    text = novels(given.data, rows=given.rows, segments=8)
    hub = adapted(given.data, text.train, given.adapt, given.adapted)
    command = f"python -m memseq.recipes.retrofit DATA --adapt {given.adapt} --steps {given.steps}"
    table = Table(command, given.json, claims=claims, segment_length=L, context=by_context(hub, text.passages))
    there = {(row["name"], row["seed"]) for row in table.rows}
    for seed in range(given.seeds):
        for what in contenders():
            if (given.only is None or what.name in given.only) and (what.name, seed) not in there:
                table.add(**run(what, copy.deepcopy(hub), text, steps=given.steps, seed=seed))
    print(json.dumps(claims(table.rows), indent=1))  # noqa: T201


if __name__ == "__main__":
    main()
