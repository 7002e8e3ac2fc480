"""Optimisers: AdamW, and Muon for matrices beside it; warm-up, cosine decay and clipping.

    lr(p) = lr · lr_scale · min(1, (step + 1) / warmup) · (floor + (1 - floor) (1 + cos(pi p)) / 2)

where p in [0, 1] is the share of the budget that is spent, in steps or in minutes.

Two attributes that a model sets on a parameter are honoured: `lr_scale` (a float) multiplies its learning rate, and
`no_decay = True` keeps weight decay from it, as Memformer's forgetting bias needs. Decay touches matrices only: never
biases, gains and other parameters of fewer than two axes.

Sources: AdamW (Loshchilov & Hutter, arXiv:1711.05101); Muon (Jordan et al. 2024; scaled as in arXiv:2502.16982), both as torch has them.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from memseq.errors import CheckpointError, ConfigError, TrainingError

__all__ = ["AdamWConfig", "MuonConfig", "OptimizerConfig", "Optimizers", "WarmupCosine", "clip_gradients"]


@dataclass(frozen=True, kw_only=True)
class AdamWConfig:
    """AdamW on every parameter."""

    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    weight_decay: float = 0.1

    def __post_init__(self) -> None:
        _check_rates(self.lr, self.weight_decay)
        if len(self.betas) != 2 or not all(0.0 <= beta < 1.0 for beta in self.betas):
            raise ConfigError(f"betas={self.betas} must be two numbers from 0 up to and without 1, such as (0.9, 0.95)")

    def build(self, model: nn.Module) -> "Optimizers":
        return Optimizers([_adamw(self, [p for p in model.parameters() if p.requires_grad])])


@dataclass(frozen=True, kw_only=True)
class MuonConfig:
    """Muon on the weights of hidden linear layers, AdamW on the rest: embeddings, head, gains, biases, slots.

    Muon's step is scaled to the size of an AdamW step, so that `lr` means the same for both; `adamw` says the rest.
    """

    lr: float = 1e-3
    momentum: float = 0.95
    weight_decay: float = 0.1
    adamw: AdamWConfig = field(default_factory=AdamWConfig)

    def __post_init__(self) -> None:
        _check_rates(self.lr, self.weight_decay)
        if not 0.0 <= self.momentum < 1.0:
            raise ConfigError(f"momentum={self.momentum} must lie from 0 up to and without 1, such as 0.95")

    def build(self, model: nn.Module) -> "Optimizers":
        hidden = hidden_matrices(model)
        if not hidden:
            raise ConfigError(f"{type(model).__name__} has no hidden linear layer for Muon to train; use AdamWConfig")
        chosen = {id(p) for p in hidden}
        rest = [p for p in model.parameters() if p.requires_grad and id(p) not in chosen]
        muon = torch.optim.Muon(
            _groups(hidden, self.lr, self.weight_decay),
            lr=self.lr,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
            adjust_lr_fn="match_rms_adamw",
        )
        return Optimizers([muon, _adamw(self.adamw, rest)] if rest else [muon])


@runtime_checkable
class OptimizerConfig(Protocol):
    """Builds the optimisers of a model."""

    @property
    def lr(self) -> float: ...
    def build(self, model: nn.Module) -> "Optimizers": ...


class Optimizers:
    """One or more torch optimisers that step together under one schedule."""

    def __init__(self, members: Sequence[torch.optim.Optimizer]) -> None:
        self.members = list(members)
        self.lr = self.members[0].param_groups[0]["peak"]

    def set_rate(self, factor: float) -> None:
        """Set every group's learning rate to `factor` times its peak."""
        for member in self.members:
            for group in member.param_groups:
                group["lr"] = group["peak"] * group["lr_scale"] * factor
        self.lr = self.members[0].defaults["lr"] * factor

    def step(self) -> None:
        for member in self.members:
            member.step()

    def zero_grad(self) -> None:
        for member in self.members:
            member.zero_grad(set_to_none=True)

    @property
    def parameters(self) -> list[Tensor]:
        return [p for member in self.members for group in member.param_groups for p in group["params"]]

    def tensors(self) -> dict[str, Tensor]:
        """What the optimisers remember, by optimiser, parameter and name: `AdamW.12.exp_avg`."""
        found = {}
        for member in self.members:
            for number, kept in member.state_dict()["state"].items():
                found |= {f"{type(member).__name__}.{number}.{name}": torch.as_tensor(value) for name, value in kept.items()}
        return found

    def load_tensors(self, saved: dict[str, Tensor]) -> None:
        """Put back what `tensors` gave, after the same model was built with the same config."""
        states: dict[str, dict[int, dict[str, Tensor]]] = {type(member).__name__: {} for member in self.members}
        for name, value in saved.items():
            kind, number, field = name.split(".", 2)
            if kind not in states:
                raise CheckpointError(
                    f"the saved optimiser is {kind}, this run's {' and '.join(states)}; resume with the one the run began with"
                )
            states[kind].setdefault(int(number), {})[field] = value
        for member in self.members:
            whole, state = member.state_dict(), states[type(member).__name__]
            shapes = [p.shape for group in member.param_groups for p in group["params"]]
            for number, kept in state.items():
                if number >= len(shapes) or any(t.ndim and t.shape != shapes[number] for t in kept.values()):
                    raise CheckpointError("the saved optimiser does not fit this one; resume with the config the run began with")
            member.load_state_dict({"state": state, "param_groups": whole["param_groups"]})


@dataclass(frozen=True, kw_only=True)
class WarmupCosine:
    """Linear warm-up over `warmup` steps, then half a cosine down to `floor` of the peak at the end of the budget."""

    warmup: int = 100
    floor: float = 0.1

    def __post_init__(self) -> None:
        if self.warmup < 0 or not 0.0 <= self.floor <= 1.0:
            raise ConfigError(f"warmup={self.warmup} must be 0 or more steps and floor={self.floor} a share between 0 and 1")

    def factor(self, step: int, progress: float) -> float:
        """The share of the peak at `step` (from 0), when `progress` of the budget is spent."""
        rise = min(1.0, (step + 1) / self.warmup) if self.warmup else 1.0
        fall = 0.5 * (1.0 + math.cos(math.pi * min(1.0, max(0.0, progress))))
        return rise * (self.floor + (1.0 - self.floor) * fall)


def clip_gradients(parameters: Iterable[Tensor], limit: float | None) -> float:
    """Scale the gradients down to a norm of `limit` (None: leave them) and return the norm they had.

    Raises `TrainingError` where the norm is not finite; nothing is changed then.
    """
    parameters = [p for p in parameters if p.grad is not None]
    norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm  # sharded parameters
    value = float(norm)
    if not math.isfinite(value):
        raise TrainingError(f"the gradient's norm is {value}")
    if limit is not None and value > limit:
        for p in parameters:
            assert p.grad is not None
            p.grad.mul_(limit / value)
    return value


def hidden_matrices(model: nn.Module) -> list[Tensor]:
    """The weights of linear layers, without those that are an embedding's too or give logits over the vocabulary."""
    embeddings = [m.weight for m in model.modules() if isinstance(m, nn.Embedding)]
    tied, vocabularies = {id(w) for w in embeddings}, {w.shape[0] for w in embeddings}
    weights = [m.weight for m in model.modules() if isinstance(m, nn.Linear)]
    kept = [w for w in weights if w.requires_grad and id(w) not in tied and w.shape[0] not in vocabularies]
    return list({id(w): w for w in kept}.values())  # shared layers once


def _adamw(config: AdamWConfig, parameters: Sequence[Tensor]) -> torch.optim.Optimizer:
    if not parameters:
        raise ConfigError("the model has no parameter that requires a gradient; there is nothing to train")
    return torch.optim.AdamW(
        _groups(parameters, config.lr, config.weight_decay),
        lr=config.lr,
        betas=config.betas,
        eps=config.eps,
        weight_decay=config.weight_decay,
        fused=all(p.device.type in ("cpu", "cuda") for p in parameters),  # one pass over memory instead of ten
    )


def _groups(parameters: Sequence[Tensor], lr: float, weight_decay: float) -> list[dict[str, Any]]:
    """Parameter groups by (decay, lr_scale), in the order in which they first appear."""
    groups: dict[tuple[float, float], list[Tensor]] = {}
    for p in parameters:
        decay = weight_decay if p.ndim >= 2 and not getattr(p, "no_decay", False) else 0.0
        groups.setdefault((decay, float(getattr(p, "lr_scale", 1.0))), []).append(p)
    return [
        {"params": members, "lr": lr * scale, "weight_decay": decay, "peak": lr, "lr_scale": scale}
        for (decay, scale), members in groups.items()
    ]


def _check_rates(lr: float, weight_decay: float) -> None:
    if not (lr > 0.0 and math.isfinite(lr)):
        raise ConfigError(f"lr={lr} must be a positive number, such as 1e-3")
    if not (weight_decay >= 0.0 and math.isfinite(weight_decay)):
        raise ConfigError(f"weight_decay={weight_decay} must be 0 or a positive number, such as 0.1")
