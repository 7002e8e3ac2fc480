"""Timescales: how long the numbers inside a model stay like themselves, from fits to their autocorrelation.

Source: Khajehabdollahi et al. (arXiv:2309.12927), network-mediated timescales. The model reads random tokens (so that what is
slow is the model and not the text), some of its units are followed, and each unit's autocorrelation is fitted:

    AC(lag) = sum_t (x_t - m)(x_{t+lag} - m) / (n - lag), over AC(0)               averaged over streams
    one       a exp(-lag / tau)                                                    lags 0 to 30, tau up to 100
    two       c exp(-lag / tau_1) + (1 - c) exp(-lag / tau_2)

The fit with the smaller AIC = 2 k + n ln(RSS / n) is taken (k = 2 or 3); the timescale of a unit is tau, or the slower of two
that each have a twentieth of the whole.
Units are features before the head, and numbers of the state where its size does not grow.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from memseq.probes.probe import Probe, Subject, say
from memseq.state import leaf_names, tensors

__all__ = ["TimescalesProbe", "autocorrelation", "timescale"]

LAGS = 31
LONGEST = 100.0
SHARE = 0.05  # a timescale with less of the whole than this is noise, and is not told
EXACT = 1e-6  # a residual below this is none: two exponentials are not taken for their rounding
GRID = np.geomspace(0.1, LONGEST, 120)


def autocorrelation(x: NDArray[np.float64], lags: int = LAGS) -> NDArray[np.float64]:
    """Of each unit [S, T, U], over lags 0 to lags - 1, [lags, U]: the mean removed from each stream, averaged over streams."""
    n = x.shape[1]
    spectrum = np.fft.rfft(x - x.mean(1, keepdims=True), n=2 * n, axis=1)
    products = np.fft.irfft(np.abs(spectrum) ** 2, axis=1)[:, :lags] / (n - np.arange(lags))[:, None]
    total = products.mean(0)
    return np.divide(total, total[0], out=np.full_like(total, np.nan), where=total[0] > 1e-12)


def timescale(ac: NDArray[np.float64]) -> tuple[float, str]:
    """The timescale of one unit's autocorrelation [lags], and which fit it is from; (nan, "none") where neither fits."""
    if not np.isfinite(ac).all():
        return math.nan, "none"
    lags = np.arange(len(ac))
    one = _best_one(ac, lags, GRID)
    two = _best_two(ac, lags, GRID[::3], GRID[::3])
    for width in (0.2, 0.06, 0.02, 0.006, 0.002):  # finer around what was found
        one = min(one, _best_one(ac, lags, _around(one[1], width)), key=lambda fit: fit[0])
        two = min(two, _best_two(ac, lags, _around(two[1], width), _around(two[2], width)), key=lambda fit: fit[0])
    scores = {"one": _aic(one[0], len(ac), 2), "two": _aic(two[0], len(ac), 3)}
    rss = min(one[0], two[0])
    if rss > 0.5 * float((ac**2).sum()):
        return math.nan, "none"
    return (float(one[1]), "one") if scores["one"] <= scores["two"] else (float(max(two[1], two[2])), "two")


def _around(tau: float, width: float) -> NDArray[np.float64]:
    return np.clip(tau * np.exp(np.linspace(-width, width, 13)), 1e-3, LONGEST)


def _aic(rss: float, n: int, k: int) -> float:
    return 2 * k + n * math.log(max(rss, EXACT) / n)


def _best_one(ac: NDArray[np.float64], lags: NDArray[Any], taus: NDArray[np.float64]) -> tuple[float, float]:
    """(residual, tau): for a given tau the best height is linear."""
    e = np.exp(-lags[:, None] / taus)
    height = (e * ac[:, None]).sum(0) / (e * e).sum(0)
    rss = ((ac[:, None] - height * e) ** 2).sum(0)
    best = int(rss.argmin())
    return float(rss[best]), float(taus[best])


def _best_two(
    ac: NDArray[np.float64], lags: NDArray[Any], fast: NDArray[np.float64], slow: NDArray[np.float64]
) -> tuple[float, float, float]:
    """(residual, tau_1, tau_2): for given taus the best share is linear, and lies in 0 to 1."""
    e1, e2 = np.exp(-lags[:, None] / fast)[:, :, None], np.exp(-lags[:, None] / slow)[:, None, :]
    apart, over = e1 - e2, ac[:, None, None] - e2
    squares = (apart * apart).sum(0)
    share = np.clip(np.divide((apart * over).sum(0), squares, out=np.zeros_like(squares), where=squares > 1e-12), 0, 1)
    rss = ((over - share * apart) ** 2).sum(0)
    i, j = np.unravel_index(rss.argmin(), rss.shape)
    tau1 = fast[i] if share[i, j] > SHARE else slow[j]
    tau2 = slow[j] if share[i, j] < 1 - SHARE else fast[i]
    return float(rss[i, j]), float(tau1), float(tau2)


@dataclass(frozen=True, kw_only=True)
class TimescalesProbe(Probe):
    name: ClassVar[str] = "timescales"
    about: ClassVar[str] = "how long single numbers inside the model stay like themselves while it reads random tokens"

    units: int = 16  # followed of each kind
    burn_in: int = 64

    def parts(self, subject: Subject) -> list[str]:
        return ["units"]

    def measure(self, subject: Subject, part: str) -> dict[str, Any]:
        model, random = subject.model, self.generator(part)
        streams, steps = min(4, self.samples), min(1024, self.length, (subject.longest or 2048) - self.burn_in)
        steps = max(steps, 2 * LAGS)
        tokens = torch.randint(subject.vocab_size, (streams, self.burn_in + steps), generator=random).to(subject.device)
        state = model.advance(tokens[:, : self.burn_in], model.init_state(streams))
        bounded = bool(getattr(model, "bounded", True))
        followed = _followed(state, self.units, random) if bounded else []
        outputs = torch.randperm(subject.vocab_size, generator=random)[: self.units].to(subject.device)
        numbers, said = [], []
        for t in range(self.burn_in, self.burn_in + steps):
            logits, state = model.step(tokens[:, t], state)
            said.append(logits[:, outputs].float().cpu())
            leaves = tensors(state)
            numbers.append([leaves[leaf].reshape(streams, -1)[:, place].float().cpu() for leaf, place in followed])
        found = {"logits": _fitted(torch.stack(said, dim=1).double().numpy())}
        names = leaf_names(state)
        for number, (leaf, _) in enumerate(followed):
            series = torch.stack([row[number] for row in numbers], dim=1).double().numpy()
            if fitted := _fitted(np.where(np.abs(series) < 1e20, series, 0.0)):
                found[names[leaf]] = fitted
        return {"steps": steps, "streams": streams, "kinds": found}

    def conclude(self, subject: Subject, parts: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
        return parts["units"]

    def says(self, result: Mapping[str, Any]) -> list[dict[str, Any]]:
        slowest = max(result["kinds"].items(), key=lambda item: item[1].get("median") or 0.0)
        value = slowest[1].get("median")
        answer = "nothing that moves was found" if value is None else f"{value:.3g} tokens, the median of {slowest[0]}"
        if value is not None and value >= 0.99 * LONGEST:
            answer = f"{LONGEST:.0f} tokens or more, the median of {slowest[0]}"
        return [say("What is the slowest timescale inside it?", answer, value)]


def _followed(state: Any, units: int, random: torch.Generator) -> list[tuple[int, torch.Tensor]]:
    """(leaf, places in it): some numbers of every floating leaf of a state."""
    found = []
    for leaf, t in enumerate(tensors(state)):
        if t.is_floating_point() and t[0].numel():
            places = torch.randperm(t[0].numel(), generator=random)[:units]
            found.append((leaf, places.to(t.device)))
    return found


def _fitted(series: NDArray[np.float64]) -> dict[str, Any]:
    """Timescales of the units of [S, T, U] that move at all; empty where none does."""
    ac = autocorrelation(series)
    moving = [unit for unit in range(ac.shape[1]) if np.isfinite(ac[:, unit]).all()]
    if not moving:
        return {}
    taus = sorted(tau for tau, _ in (timescale(ac[:, unit]) for unit in moving) if math.isfinite(tau))
    told: dict[str, Any] = {"units": len(moving), "fitted": len(taus), "autocorrelation": [float(a) for a in ac[:, moving].mean(1)]}
    if taus:
        told |= {"median": float(np.median(taus)), "slowest": float(taus[-1]), "tau": [round(tau, 3) for tau in taus]}
    return told
