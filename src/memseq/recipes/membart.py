"""MemBART's claim: a dialogue of which the encoder reads the last turn only, and the slots remember the others, at one cost a turn.

Source: Wu & Yu, "Stateful Memory-Augmented Transformers for Efficient Dialogue Modeling" (arXiv:2209.07634). The task is
`tasks/dialogue.py`: every turn tells the value of one of twelve keys, one of eight, and asks for one that was told up to eight turns ago.
Chance is 1/8.

    python -m memseq.recipes.membart --json results.json

The backbone is a BART of 2 + 2 layers and width 32, made on the spot:

    membart             reads the last turn, and keeps 12 slots; back-propagation through all turns of a dialogue
    membart, pretrained     the same, around the backbone that was pretrained as below
    last turn           the pretrained one without slots, trained on a tenth as long: there is no more to learn, what was told before it
                        can only guess
    nine turns          pretrained on the same dialogues without memory: on one turn, then up to nine at once, the last of which asks. It
                        reads at every turn all that is asked for: the upper bound, at nine times the tokens

What is taught first is to tell keys apart: turns of three facts, asked one turn back, then two (`LESSONS`); then turns of one fact, asked
eight back. With one fact a turn from the beginning, whoever keeps values without their keys is right about the turn before, and half
right about the two before: this is learned at once, and nothing after it.

Asked are dialogues of 12 turns and of 64, of which the last ten turns count, by how many turns ago a thing was told. `cost` is
the time of one turn, encoded and answered, over a dialogue of 64: by MemBART, and by the same network that reads all of it anew.
"""

import argparse
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache, partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from memseq.configs import from_dict
from memseq.layers.dual_stream import both_streams
from memseq.models.membart import MemBART
from memseq.recipes.fitting import Table, fit_stages, verdict, weights
from memseq.recipes.machine import keep_freed_memory
from memseq.state import stack, state_bytes
from memseq.tasks.dialogue import DialogueTask
from memseq.training.curriculum import Curriculum

__all__ = ["LESSONS", "READ", "answers", "bart", "claims", "cost", "main", "pretrained", "run", "value_shares", "wrapped"]

D, SLOTS, BATCH, LR, PRETRAINING = 32, 12, 64, 3e-3, 15.0
TASK = DialogueTask(reach=9, n_keys=12, n_values=8)
U, COUNTED, MORE = TASK.turn_length, 10, 3  # tokens of a turn; turns that count, at the end; turns of a training dialogue beyond its reach
START = TASK.vocab_size  # the token that opens a reply
READ = {"membart": 1, "membart, pretrained": 1, "last turn": 1, "nine turns": TASK.reach}  # turns that the encoder reads at once
TRAINED = {"membart": 1.0, "membart, pretrained": 1.0, "last turn": 0.1, "nine turns": 0.0}  # share of the time
ASKED = (12, 64)
INIT_STD = 0.15  # of all weights: a narrow network begins with larger ones
MEMORY = {"bias_std": 0.1, "gate_std": INIT_STD, "gate_bias": -1.0}
TURNS = Curriculum(stages=tuple(range(1, TASK.reach + 1)), steps=None, mastered=0.8)
LESSONS = ((3, 2), (3, 3), (1, TASK.reach))  # facts that a turn tells, and turns that are asked for, its own included
TARGETS = {"8 turns beyond": 0.95, "chance": 0.03, "cost": 0.05}


def bart(n_turns: int = TASK.reach) -> nn.Module:
    """A network of transformers that has seen nothing and can read so many turns; four tokens more than the task's are BART's own."""
    own = dict(zip(("decoder_start_token_id", "bos_token_id", "pad_token_id", "eos_token_id"), range(START, START + 4), strict=True))
    sizes = {"layers": 2, "ffn_dim": 2 * D, "attention_heads": 2}
    halves = {f"{half}_{name}": n for half in ("encoder", "decoder") for name, n in sizes.items()}
    more = {"vocab_size": START + 4, "d_model": D, "dropout": 0.0, "init_std": INIT_STD, "forced_eos_token_id": None}
    settings = {"model_type": "bart", "max_position_embeddings": n_turns * U, **own, **halves, **more}
    return from_dict({"type": "bart", "json": json.dumps(settings)}).build().model


def read_at_once(network: nn.Module, inputs: Int[Tensor, "B T"]) -> Float[Tensor, "B V"]:
    """Logits of the first word of the reply, by the network without memory."""
    start = torch.full_like(inputs[:, :1], START)
    return network(input_ids=inputs, decoder_input_ids=start).logits[:, 0]


@cache  # rows of a seed begin with the same weights
def pretrained(seed: int, seconds: float) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The weights of a BART that answers from one to nine turns which it reads at once, and how they were come by."""
    torch.manual_seed(seed)
    network = bart()

    def lesson(n: int, step: int) -> tuple[Tensor, Tensor]:
        batch = replace(TASK, n_turns=n).sample(BATCH, seed=step + 1_000_000 * seed)
        loss = F.cross_entropy(read_at_once(network, batch.inputs), batch.labels[:, -1])
        return loss, loss.detach()

    told = fit_stages(network, lesson, TURNS, seconds=seconds, lr=LR, seed=seed, stages="turns")
    return network.state_dict(), told


def wrapped(name: str, before: dict[str, Tensor]) -> MemBART:
    """The model of a row, around a BART with the weights `before`, or one that has seen nothing."""
    from memseq.retrofit import with_memory  # loads transformers

    network = bart()
    if name != "membart":
        network.load_state_dict(before)
    return with_memory(network, "membart", n_slots=slots(name), segment_length=READ[name] * U, **MEMORY)


def slots(name: str) -> int:
    return SLOTS if name.startswith("membart") else 0


def answers(model: MemBART, inputs: Int[Tensor, "B T"], turns: range | None = None) -> Float[Tensor, "B K V"]:
    """Logits of the first word of the reply to each of `turns` (all): every turn is read, with as many before it as the model reads."""
    n_turns, tokens = inputs.shape[1] // U, model.segment_length
    state, read = model.init_state(len(inputs)), []
    for turn in range(n_turns):
        end = (turn + 1) * U
        state = model.read_source(inputs[:, max(0, end - tokens) : end], state)
        if turns is None or turn in turns:
            read.append(state)
    logits = model.predict_first(stack(read))  # answered together: an answer changes no state
    return logits.unflatten(0, (len(read), -1)).transpose(0, 1)


@torch.no_grad()
def accuracy(model: MemBART, n_turns: int, asked: int) -> dict[str, float]:
    """Of the last ten turns of so many, by how many turns ago a thing was told."""
    batch = replace(TASK, n_turns=n_turns).sample(asked, seed=n_turns, split="test")
    counted = range(n_turns - COUNTED, n_turns)
    right = answers(model, batch.inputs, counted).argmax(-1) == batch.labels[:, U - 1 :: U][:, -COUNTED:]
    age = batch.slices["age"][:, U - 1 :: U][:, -COUNTED:]
    return {str(n): round(float(right[age == n].float().mean()), 4) for n in range(TASK.reach)}


@torch.no_grad()
def value_shares(model: MemBART) -> list[float]:
    """In each layer of the encoder, of what its attention reads of single facts: how much of their variance is between values.

    The rest is what tells two facts of one value apart: their keys. Slots are given facts by this attention alone.
    """
    x, found = model.backbone.embed_source(torch.arange(TASK.questions)[:, None]), []
    for layer in model.backbone.encoder_layers:
        read: Any = layer
        facts = read.self_attn.v_proj(x)[:, 0].unflatten(0, (TASK.n_keys, TASK.n_values))
        between = facts.mean(0).var(0, correction=0).sum() / facts.flatten(0, 1).var(0, correction=0).sum()
        found.append(round(float(between), 3))
        x = both_streams((layer,), (layer,), x[:, :0], x, None, noisy=False)[1]
    return found


def run(name: str, *, seed: int, seconds: float, pretraining: float = PRETRAINING, asked: int = 256) -> dict[str, Any]:
    """Train a row and ask it."""
    before, told_before = ({}, {}) if name == "membart" else pretrained(seed, pretraining)
    torch.manual_seed(seed)
    model = wrapped(name, before)

    lessons = LESSONS if slots(name) else LESSONS[-1:]

    def lesson(n: int, step: int) -> tuple[Tensor, Tensor]:
        facts, reach = lessons[n - 1]
        task = replace(TASK, n_facts=facts, n_chatter=U - 1 - facts, n_turns=reach + MORE, reach=reach)
        batch = task.sample(BATCH, seed=step + 1_000_000 * (seed + 1))
        nats = F.cross_entropy(answers(model, batch.inputs).flatten(0, 1), batch.labels[:, U - 1 :: U].flatten(), reduction="none")
        far = batch.slices["age"][:, U - 1 :: U].flatten() >= READ[name]
        return nats.mean(), nats[far].mean().detach()

    told = {"steps": 0, "cpu_seconds": 0.0, "parameters": weights(model)}
    if TRAINED[name]:
        each = Curriculum(stages=tuple(range(1, len(lessons) + 1)), full=1.0, steps=None, mastered=0.6)
        told = fit_stages(model, lesson, each, seconds=TRAINED[name] * seconds, lr=LR, seed=seed, stages="lessons")
    model.eval()
    found = {str(n): accuracy(model, n, asked) for n in ASKED}
    state = model.read_source(TASK.sample(1, 0).inputs[:, : model.segment_length], model.init_state(1))
    read = {"state_bytes": state_bytes(state), "slot_bytes": 4 * slots(name) * D, "tokens_a_turn": READ[name] * U}
    about = {} if name == "membart" else {"pretraining": told_before}
    return {"name": name, "seed": seed, **told, **about, **read, "value_shares": value_shares(model), "accuracy": found}


@torch.no_grad()
def cost(n_turns: int = 64, rows: int = 16, repeats: int = 15) -> dict[str, Any]:
    """Milliseconds of a turn, the least of `repeats` dialogues, averaged over each quarter of the dialogue; and last quarter over first."""
    torch.manual_seed(0)
    model, network = wrapped("membart", {}).eval(), bart(n_turns).eval()
    inputs = replace(TASK, n_turns=n_turns).sample(rows, 0).inputs

    def with_slots(turn: int, state: Any) -> Any:
        state = model.read_source(inputs[:, turn * U : (turn + 1) * U], state)
        model.predict_first(state)
        return state

    def anew(turn: int, state: Any) -> Any:
        read_at_once(network, inputs[:, : (turn + 1) * U])
        return state

    ways: dict[str, Callable[[int, Any], Any]] = {"membart": with_slots, "all turns anew": anew}
    least = {name: [float("inf")] * n_turns for name in ways}
    for _ in range(repeats):
        for name, read in ways.items():
            state = model.init_state(rows)
            for turn in range(n_turns):
                began = time.perf_counter()
                state = read(turn, state)
                least[name][turn] = min(least[name][turn], 1000 * (time.perf_counter() - began))
    table: dict[str, Any] = {"turns": n_turns, "dialogues": rows}
    for name, times in least.items():
        quarters = [sum(times[i : i + n_turns // 4]) / (n_turns // 4) for i in range(0, n_turns, n_turns // 4)]
        table[name] = {"ms_a_turn_by_quarter": [round(ms, 3) for ms in quarters], "last_over_first": round(quarters[-1] / quarters[0], 3)}
    return table


def claims(rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """What was to be reached, and what the worst seed reached, at the age it is worst at."""

    def beyond(name: str) -> list[list[float]]:
        return [[row["accuracy"]["12"][str(age)] for age in range(1, TASK.reach)] for row in rows if row["name"] == name]

    found: dict[str, dict[str, Any]] = {}
    if by_age := beyond("membart"):
        mean = min(sum(one) / len(one) for one in by_age)
        worst = {"at_the_worst_age": min(map(min, by_age)), "seeds": len(by_age)}
        found["1 to 8 turns beyond"] = verdict(TARGETS["8 turns beyond"], mean) | worst
    if by_age := beyond("last turn"):
        mean = max(sum(one) / len(one) for one in by_age)
        found["truncated, beyond"] = verdict(TASK.chance + TARGETS["chance"], mean, at_most=True) | {"seeds": len(by_age)}
    if measured := [row["membart"]["last_over_first"] for row in rows if row["name"] == "cost"]:
        found["cost of a late turn"] = verdict(TARGETS["cost"], measured[-1] - 1, at_most=True)
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="A dialogue remembered in slots, turn by turn.")
    parser.add_argument("--seeds", type=int, default=2, help="trainings of each row (default 2)")
    parser.add_argument("--first", type=int, default=0, help="the first seed (default 0)")
    parser.add_argument("--only", default=None, help="one row, by its name, or cost")
    parser.add_argument("--seconds", type=float, default=180.0, help="of MemBART's training, in processor time (default 180)")
    parser.add_argument(
        "--pretraining", type=float, default=PRETRAINING, help=f"the same before it, of BART alone (default {PRETRAINING:g})"
    )
    parser.add_argument("--asked", type=int, default=200, help="dialogues of each length (default 200)")
    parser.add_argument("--json", help="write the result to this file; rows that it holds are kept")
    given = parser.parse_args(arguments)
    keep_freed_memory()
    command = f"python -m memseq.recipes.membart --seconds {given.seconds:g}"
    table = Table(command, given.json, claims=claims, chance=TASK.chance)
    there = {(row["name"], row["seed"]) for row in table.rows}
    work: list[tuple[str, int, Callable[[], dict[str, Any]]]] = [("cost", 0, cost)]
    for seed in range(given.first, given.first + given.seeds):
        train = partial(run, seed=seed, seconds=given.seconds, pretraining=given.pretraining, asked=given.asked)
        work += [(name, seed, partial(train, name)) for name in READ]
    for name, seed, measure in work:
        if given.only in (None, name) and (name, seed) not in there:
            table.add(**{"name": name, "seed": seed} | measure())


if __name__ == "__main__":
    main()
