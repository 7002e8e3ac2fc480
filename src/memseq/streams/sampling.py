"""The next token from logits: greedy, or by chance under a temperature, the top k, and the top p.

    p = softmax(logits / temperature), over the k likeliest tokens        top_k
    kept = the fewest likeliest tokens whose p sum to at least top_p      top_p
    token = the first of kept whose cumulated p exceeds u sum(kept)       u in [0, 1): the draw

The draw at a position is a function of a seed and that position alone (`draw`), so chance has no state: a stream that
is saved, moved, forked or continued in pieces meets the same chance as one that was never stopped.
"""

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int64
from torch import Tensor

from memseq.errors import ConfigError, StateError

__all__ = ["Sampler", "draw"]


def draw(seed: int, position: int) -> float:
    """A number in [0, 1) that depends on `seed` and `position` only, on every machine.

    Philox is a counter-based generator: the key is the seed, the counter is the position.
    """
    if seed < 0:
        raise ConfigError(f"seed={seed} is negative; seeds are integers from 0 on")
    return float(np.random.Generator(np.random.Philox(key=seed, counter=position)).random())


@dataclass(frozen=True, kw_only=True)
class Sampler:
    """How the next token is chosen. `temperature=0` is greedy: the likeliest token, the first of equals."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int | None = None

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise ConfigError(f"temperature={self.temperature} must be 0 (greedy) or a positive number, such as 0.8")
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"top_p={self.top_p} must lie above 0 and at most at 1; 1 keeps every token")
        if self.top_k is not None and self.top_k < 1:
            raise ConfigError(f"top_k={self.top_k} must be at least 1, or None to keep every token")

    def choose(self, logits: Float[Tensor, "B V"], draws: Float[Tensor, " B"]) -> Int64[Tensor, " B"]:
        """One token for each row: `draws` [B] in [0, 1) decide, and are ignored when greedy.

        A logit of -inf is a token that is never chosen. Raises `StateError` where no choice is possible.
        """
        best = logits.amax(-1)
        if not bool(best.isfinite().all()):  # a NaN in a row is its maximum too
            raise StateError("the logits are not finite: the state or the weights hold NaN or infinite numbers")
        if self.temperature == 0:
            return logits.argmax(-1)
        # subtract first: a tiny temperature must not overflow
        scaled = (logits.double() - best.double()[:, None]) / self.temperature
        ordered, tokens = scaled.sort(dim=-1, descending=True, stable=True)
        if self.top_k is not None:
            ordered, tokens = ordered[:, : self.top_k], tokens[:, : self.top_k]
        p = ordered.softmax(-1)
        before = p.cumsum(-1) - p
        p = p.where(before < self.top_p, 0.0)
        cumulated = p.cumsum(-1)
        u = draws.to(cumulated)[:, None] * cumulated[:, -1:]
        place = (cumulated <= u).sum(-1, keepdim=True)
        # rounding may leave u at the very end: the last token that was kept is the furthest choice
        return tokens.gather(-1, place.minimum((p > 0).sum(-1, keepdim=True) - 1))[:, 0]
