"""Long memory by slow units or by talk between units: what a curriculum makes of a leaky network.

Source: Khajehabdollahi et al. (arXiv:2309.12927): N-parity, learned N by N. `single` has one head, for the N of the day; `multi` keeps a
head for every N so far, all reading the same state.

    python -m memseq.recipes.timescales --json results.json

    curriculum    steps until N = 2, 3, ... is mastered (98 % of the mean over heads and of the newest), and afterwards, all at p = 0.5:
    taus          mean and slowest time constant that was trained; mean timescale that units show on random bits, by fits
    forgetting    the newest head, and a head for N - 2 read anew from the states by least squares
    ablation      accuracy left, of 1, when one of the tenth of fastest or of slowest units is silenced, on average
    robustness    accuracy left when W is pushed by eps of its own size, at random; and eps where half of what is above chance is left

Bits are 1 with a probability of their own in each row in training, and fair when asked. Sizes are small, so that a row takes a minute:
the paper's networks have 500 units and reach N = 30 and more, where what is slow differs most.
"""

import argparse
import time
from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from memseq.memories.gru import GRUConfig
from memseq.memories.timescales import LeakyNetwork, LeakyNetworkConfig
from memseq.probes.timescales import autocorrelation, timescale
from memseq.recipes.fitting import Table
from memseq.tasks.bits import ParityTask
from memseq.training.optim import clip_gradients

__all__ = ["NETWORKS", "Headed", "main", "master", "studied"]

NETWORKS: dict[str, Any] = {
    "leaky": LeakyNetworkConfig(d_model=1, hidden_size=100),
    "fixed tau": LeakyNetworkConfig(d_model=1, hidden_size=100, train_tau=False),
    "gru": GRUConfig(d_model=1, hidden_size=64),
}
BATCH, CHECKED = 128, 100  # rows of a step, steps between two exams
PASS = 0.98
WARM, ASKED, STREAMS = 100, 400, 8  # tokens before the first question, tokens that are asked at, streams


class Headed(nn.Module):
    """A memory of single bits, and a head of two answers for each N."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.memory, self.heads = config.build(), nn.ModuleDict()

    def states(self, bits: Tensor) -> Tensor:
        """What the heads can read at every token, [B, T, H]."""
        memory = self.memory
        return memory.cell(bits[..., None].float(), tuple(memory.init_state(len(bits))))[0]

    def head(self, size: int) -> nn.Linear:
        """The head of a size, new where there is none yet."""
        if str(size) not in self.heads:
            self.heads[str(size)] = nn.Linear(self.memory.cell.sizes[0], 2)
        found = self.heads[str(size)]
        assert isinstance(found, nn.Linear)
        return found


def drawn(most: int, batch_size: int, generator: torch.Generator) -> Tensor:
    """Rows of one length, drawn from most + 2 to 4 most + 1; bits are 1 with a probability of their row's own."""
    length = int(torch.randint(most + 2, 4 * most + 2, (), generator=generator))
    return (torch.rand(batch_size, length, generator=generator) < torch.rand(batch_size, 1, generator=generator)).long()


def parity(bits: Tensor, size: int) -> Tensor:
    """Of the last `size` bits at every token, [B, T]; the first size - 1 count what there is."""
    counted = F.pad(bits.cumsum(1), (size, 0))
    return (counted[:, size:] - counted[:, :-size]) % 2


def optimizer_of(model: Headed) -> torch.optim.Optimizer:
    """The source's: SGD with a little momentum for the leaky network, Adam for gated ones."""
    if isinstance(model.memory, LeakyNetwork):
        return torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.1, nesterov=True)
    return torch.optim.Adam(model.parameters(), lr=2e-3)


def master(config: Any, curriculum: str, *, steps: int, until: int, seed: int) -> tuple[Headed, dict[int, int]]:
    """Train by a curriculum from N = 2 on; the network as it last mastered an N, and the step at which it mastered each."""
    torch.manual_seed(seed)
    generator, model, mastered = torch.Generator().manual_seed(seed), Headed(config), {}
    sizes = [2]
    model.head(2)
    best = model
    optimizer = optimizer_of(model)
    for step in range(1, steps + 1):
        bits = drawn(sizes[-1], BATCH, generator)
        answers = ParityTask(n_bits=2, most=sizes[-1]).heads(bits, sizes)
        last = model.states(bits)[:, -1]
        loss = sum((F.cross_entropy(model.head(n)(last), answers[:, i]) for i, n in enumerate(sizes)), last.new_zeros(()))
        optimizer.zero_grad()
        loss.backward()
        clip_gradients([p for p in model.parameters() if p.grad is not None], 2.0)
        optimizer.step()
        if step % CHECKED == 0:
            scores = exam(model, sizes, generator)
            if min(float(np.mean(scores)), scores[-1]) > PASS:
                mastered[sizes[-1]], best = step, deepcopy(model)
                if sizes[-1] == until:
                    break
                sizes = [*sizes, sizes[-1] + 1] if curriculum == "multi" else [sizes[-1] + 1]
                optimizer.add_param_group({"params": list(model.head(sizes[-1]).parameters())})
    return best.eval(), mastered


@torch.no_grad()
def exam(model: Headed, sizes: Sequence[int], generator: torch.Generator) -> list[float]:
    """Accuracy of each head on bits as in training, over 8 batches of as many lengths."""
    right = torch.zeros(8, len(sizes))
    for row in right:
        bits = drawn(sizes[-1], BATCH, generator)
        last = model.states(bits)[:, -1]
        for i, n in enumerate(sizes):
            row[i] = (model.head(n)(last).argmax(-1) == parity(bits, n)[:, -1]).float().mean()
    return right.mean(0).tolist()


def fair(seed: int, streams: int = STREAMS, length: int = WARM + ASKED) -> Tensor:
    return torch.randint(2, (streams, length), generator=torch.Generator().manual_seed(1_000 + seed))


@torch.no_grad()
def accuracy(model: Headed, size: int, bits: Tensor) -> float:
    """Of one head at every token of long streams, after a warm-up."""
    said = model.head(size)(model.states(bits)[:, WARM:]).argmax(-1)
    return float((said == parity(bits, size)[:, WARM:]).float().mean())


@torch.no_grad()
def read_anew(model: Headed, size: int, bits: Tensor) -> float:
    """Accuracy of the best linear reading of the states for N = `size`: fitted on one half of the streams, asked on the other."""
    r, wanted = model.states(bits)[:, WARM:].double(), parity(bits, size)[:, WARM:].double() * 2 - 1
    half = len(bits) // 2
    know, ask = (F.pad(part.flatten(0, 1), (0, 1), value=1.0) for part in (r[:half], r[half:]))
    eye = 1e-6 * know.square().mean() * len(know) * torch.eye(know.shape[1], dtype=know.dtype)
    weights = torch.linalg.solve(know.mT @ know + eye, know.mT @ wanted[:half].flatten())
    return float(((ask @ weights > 0) == (wanted[half:].flatten() > 0)).double().mean())


@torch.no_grad()
def shown_timescales(model: Headed, *, seed: int, units: int = 32) -> list[float]:
    """Timescales of units on random bits, sorted; those that fit nothing are left out."""
    r = model.states(fair(seed, streams=4, length=3000))[:, 500:, :units].double().numpy()
    found = [timescale(column)[0] for column in autocorrelation(r).T]
    return sorted(tau for tau in found if np.isfinite(tau))


@torch.no_grad()
def ablation(model: Headed, size: int, units: Tensor, bits: Tensor) -> float:
    """Accuracy left, of 1, when one of `units` is silenced, on average."""
    left = []
    for unit in units:
        cut = deepcopy(model)
        cut.memory.silence(unit[None])
        for n in cut.heads:
            cut.head(int(n)).weight[:, unit] = 0.0
        left.append(accuracy(cut, size, bits))
    return float(np.mean(left)) / accuracy(model, size, bits)


@torch.no_grad()
def pushed(model: Headed, size: int, eps: float, bits: Tensor, generator: torch.Generator, repeats: int = 4) -> float:
    """Accuracy with W moved by eps of its own norm in a random direction."""
    found = []
    for _ in range(repeats):
        moved = deepcopy(model)
        w = moved.memory.cell.w_r
        xi = torch.randn(w.shape, generator=generator)
        w += eps * w.norm() * xi / xi.norm()
        found.append(accuracy(moved, size, bits))
    return float(np.mean(found))


def studied(model: Headed, size: int, *, seed: int) -> dict[str, Any]:
    """What a trained network does with what it learned; the leaky one's mechanism too."""
    bits, heads = fair(seed), sorted(int(n) for n in model.heads)
    told: dict[str, Any] = {
        "N": size,
        "accuracy": round(accuracy(model, size, bits), 4),
        "own_heads": {str(n): round(accuracy(model, n, bits), 4) for n in heads if n <= size},
    }
    if size >= 4:
        told["read_anew_N_minus_2"] = round(read_anew(model, size - 2, bits), 4)
    if not isinstance(model.memory, LeakyNetwork):
        return told
    taus, order = model.memory.taus(), model.memory.taus().argsort()
    tenth, shown = max(1, len(taus) // 10), shown_timescales(model, seed=seed)
    told |= {
        "mean_tau": round(float(taus.mean()), 3),
        "slowest_tau": round(float(taus.max()), 3),
        "units_fitted": len(shown),
        "mean_shown_timescale": round(float(np.mean(shown)), 3) if shown else None,
        "slowest_shown_timescale": round(shown[-1], 3) if shown else None,
        "fast_ablated": round(ablation(model, size, order[:tenth], bits), 4),
        "slow_ablated": round(ablation(model, size, order[-tenth:], bits), 4),
    }
    generator, eps = torch.Generator().manual_seed(seed), np.geomspace(0.01, 10, 10)
    curve = [pushed(model, size, float(e), bits, generator) for e in eps]
    told["pushed"] = {f"{e:.3g}": round(a, 4) for e, a in zip(eps, curve, strict=True)}
    told["eps_of_half"] = half_of(eps, curve, accuracy(model, size, bits))
    return told


def half_of(eps: Any, curve: Sequence[float], whole: float) -> float | None:
    """Where accuracy first falls to half of what it was above chance, between the points in log eps; None where it never does."""
    level = 0.5 + (whole - 0.5) / 2
    before = (np.log(eps[0]), whole)
    for e, a in zip(np.log(eps), curve, strict=True):
        if a <= level:
            share = 0.0 if before[1] == a else (before[1] - level) / (before[1] - a)
            return round(float(np.exp(before[0] + share * (e - before[0]))), 4)
        before = (e, a)
    return None


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="N-parity by two curricula: time constants, timescales, ablation.")
    parser.add_argument("--names", default="leaky", help=f"networks, with commas between: {', '.join(NETWORKS)}")
    parser.add_argument("--curricula", default="multi,single", help="one head of the day, or all heads so far")
    parser.add_argument("--until", type=int, default=5, help="the largest N (default 5)")
    parser.add_argument("--steps", type=int, default=3000, help="of a training at most (default 3000)")
    parser.add_argument("--seeds", type=int, default=3, help="trainings of each row (default 3)")
    parser.add_argument("--first-seed", type=int, default=0, help="of them (default 0)")
    parser.add_argument("--json", help="write the result to this file; rows of other parts that it holds stay")
    given = parser.parse_args(arguments)
    table = Table("python -m memseq.recipes.timescales", given.json, source="arXiv:2309.12927")
    for seed in range(given.first_seed, given.first_seed + given.seeds):
        for name in given.names.split(","):
            for curriculum in given.curricula.split(","):
                began = time.process_time()
                model, mastered = master(NETWORKS[name], curriculum, steps=given.steps, until=given.until, seed=seed)
                row: dict[str, Any] = {"mastered_at": {str(n): step for n, step in mastered.items()}, "steps_at_most": given.steps}
                row |= studied(model, max(mastered), seed=seed) if mastered else {}
                row["cpu_seconds"] = round(time.process_time() - began, 1)
                table.add(part=curriculum, name=name, seed=seed, task=f"parity to {given.until}", **row)


if __name__ == "__main__":
    main()
