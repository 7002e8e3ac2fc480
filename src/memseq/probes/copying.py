"""Copying: how much less a passage surprises a stream that has read it before, after so much else.

    u_1 ... u_m   text of d tokens   u_1 ... u_m        gain = bits of a token where the first passage was another - where it was this one

Source: the in-context copying score of Hernandez et al. (arXiv:2205.10487), here against distance, and against a twin: stream i reads
passage i, all streams read the same text, and then passage i is read in forks of stream i and of stream i + 1, which never saw it.
Context, place and passage are the same for both; what differs is memory, and a model without any gains exactly 0. Nothing has to be
learned for this question, so it serves every language model. The first token of a passage cannot be known to begin it and is left out.
Random passages are of tokens that are not met in between, nor in the passage of the twin.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from memseq.probes.asking import Alphabet, read_on, surprisal
from memseq.probes.probe import Probe, Subject, say, tokens_said
from memseq.state import select
from memseq.tasks.task import choose_distinct

__all__ = ["CopyingProbe"]

KINDS = ("random", "text")


@dataclass(frozen=True, kw_only=True)
class CopyingProbe(Probe):
    name: ClassVar[str] = "copying"
    about: ClassVar[str] = "a passage is read, then other text, then the passage again; what the first reading saves is memory"

    lengths: tuple[int, ...] = (8, 32, 128)
    distances: tuple[int, ...] = (0, 64, 256, 1024, 4096, 16384, 65536)

    def _asked(self, subject: Subject, m: int) -> list[int]:
        return [d for d in self.distances if d <= self.length and self.room(subject, 2 * m + d)]

    def parts(self, subject: Subject) -> list[str]:
        kinds = KINDS if subject.has_text else KINDS[:1]
        return [f"{kind},m={m}" for kind in kinds for m in self.lengths if m <= self.length and self._asked(subject, m)]

    def measure(self, subject: Subject, part: str) -> dict[str, Any]:
        kind, _, length = part.partition(",m=")
        m, model, rows = int(length), subject.model, 2 * math.ceil(self.samples / 2)
        alphabet = Alphabet.of(subject)
        filler = alphabet.filler(subject) if kind == "random" else subject
        passages = self._passages(subject, kind, m, rows, alphabet, self.generator(part)).to(subject.device)
        state, place, cells = read_on(model, passages, model.init_state(rows)), 0, []
        for distance in self._asked(subject, m):
            while place < distance:
                n = min(1024, distance - place)
                between = filler.text(n, start=(rows << 14) + place)
                state, place = read_on(model, between.expand(rows, -1), state), place + n
            seen, _ = surprisal(model, passages, state)
            unseen, _ = surprisal(model, passages, select(state, torch.arange(rows).roll(-1)))
            bits = [float(nats.mean()) / math.log(2) for nats in (unseen, seen)]
            cells.append({"distance": distance, "unseen": bits[0], "seen": bits[1], "gain": bits[0] - bits[1]})
        return {"kind": kind, "m": m, "cells": cells}

    def _passages(self, subject: Subject, kind: str, m: int, rows: int, alphabet: Alphabet, random: torch.Generator) -> Tensor:
        if kind == "text":
            return torch.stack([subject.text(m, start=row << 14) for row in range(rows)])
        tokens = torch.cat([alphabet.keys, alphabet.values])
        halves = tokens.tensor_split(2)  # neighbours share no token: what one has read cannot mislead it about the other's passage
        drawn = []
        for half in halves:
            # distinct where there are enough: each token then has one follower to remember
            few = m > len(half)
            places = torch.randint(len(half), (rows // 2, m), generator=random) if few else choose_distinct(rows // 2, m, len(half), random)
            drawn.append(half[places])
        return torch.stack(drawn, dim=1).flatten(0, 1)

    def conclude(self, subject: Subject, parts: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
        told: dict[str, Any] = {}
        for kind in KINDS:
            rows = [row for row in parts.values() if row["kind"] == kind]
            if not rows:
                continue
            distances = [cell["distance"] for cell in max(rows, key=lambda row: len(row["cells"]))["cells"]]
            filled = [row["cells"] + [None] * (len(distances) - len(row["cells"])) for row in rows]
            told[kind] = {"lengths": [row["m"] for row in rows], "distances": distances}
            for what in ("gain", "unseen"):
                told[kind][what] = [[cell and cell[what] for cell in cells] for cells in filled]
        return told

    def says(self, result: Mapping[str, Any]) -> list[dict[str, Any]]:
        told = []
        for kind, what in (("text", "a passage of text"), ("random", "random tokens")):
            if kind not in result:
                continue
            found = result[kind]
            number = max(range(len(found["lengths"])), key=lambda i: found["gain"][i][0])
            gains = [gain for gain in found["gain"][number] if gain is not None]
            far = max((d for d, gain in zip(found["distances"], gains, strict=False) if gain >= gains[0] / 2), default=0)
            answer = f"{gains[0]:.2f} of {found['unseen'][number][0]:.2f} bits a token (of {found['lengths'][number]} tokens, at once)"
            answer += f"; half of that up to {tokens_said(far)} later" if far and gains[0] > 0 else ""
            told.append(say(f"What does it save to have read {what} before?", answer, gains[0]))
        return told
