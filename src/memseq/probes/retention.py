"""Retention: what is left of something once seen, while reading goes on.

Twin streams are shown different pairs and then read the same text. What still differs between their states is the trace of what
they were shown; when the trace is gone, nothing can be recalled. At growing distances it is measured beside what can be asked for:

    trace        |s_a - s_b| / (|s_a| + |s_b|), over the floating numbers of the state, as a share of the trace at once
    recall       accuracy of the pairs, in forks of the states (chance 1 / n_values)
    norm         |s|, beside the norm at once
    similarity   cos(s, s at once), for states that do not grow

A store of the last m tokens keeps its whole trace up to m tokens and none after; a decay by a a token keeps a^d of it.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from memseq.probes.asking import Alphabet, Pairs, ask, read_on
from memseq.probes.probe import Probe, Subject, say, tokens_said
from memseq.probes.recall import ASKED, DISTANCES
from memseq.state import State, leaf_names, tensors

__all__ = ["RetentionProbe", "half_life"]

SENTINEL = 1e20  # numbers of a larger magnitude mark a place as empty


@dataclass(frozen=True, kw_only=True)
class RetentionProbe(Probe):
    name: ClassVar[str] = "retention"
    about: ClassVar[str] = "two streams see different things and then read the same: how long do their states differ?"

    load: int = 4

    def parts(self, subject: Subject) -> list[str]:
        return ["reading"]

    def measure(self, subject: Subject, part: str) -> dict[str, Any]:
        model, random = subject.model, self.generator(part)
        alphabet = Alphabet.of(subject)
        filler = alphabet.filler(subject)
        load, rows = min(self.load, len(alphabet.keys)), self.samples
        # the twins are shown the same keys with other values: what differs is what was bound to them
        a, b = (Pairs.draw(alphabet, rows, load, random) for _ in range(2))
        b = Pairs(keys=a.keys, values=b.values, tokens=torch.stack([a.keys, alphabet.values[b.values]], dim=2).flatten(1))
        keys, values = (torch.cat([a.keys, a.keys])[:, :ASKED], torch.cat([a.values, b.values])[:, :ASKED])
        state = read_on(model, torch.cat([a.tokens, b.tokens]).to(subject.device), model.init_state(2 * rows))
        bounded = bool(getattr(model, "bounded", True))
        begun, place, told = _numbers(state), 0, []
        for distance in (d for d in DISTANCES if d <= self.length and self.room(subject, 2 * load + d + 1)):
            while place < distance:
                n = min(1024, distance - place)
                between = torch.stack([filler.text(n, start=row * (self.length + 1) + place) for row in range(rows)])
                state, place = read_on(model, torch.cat([between, between]), state), place + n
            now = _numbers(state)
            norms = now.norm(dim=1)
            apart = (now[:rows] - now[rows:]).norm(dim=1) / (norms[:rows] + norms[rows:]).clamp_min(1e-30)
            row: dict[str, Any] = {"distance": distance, "trace": float(apart.mean()), "norm": float(norms.mean())}
            if bounded:
                row["similarity"] = float(torch.cosine_similarity(now, begun, dim=1).mean())
            row["leaves"] = _apart(state, rows)
            row["recall"] = ask(model, state, keys, values, alphabet).accuracy
            told.append(row)
        return {"load": load, "chance": alphabet.chance, "rows": told}

    def conclude(self, subject: Subject, parts: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
        found = parts["reading"]
        at_once = found["rows"][0]["trace"]
        rows: list[dict[str, Any]] = [{**row, "share": row["trace"] / at_once if at_once else 0.0} for row in found["rows"]]
        return {**found, "rows": rows, "half_life": half_life([row["distance"] for row in rows], [row["share"] for row in rows])}

    def says(self, result: Mapping[str, Any]) -> list[dict[str, Any]]:
        life, rows = result["half_life"], result["rows"]
        if not rows[0]["trace"]:
            answer = "nothing is left of it even at once"
        elif life is None:
            answer = f"more than half of it is still there after {tokens_said(rows[-1]['distance'])}"
        else:
            answer = f"half of it is gone after {tokens_said(life)}; {rows[-1]['share']:.0%} is left after {rows[-1]['distance']:,}"
        return [say("How long does a trace of what it saw stay in its state?", answer, life)]


def _apart(state: State, rows: int) -> dict[str, float]:
    """The trace in each floating leaf by itself."""
    found = {}
    for name, t in zip(leaf_names(state), tensors(state), strict=True):
        if t.is_floating_point():
            held = t.reshape(t.shape[0], -1).float()
            held = torch.where(held.abs() < SENTINEL, held, 0.0)
            norms = held.norm(dim=1)
            found[name] = float(((held[:rows] - held[rows:]).norm(dim=1) / (norms[:rows] + norms[rows:]).clamp_min(1e-30)).mean())
    return found


def half_life(distances: Sequence[int], shares: Sequence[float]) -> float | None:
    """The distance at which the share falls below a half, between two measured ones by a straight line in log distance."""
    for i in range(1, len(shares)):
        if shares[i] < 0.5 <= shares[i - 1]:
            near, far = math.log1p(distances[i - 1]), math.log1p(distances[i])
            return math.expm1(near + (shares[i - 1] - 0.5) / (shares[i - 1] - shares[i]) * (far - near))
    return None


def _numbers(state: State) -> Tensor:
    """The floating numbers of each stream's state in a row; marks of emptiness count as zero."""
    floating = [t.reshape(t.shape[0], -1).float() for t in tensors(state) if t.is_floating_point()]
    if not floating:
        rows = [t.shape[0] for t in tensors(state)][:1] or [1]
        return torch.zeros(rows[0], 1)
    flat = torch.cat(floating, dim=1)
    return torch.where(flat.abs() < SENTINEL, flat, 0.0)
