"""Recall against distance and load: how many pairs a model gives back, after how much reading.

    k_1 v_1 ... k_n v_n   text of d tokens   k_i ?          n: the load, d: the distance

One stream reads on through all distances, and at each a fork of it is asked: the map costs what its longest row costs. A perfect
memory scores 1 everywhere, none scores chance, and one of the last m tokens scores 1 up to d = m - 2 n and chance after it.

`CapacityProbe` asks at distance 0 with more and more pairs, and divides what was told by the bytes that a stream holds.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from memseq.probes.asking import Alphabet, Pairs, ask, read_on
from memseq.probes.probe import Probe, Subject, say, tokens_said
from memseq.state import state_bytes

__all__ = ["CapacityProbe", "RecallProbe", "reach", "score"]

DISTANCES = (0, 16, 64, 256, 1024, 4096, 16384, 65536)
ASKED = 8  # pairs of a stream that are asked for


def score(accuracy: float, chance: float) -> float:
    """Accuracy on the scale where 0 is guessing and 1 is perfect."""
    return (accuracy - chance) / (1 - chance)


def reach(distances: Sequence[int], accuracies: Sequence[float], chance: float) -> int | None:
    """The farthest distance up to which at least half of what is above chance is recalled; None where not even the first is."""
    far = None
    for distance, accuracy in zip(distances, accuracies, strict=True):
        if score(accuracy, chance) < 0.5:
            break
        far = distance
    return far


@dataclass(frozen=True, kw_only=True)
class RecallProbe(Probe):
    name: ClassVar[str] = "recall"
    about: ClassVar[str] = "pairs are shown, text follows, then the second of a pair is asked for by its first"

    loads: tuple[int, ...] = (1, 2, 4, 8, 16, 32)

    def distances(self, subject: Subject, load: int) -> list[int]:
        return [d for d in DISTANCES if d <= self.length and self.room(subject, 2 * load + d + 1)]

    def parts(self, subject: Subject) -> list[str]:
        keys = len(Alphabet.of(subject).keys)
        return [f"load={n}" for n in self.loads if n <= keys and self.distances(subject, n)]

    def measure(self, subject: Subject, part: str) -> dict[str, Any]:
        load, random, model = int(part.removeprefix("load=")), self.generator(part), subject.model
        alphabet = Alphabet.of(subject)
        filler = alphabet.filler(subject)
        pairs = Pairs.draw(alphabet, self.samples, load, random)
        asked = pairs.some(ASKED, random)
        keys, values = pairs.keys.gather(1, asked), pairs.values.gather(1, asked)
        state, place, cells = read_on(model, pairs.tokens.to(subject.device), model.init_state(self.samples)), 0, []
        for distance in self.distances(subject, load):
            while place < distance:
                n = min(1024, distance - place)
                between = torch.stack([filler.text(n, start=row * (self.length + 1) + place) for row in range(self.samples)])
                state, place = read_on(model, between, state), place + n
            answers = ask(model, state, keys, values, alphabet)
            cells.append({"distance": distance, "accuracy": answers.accuracy, "bits": answers.told, "asked": answers.right.numel()})
        return {"load": load, "chance": alphabet.chance, "cells": cells, "state_bytes": state_bytes(state) // self.samples}

    def conclude(self, subject: Subject, parts: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
        rows = list(parts.values())
        distances = [cell["distance"] for cell in max(rows, key=lambda row: len(row["cells"]))["cells"]]

        def table(what: str) -> list[list[float | None]]:
            """Loads down, distances across; None where the model cannot read so far."""
            return [[cell[what] for cell in row["cells"]] + [None] * (len(distances) - len(row["cells"])) for row in rows]

        return {
            "loads": [row["load"] for row in rows],
            "distances": distances,
            "accuracy": table("accuracy"),
            "bits": table("bits"),
            "chance": rows[0]["chance"],
            "asked": [row["cells"][0]["asked"] for row in rows],  # questions behind each number of a row
        }

    def says(self, result: Mapping[str, Any]) -> list[dict[str, Any]]:
        told = []
        for n in (result["loads"][0], *(n for n in result["loads"][1:] if n == 16)):
            accuracies = [a for a in result["accuracy"][result["loads"].index(n)] if a is not None]
            far = reach(result["distances"], accuracies, result["chance"])
            what = "one pair" if n == 1 else f"{n} pairs"
            last = result["distances"][len(accuracies) - 1]
            answer = (
                "not at all" if far is None else f"{tokens_said(far)} or more: as far as was asked" if far == last else tokens_said(far)
            )
            if far == 0 and far != last:
                answer = "only when asked at once"
            told.append(say(f"How far back does it recall {what}?", answer, far))
        return told


@dataclass(frozen=True, kw_only=True)
class CapacityProbe(Probe):
    name: ClassVar[str] = "capacity"
    about: ClassVar[str] = "more and more pairs are shown and asked for at once; what is told is divided by the bytes that hold it"

    loads: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64, 128)

    def parts(self, subject: Subject) -> list[str]:
        keys = len(Alphabet.of(subject).keys)
        return [f"load={n}" for n in self.loads if n <= keys and self.room(subject, 2 * n + 1)]

    def measure(self, subject: Subject, part: str) -> dict[str, Any]:
        load, random, model = int(part.removeprefix("load=")), self.generator(part), subject.model
        alphabet = Alphabet.of(subject)
        pairs = Pairs.draw(alphabet, self.samples, load, random)
        asked = pairs.some(2 * ASKED, random)
        state = read_on(model, pairs.tokens.to(subject.device), model.init_state(self.samples))
        answers = ask(model, state, pairs.keys.gather(1, asked), pairs.values.gather(1, asked), alphabet)
        spread = math.sqrt(alphabet.chance * (1 - alphabet.chance) / answers.right.numel())
        above = answers.accuracy > alphabet.chance + 3 * spread  # luck, times a large load, is no capacity
        return {
            "load": load,
            "chance": alphabet.chance,
            "accuracy": answers.accuracy,
            "items": load * max(0.0, score(answers.accuracy, alphabet.chance)) if above else 0.0,
            "bits": load * answers.told if above else 0.0,
            "state_bytes": state_bytes(state) // self.samples,
        }

    def conclude(self, subject: Subject, parts: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
        rows = list(parts.values())
        best = max(rows, key=lambda row: row["items"])
        most = max(rows, key=lambda row: row["bits"])
        whole = [row["load"] for row in rows if score(row["accuracy"], row["chance"]) >= 0.9]
        return {
            "rows": rows,
            "items": best["items"],
            "items_at_load": best["load"],
            "bits": most["bits"],
            "state_bytes": most["state_bytes"],
            "bits_per_state_byte": most["bits"] / most["state_bytes"] if most["state_bytes"] else None,
            "load_at_90_percent": max(whole, default=0),
        }

    def says(self, result: Mapping[str, Any]) -> list[dict[str, Any]]:
        held = f"{result['items']:.1f} pairs" if result["items"] else "none, by these pairs"
        if result["bits_per_state_byte"]:
            held += f"; {result['bits']:.1f} bits in the {result['state_bytes']:,} bytes that a stream then holds"
        return [say("How many pairs does it hold at once?", held, result["items"])]
