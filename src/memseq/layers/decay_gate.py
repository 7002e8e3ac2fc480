"""The step of a state space model: how much a head keeps of its past, decided by the token.

Source: Mamba (Gu and Dao, arXiv:2312.00752), Mamba-2 (arXiv:2405.21060); as Gated DeltaNet (arXiv:2412.06464) has it too.

    d = softplus(x W + dt_bias)         the token's step, one a head, clamped to [min_step, max_step]
    log_a = -exp(A_log) d               the logarithm of what is kept

Start: exp(A_log) uniform in `rates`; steps log-uniform in `steps`, so that half-lives ln 2 / (A d) reach from below one token to
hundreds. A rate and a bias of steps are no directions: they are exempt from weight decay.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["DecayGate"]


class DecayGate(nn.Module):
    """`step, log_a = gate(logits)`, both [B, T, H], in float32 at least; the projection is the caller's."""

    def __init__(
        self,
        n_heads: int,
        *,
        rates: tuple[float, float] = (1.0, 16.0),
        steps: tuple[float, float] = (1e-3, 1e-1),
        floor: float = 1e-4,
        min_step: float = 0.0,
        max_step: float | None = None,
    ) -> None:
        super().__init__()
        self.min_step, self.max_step = min_step, max_step
        step = torch.empty(n_heads).uniform_(math.log(steps[0]), math.log(steps[1])).exp_().clamp_(min=floor)
        self.A_log = nn.Parameter(torch.empty(n_heads).uniform_(*rates).log_())
        self.dt_bias = nn.Parameter(step + torch.log(-torch.expm1(-step)))  # softplus of it is the step
        for parameter in (self.A_log, self.dt_bias):
            parameter.no_decay = True  # ty: ignore[missing-attribute]

    def forward(self, logits: Float[Tensor, "B T H"]) -> tuple[Float[Tensor, "B T H"], Float[Tensor, "B T H"]]:
        with torch.autocast(logits.device.type, enabled=False):
            dtype = torch.promote_types(logits.dtype, torch.float32)
            step = F.softplus(logits.to(dtype) + self.dt_bias.to(dtype))
            if self.min_step or self.max_step is not None:
                step = step.clamp(self.min_step, self.max_step)
            return step, -self.A_log.to(dtype).exp() * step
