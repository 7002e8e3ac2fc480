"""State collapse: whether a state stays in the range it had in training, long after that.

Source: the diagnosis of Stuffed Mamba (Chen et al., arXiv:2410.07145). A model that never had to forget within its training
length may let some part of its state grow without end beyond it, and its predictions fail there. Two streams are read side by
side: text, and one token over and over, for collapse does not depend on what is read. At places 2^k - 1, and for every floating
leaf of the state:

    rms, mean, deviation, largest magnitude             of the numbers it holds
    growth     the largest rms beyond the training length over the largest within it
    exponent   slope of log rms against log place, beyond

A leaf has collapsed where growth is above 2 or a number is not finite. What grows in a state that grows by itself (a cache of
keys and values) is its length, not its rms. Beside it stands the surprisal of the text within the training length and beyond.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch

from memseq.probes.asking import surprisal
from memseq.probes.probe import Probe, Subject, say
from memseq.state import State, leaf_names, state_bytes, tensors

__all__ = ["CollapseProbe"]

SENTINEL = 1e20  # numbers of a larger magnitude mark a place as empty
GROWN = 2.0
KINDS = ("text", "one token")


@dataclass(frozen=True, kw_only=True)
class CollapseProbe(Probe):
    name: ClassVar[str] = "collapse"
    about: ClassVar[str] = "a long stream is read: does the state stay as large as it was within the training length?"

    trained_length: int = 256  # where the subject does not say

    def parts(self, subject: Subject) -> list[str]:
        return list(KINDS)

    def measure(self, subject: Subject, part: str) -> dict[str, Any]:
        model, total = subject.model, min(2 * self.length, subject.longest or 2 * self.length)
        repeated = subject.ranked()[0]
        state, place, rows = model.init_state(1), 0, []
        stops = [2**k - 1 for k in range(4, 64) if 2**k - 1 <= total]
        for stop in stops or [total]:
            nats, counted = 0.0, 0
            while place < stop:  # pieces of bounded size: what is held does not grow with the stream
                n = min(1025, stop - place)
                tokens = subject.text(n, start=place)[None] if part == "text" else torch.full((1, n), repeated, device=subject.device)
                if n == 1:
                    state = model.advance(tokens, state)
                else:
                    scored, state = surprisal(model, tokens, state)
                    nats, counted = nats + float(scored.sum()), counted + scored.numel()
                place += n
            leaves = _measured(state)
            rows.append({"place": stop, "leaves": leaves, "state_bytes": state_bytes(state)})
            rows[-1]["bits"] = nats / counted / math.log(2) if counted else None
        return {"rows": rows}

    def conclude(self, subject: Subject, parts: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
        trained = subject.trained_length or self.trained_length
        streams = {part: _judged(found["rows"], trained) for part, found in parts.items()}
        return {
            "trained_length": trained,
            "trained_length_is_known": subject.trained_length is not None,
            "read": parts["text"]["rows"][-1]["place"],
            "streams": streams,
            "collapsed": sorted({name for stream in streams.values() for name in stream["collapsed"]}),
        }

    def says(self, result: Mapping[str, Any]) -> list[dict[str, Any]]:
        text = result["streams"]["text"]
        growth = max((leaf["growth"] for stream in result["streams"].values() for leaf in stream["leaves"]), default=1.0)
        if result["read"] <= result["trained_length"]:
            answer = f"not known: {result['read']:,} tokens were read, and it was trained on {result['trained_length']:,}"
        elif result["collapsed"]:
            answer = f"no: {len(result['collapsed'])} of {len(text['leaves'])} parts of it grew, one {growth:.3g} times"
        else:
            answer = f"yes: after {result['read']:,} tokens no part of it is larger than {max(growth, 1.0):.2f} times what training saw"
        return [say("Does its state stay in range far beyond its training?", answer, growth)]


def _measured(state: State) -> list[dict[str, Any]]:
    """What each floating leaf holds, of one stream."""
    found = []
    for name, t in zip(leaf_names(state), tensors(state), strict=True):
        if not t.is_floating_point():
            continue
        held = t.float().flatten()
        held = held[(held.abs() < SENTINEL) | ~held.isfinite()]
        bad = int((~held.isfinite()).sum())
        held = held[held.isfinite()].double()
        if not len(held):
            held = torch.zeros(1, dtype=torch.float64)
        deviation = float(held.std(unbiased=False))
        leaf = {"name": name, "rms": float(held.square().mean().sqrt()), "mean": float(held.mean()), "deviation": deviation}
        found.append({**leaf, "largest": float(held.abs().max()), "not_finite": bad})
    return found


def _judged(rows: list[dict[str, Any]], trained: int) -> dict[str, Any]:
    """Each leaf over the places; within training and beyond it."""
    places = [row["place"] for row in rows]
    within = [i for i, place in enumerate(places) if place <= trained] or [0]
    beyond = [i for i in range(len(places)) if i not in within]
    leaves: list[dict[str, Any]] = []
    for number, leaf in enumerate(rows[0]["leaves"]):
        rms = [row["leaves"][number]["rms"] for row in rows]
        inside, outside = max(rms[i] for i in within), max((rms[i] for i in beyond), default=0.0)
        slope = 0.0
        if len(beyond) > 1 and min(rms[i] for i in beyond) > 0:
            slope = float(np.polyfit(np.log([places[i] for i in beyond]), np.log([rms[i] for i in beyond]), 1)[0])
        leaves.append(
            {
                "name": leaf["name"],
                "rms": rms,
                "largest": [row["leaves"][number]["largest"] for row in rows],
                "growth": outside / inside if inside else (math.inf if outside else 1.0) if beyond else 1.0,
                "exponent": slope,
                "not_finite": max(row["leaves"][number]["not_finite"] for row in rows),
            }
        )
    bits = [row["bits"] for row in rows]
    return {
        "places": places,
        "bits": bits,
        "bits_within": _mean(bits, places, within),
        "bits_beyond": _mean(bits, places, beyond),
        "leaves": leaves,
        "state_bytes": [row["state_bytes"] for row in rows],
        "collapsed": [leaf["name"] for leaf in leaves if leaf["growth"] > GROWN or leaf["not_finite"]],
    }


def _mean(bits: list[float | None], places: list[int], chosen: list[int]) -> float | None:
    """The mean of some intervals, each weighed by its tokens."""
    sizes = np.diff([0, *places])
    pairs = [(bits[i], sizes[i]) for i in chosen if bits[i] is not None]
    return float(sum(b * n for b, n in pairs) / sum(n for _, n in pairs)) if pairs else None
