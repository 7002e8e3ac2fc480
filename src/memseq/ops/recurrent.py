"""The classical recurrent cells: Elman, Jordan, LSTM and its variants, GRU.

Source: the networks of "A Critical Review of Recurrent Neural Networks" (Lipton, Berkowitz, Elkan, arXiv:1506.00019):
Elman 1990; Jordan 1986; Hochreiter & Schmidhuber 1997; Gers et al. 2000, 2002; Cho et al. 2014 (arXiv:1406.1078).
Layer norm: Ba et al. (arXiv:1607.06450). Projection: Sak et al. (arXiv:1402.1128). Zoneout: Krueger et al. (arXiv:1606.01305).

A cell is the definition: it takes what one token contributes, already multiplied (`a = W_x x_t + b`, one product for all
tokens), and the carried tensors, of which the first is the one that is read; it returns the carried tensors. `scan`
runs any cell over time. Gates lie side by side in one matrix, in torch's order: i f g o, and r z n.

`*_fused` is torch's own kernel where it computes the same function, with one bias (torch keeps two, of which the sum
counts). It is equal to `scan` over the definition.

Letters: B streams, T tokens, I inputs, H hidden units, G = gates x H.
"""

import warnings
from collections.abc import Callable
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

__all__ = [
    "ABLATIONS",
    "Ablation",
    "ablated_lstm_cell",
    "cho_gru_cell",
    "coupled_lstm_cell",
    "elman_cell",
    "elman_fused",
    "gru_cell",
    "gru_fused",
    "jordan_cell",
    "jordan_contexts",
    "layer_norm_lstm_cell",
    "lstm_1997_cell",
    "lstm_cell",
    "lstm_fused",
    "peephole_lstm_cell",
    "projected_lstm_cell",
    "scan",
    "zoneout",
]

Carry = tuple[Any, ...]  # of tensors; each cell says how many
Cell = Callable[[Tensor, Carry], Carry]
Hidden = Float[Tensor, "B H"]
Pair = tuple[Float[Tensor, "B H"], Float[Tensor, "B H"]]  # h, c


def scan(cell: Cell, a: Float[Tensor, "B T G"], carry: Carry) -> tuple[Float[Tensor, "B T H"], Carry]:
    """Any cell over time: the first carried tensor after every token, and all of them after the last."""
    read = []
    for a_t in a.unbind(1):  # unbind, not a[:, t]: its gradient is one stack instead of T full-size additions
        carry = cell(a_t, carry)
        read.append(carry[0])
    return torch.stack(read, dim=1), carry


# ---------------------------------------------------------------- Elman and Jordan


def elman_cell(a: Float[Tensor, "B H"], carry: tuple[Hidden], *, w_h: Tensor, phi: Callable[[Tensor], Tensor]) -> tuple[Hidden]:
    """h' = phi(a + W_h h)."""
    (h,) = carry
    return (phi(a + F.linear(h, w_h)),)


def jordan_cell(
    a: Float[Tensor, "B H"],
    carry: tuple[Float[Tensor, "B O"], Float[Tensor, "B O"]],
    *,
    w_u: Float[Tensor, "H O"],
    w_y: Float[Tensor, "O H"],
    b_y: Float[Tensor, "O"],
    decay: float,
    phi: Callable[[Tensor], Tensor],
    squash: Callable[[Tensor], Tensor],
) -> tuple[Float[Tensor, "B O"], Float[Tensor, "B O"]]:
    """The output is what is fed back: u' = decay u + y, then y' = squash(W_y phi(a + W_u u') + b_y)."""
    y, u = carry
    u = decay * u + y
    h = phi(a + F.linear(u, w_u))
    return squash(F.linear(h, w_y, b_y)), u


def jordan_contexts(
    outputs: Float[Tensor, "B T O"], y: Float[Tensor, "B O"], u: Float[Tensor, "B O"], *, decay: float, chunk_size: int = 64
) -> Float[Tensor, "B T O"]:
    """The contexts u_1 .. u_T under a teacher who gives the outputs y_1 .. y_T: known before any hidden unit is computed.

    u_t = decay u_{t-1} + y_{t-1}, from the output and the context before the first token. Within a chunk one product
    with the matrix of powers, so that no token waits for another.
    """
    before = torch.cat([y[:, None], outputs[:, :-1]], dim=1)
    contexts = []
    for chunk in before.split(chunk_size, dim=1):
        t = torch.arange(chunk.shape[1], device=u.device)
        lag = t[:, None] - t
        powers = torch.where(lag >= 0, decay ** lag.clamp(min=0).to(u.dtype), 0.0)  # [t, j] = decay^(t - j); 0^0 = 1
        faded = decay ** (t + 1).to(u.dtype)
        contexts.append(powers @ chunk + faded[:, None] * u[:, None])
        u = contexts[-1][:, -1]
    return torch.cat(contexts, dim=1)


# ---------------------------------------------------------------- LSTM


def lstm_cell(
    a: Float[Tensor, "B G"], carry: tuple[Float[Tensor, "B P"], Float[Tensor, "B H"]], *, w_h: Float[Tensor, "G P"], g_dropout: float = 0.0
) -> Pair:
    """c' = f c + i g, h' = o tanh(c'), with i, f, o logistic and g tanh of a + W_h h.

    `g_dropout` above zero drops what is written, never what is kept (recurrent dropout, Semeniuta et al., arXiv:1603.05118).
    """
    h, c = carry
    i, f, g, o = (a + F.linear(h, w_h)).chunk(4, dim=-1)
    g = F.dropout(g.tanh(), g_dropout, training=g_dropout > 0)
    c = f.sigmoid() * c + i.sigmoid() * g
    return o.sigmoid() * c.tanh(), c


def peephole_lstm_cell(a: Float[Tensor, "B G"], carry: Pair, *, w_h: Float[Tensor, "G H"], p_i: Tensor, p_f: Tensor, p_o: Tensor) -> Pair:
    """The gates also see the cell: i and f the old one, o the new one."""
    h, c = carry
    i, f, g, o = (a + F.linear(h, w_h)).chunk(4, dim=-1)
    c_next = (f + p_f * c).sigmoid() * c + (i + p_i * c).sigmoid() * g.tanh()
    return (o + p_o * c_next).sigmoid() * c_next.tanh(), c_next


def coupled_lstm_cell(a: Float[Tensor, "B G"], carry: Pair, *, w_h: Float[Tensor, "G H"]) -> Pair:
    """One gate decides between old and new: c' = f c + (1 - f) g. Gates f g o."""
    h, c = carry
    f, g, o = (a + F.linear(h, w_h)).chunk(3, dim=-1)
    c = torch.lerp(g.tanh(), c, f.sigmoid())
    return o.sigmoid() * c.tanh(), c


def layer_norm_lstm_cell(
    a: Float[Tensor, "B G"], carry: Pair, *, w_h: Float[Tensor, "G H"], gain_h: Tensor, gain_c: Tensor, bias_c: Tensor, eps: float
) -> Pair:
    """Normalised before they are squashed: W_h h over all gates, and c on its way to the output; c itself is carried as it is.

    `a` is LN(W_x x) + b, normalised by the caller for all tokens at once.
    """
    h, c = carry
    i, f, g, o = (a + F.layer_norm(F.linear(h, w_h), gain_h.shape, gain_h, None, eps)).chunk(4, dim=-1)
    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
    return o.sigmoid() * F.layer_norm(c, gain_c.shape, gain_c, bias_c, eps).tanh(), c


def projected_lstm_cell(
    a: Float[Tensor, "B G"],
    carry: tuple[Float[Tensor, "B P"], Float[Tensor, "B H"]],
    *,
    w_h: Float[Tensor, "G P"],
    w_p: Float[Tensor, "P H"],
) -> tuple[Float[Tensor, "B P"], Float[Tensor, "B H"]]:
    """What is fed back and read is a projection: h' = W_p (o tanh(c'))."""
    h, c = lstm_cell(a, carry, w_h=w_h)
    return F.linear(h, w_p), c


def lstm_1997_cell(a: Float[Tensor, "B G"], carry: Pair, *, w_h: Float[Tensor, "G H"], truncated: bool) -> Pair:
    """No forget gate: c' = c + i g with g in (-2, 2), h' = o (2 sigmoid(c') - 1). Gates i g o.

    `truncated` is the 1997 gradient: an error reaches the past along c alone, never through what the gates read.
    """
    h, c = carry
    i, g, o = (a + F.linear(h.detach() if truncated else h, w_h)).chunk(3, dim=-1)
    c = c + i.sigmoid() * (4 * g.sigmoid() - 2)
    return o.sigmoid() * (2 * c.sigmoid() - 1), c


Ablation = Literal["input_gate", "forget_gate", "output_gate", "input_squash", "output_squash"]
ABLATIONS: tuple[Ablation, ...] = ("input_gate", "forget_gate", "output_gate", "input_squash", "output_squash")


def ablated_lstm_cell(a: Float[Tensor, "B G"], carry: Pair, *, w_h: Float[Tensor, "G H"], without: Ablation) -> Pair:
    """The LSTM with one part left out (Greff et al., arXiv:1503.04069): a gate that is always open, or a squash that is the identity.

    A gate that is left out has no rows in `a` and `w_h`.
    """
    h, c = carry
    parts = dict(
        zip([p for p in ("i", "f", "g", "o") if without != _GATES.get(p)], (a + F.linear(h, w_h)).split(c.shape[-1], -1), strict=True)
    )
    gated = {p: parts[p].sigmoid() if p in parts else 1.0 for p in ("i", "f", "o")}
    g = parts["g"] if without == "input_squash" else parts["g"].tanh()
    c = gated["f"] * c + gated["i"] * g
    return gated["o"] * (c if without == "output_squash" else c.tanh()), c


_GATES = {"i": "input_gate", "f": "forget_gate", "o": "output_gate"}


def zoneout(cell: Cell, rates: tuple[float, ...], training: bool) -> Cell:
    """A cell some of whose units keep their old value: at random with these rates (one a carried tensor), or the mean of that.

    The mean is what is read when `training` is false, as with dropout.
    """

    def zoned(a: Tensor, carry: Carry) -> Carry:
        new = cell(a, carry)
        if not training:
            return tuple(torch.lerp(after, before, rate) for before, after, rate in zip(carry, new, rates, strict=True))
        kept = (torch.rand_like(before) < rate for before, rate in zip(carry, rates, strict=True))
        return tuple(torch.where(keep, before, after) for keep, before, after in zip(kept, carry, new, strict=True))

    return zoned


# ---------------------------------------------------------------- GRU


def gru_cell(a: Float[Tensor, "B G"], carry: tuple[Hidden], *, w_h: Float[Tensor, "G H"], c_n: Float[Tensor, "H"]) -> tuple[Hidden]:
    """The reset gate after the product (torch, cuDNN): n = tanh(a_n + r (W_hn h + c_n)), h' = (1 - z) n + z h."""
    (h,) = carry
    r, z, n = F.linear(h, w_h).chunk(3, dim=-1)
    a_r, a_z, a_n = a.chunk(3, dim=-1)
    n = (a_n + (a_r + r).sigmoid() * (n + c_n)).tanh()
    return (torch.lerp(n, h, (a_z + z).sigmoid()),)


def cho_gru_cell(a: Float[Tensor, "B G"], carry: tuple[Hidden], *, w_rz: Float[Tensor, "R H"], w_n: Float[Tensor, "H H"]) -> tuple[Hidden]:
    """The reset gate before the product (Cho et al., 2014): n = tanh(a_n + W_hn (r h)), h' = (1 - z) n + z h."""
    (h,) = carry
    a_rz, a_n = a.split((w_rz.shape[0], w_n.shape[0]), dim=-1)
    r, z = (a_rz + F.linear(h, w_rz)).sigmoid().chunk(2, dim=-1)
    n = (a_n + F.linear(r * h, w_n)).tanh()
    return (torch.lerp(n, h, z),)


# ---------------------------------------------------------------- torch's kernels


def _run(kernel: Callable, x: Tensor, carry: Tensor | list[Tensor], weights: list[Tensor]) -> tuple[Tensor, ...]:
    """One layer, one direction, batch first, no dropout of the kernel's own.

    The kernel keeps what its backward needs only when it is told that it trains; whether a gradient will be asked for is
    what decides that, not the mode of a module.
    """
    arguments = (x, carry, weights, True, 1, 0.0, torch.is_grad_enabled(), False, True)
    if not x.is_cuda and len(weights) == 4:
        return kernel(*arguments)
    with warnings.catch_warnings():  # told about once a process, and meant: weights packed a call, a projection by the plain kernel
        warnings.filterwarnings("ignore", message="RNN module weights are not part of single contiguous chunk")
        warnings.filterwarnings("ignore", message="LSTM with projections is not supported with oneDNN")
        return kernel(*arguments)


def elman_fused(
    x: Float[Tensor, "B T I"], h: Hidden, *, w_x: Tensor, w_h: Tensor, b: Tensor, activation: Literal["tanh", "relu"]
) -> tuple[Float[Tensor, "B T H"], Hidden]:
    """Equal to `scan` over `elman_cell` with phi = tanh or relu."""
    kernel = {"tanh": torch.rnn_tanh, "relu": torch.rnn_relu}[activation]
    y, h = _run(kernel, x, h[None].contiguous(), [w_x, w_h, b, torch.zeros_like(b)])
    return y, h[0]


def lstm_fused(
    x: Float[Tensor, "B T I"], carry: Carry, *, w_x: Tensor, w_h: Tensor, b: Tensor, w_p: Tensor | None = None
) -> tuple[Float[Tensor, "B T P"], Carry]:
    """Equal to `scan` over `lstm_cell`, or over `projected_lstm_cell` where a projection is given."""
    weights = [w_x, w_h, b, torch.zeros_like(b)] + ([] if w_p is None else [w_p])
    y, h, c = _run(torch.lstm, x, [t[None].contiguous() for t in carry], weights)
    return y, (h[0], c[0])


def gru_fused(
    x: Float[Tensor, "B T I"], h: Hidden, *, w_x: Tensor, w_h: Tensor, b: Tensor, c_n: Tensor
) -> tuple[Float[Tensor, "B T H"], Hidden]:
    """Equal to `scan` over `gru_cell`."""
    y, h = _run(torch.gru, x, h[None].contiguous(), [w_x, w_h, b, torch.cat([torch.zeros_like(c_n).repeat(2), c_n])])
    return y, h[0]
