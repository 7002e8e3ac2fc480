"""Our ops by fla's kernels: what is handed to them, in their conventions, and what comes back.

Kernels of CUDA do not run here, so that others stand in for them under the same names: written below from fla's documentation, and
where fla-core is installed, its own references in torch.
"""

import importlib
import inspect
import sys
from types import ModuleType

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from memseq.ops import channel_decay
from memseq.ops.decay import decay_recurrent
from memseq.ops.delta_rule import delta_recurrent
from memseq.ops.kernels import fla_core

B, H, T, K, V = 2, 4, 11, 3, 5
KERNELS = {  # the module and the function of fla, for every op
    "decay": ("simple_gla", "chunk_simple_gla"),
    "delta_rule": ("gated_delta_rule", "chunk_gated_delta_rule"),
    "gla": ("gla", "chunk_gla"),
    "rwkv6": ("rwkv6", "chunk_rwkv6"),
    "kda": ("kda", "chunk_kda"),
    "channel": ("generalized_delta_rule", "chunk_dplr_delta_rule"),
}
DEFINITIONS = {
    "decay": decay_recurrent,
    "delta_rule": delta_recurrent,
    **{name: getattr(channel_decay, f"{name}_recurrent") for name in ("gla", "rwkv6", "kda", "channel")},
}


def inputs(op: str, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    q, k, v, S = torch.randn(B, H, T, K), F.normalize(torch.randn(B, H, T, K), dim=-1), torch.randn(B, H, T, V), torch.randn(B, H, K, V)
    beta, log_a, log_w, rate = torch.rand(B, H, T), -torch.rand(B, H, T), -torch.rand(B, H, T, K), torch.rand(B, H, T, K)
    between = {
        "decay": [log_a],
        "delta_rule": [beta, log_a],
        "gla": [log_w],
        "rwkv6": [torch.randn(H, K), log_w],
        "kda": [beta, log_w],
        "channel": [-k, k * rate, log_w],
    }
    return [*(z.to(dtype) for z in (q, k, v)), *between[op], S]


# ------------------------------------------------------- what fla says that its kernels compute: tokens before heads, scale 1 / sqrt(K)


def loop(q, k, v, fade, scale, initial_state, output_final_state, write, read=None):
    assert initial_state.dtype == torch.float32
    assert all(z.is_contiguous() for z in (q, k, v, fade, initial_state))
    assert q.dtype == k.dtype == v.dtype
    assert q.shape[:3] == k.shape[:3] == v.shape[:3] == fade.shape[:3] == (B, T, H)
    S, o, scale = initial_state, [], q.shape[-1] ** -0.5 if scale is None else scale
    for t in range(q.shape[1]):
        before = S
        S = write(t, before, fade[:, t, :, :, None].exp() * S)
        seen = S if read is None else read(t, before)
        o.append(scale * torch.einsum("bhk,bhkv->bhv", q[:, t].float(), seen))
    return torch.stack(o, dim=1).to(v.dtype), S if output_final_state else None


def outer(k, v):
    return k.float()[..., :, None] * v.float()[..., None, :]


def same_for_all(g, k):
    assert g.is_contiguous()
    return g[..., None].expand(k.shape).contiguous()


def chunk_simple_gla(q, k, v, g=None, g_gamma=None, scale=None, initial_state=None, output_final_state=False):
    return loop(q, k, v, same_for_all(g, k), scale, initial_state, output_final_state, lambda t, _, S: S + outer(k[:, t], v[:, t]))


def chunk_gla(q, k, v, g, scale=None, initial_state=None, output_final_state=False):
    return loop(q, k, v, g, scale, initial_state, output_final_state, lambda t, _, S: S + outer(k[:, t], v[:, t]))


def chunk_rwkv6(r, k, v, w, u, scale=None, initial_state=None, output_final_state=False):
    def read(t, before):
        return before + u.float()[:, :, None] * outer(k[:, t], v[:, t])

    return loop(r, k, v, w, scale, initial_state, output_final_state, lambda t, _, S: S + outer(k[:, t], v[:, t]), read)


def chunk_kda(q, k, v, g, beta, scale=None, initial_state=None, output_final_state=False, use_qk_l2norm_in_kernel=False):
    def write(t, _, S):
        missing = v[:, t].float() - torch.einsum("bhk,bhkv->bhv", k[:, t].float(), S)
        return S + outer(k[:, t], beta[:, t, :, None] * missing)

    return loop(q, k, v, g, scale, initial_state, output_final_state, write)


def chunk_gated_delta_rule(q, k, v, g, beta, scale=None, initial_state=None, output_final_state=False, use_qk_l2norm_in_kernel=False):
    return chunk_kda(q, k, v, same_for_all(g, k), beta, scale, initial_state, output_final_state)


def chunk_dplr_delta_rule(q, k, v, a, b, gk, scale=None, initial_state=None, output_final_state=False):
    def write(t, before, S):
        return S + outer(b[:, t], torch.einsum("bhk,bhkv->bhv", a[:, t].float(), before)) + outer(k[:, t], v[:, t])

    return loop(q, k, v, gk, scale, initial_state, output_final_state, write)


@pytest.fixture
def stand_ins(monkeypatch) -> None:
    """`fla.ops.*` whose kernels are the loops above."""
    monkeypatch.setitem(sys.modules, "fla", ModuleType("fla"))
    monkeypatch.setitem(sys.modules, "fla.ops", ModuleType("fla.ops"))
    for name, function in KERNELS.values():
        module = ModuleType(f"fla.ops.{name}")
        setattr(module, function, globals()[function])
        monkeypatch.setitem(sys.modules, f"fla.ops.{name}", module)


@pytest.mark.parametrize("op", KERNELS)
def test_what_comes_back_is_the_definition_with_its_gradients(stand_ins, op: str) -> None:
    def everything(form, **how):
        leaves = [z.detach().requires_grad_() for z in given]
        y, S = form(*leaves, **how)
        weighted = (y * torch.linspace(-1, 2, y.numel()).view_as(y)).sum() + (S.sin() * 0.7).sum()
        return [y, S, *torch.autograd.grad(weighted, leaves)]

    given = inputs(op)
    for found, exact in zip(everything(getattr(fla_core, op), chunk_size=7), everything(DEFINITIONS[op]), strict=True):
        torch.testing.assert_close(found, exact, rtol=1e-5, atol=1e-5)


def test_keys_of_a_group_serve_its_heads(stand_ins) -> None:
    q, k, v, log_a, S = inputs("decay")
    shared = [q[:, :2], k[:, :2], v, log_a, S]
    for found, exact in zip(fla_core.decay(*shared, chunk_size=64), decay_recurrent(*shared), strict=True):
        torch.testing.assert_close(found, exact, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("op", KERNELS)
def test_sixteen_bits_stay_so_and_gates_and_states_float32(stand_ins, op: str) -> None:
    given = inputs(op, torch.bfloat16)
    y, S = getattr(fla_core, op)(*given, chunk_size=64)
    assert y.dtype == S.dtype == torch.float32
    exact, _ = DEFINITIONS[op](*(z.double() for z in given))
    assert float((y.double() - exact).norm() / exact.norm()) < 2e-2


# --------------------------------------------------------------------------------------------------- where fla-core is installed


@pytest.fixture
def fla() -> None:
    pytest.importorskip("fla", reason="fla-core is not installed; pip install 'memseq[gpu]' brings it, on CUDA")


@pytest.mark.parametrize("op", KERNELS)
def test_the_kernels_are_there_and_take_what_stands_in_for_them(fla, op: str) -> None:
    module, function = KERNELS[op]
    theirs = inspect.signature(getattr(importlib.import_module(f"fla.ops.{module}"), function)).parameters
    ours = inspect.signature(globals()[function]).parameters
    for name, parameter in ours.items():
        assert name in theirs, f"{function} has no {name}"
        assert theirs[name].default == parameter.default or name == "scale", name
    positional = [name for name, p in ours.items() if p.default is p.empty]
    assert list(theirs)[: len(positional)] == positional


def references() -> dict:
    """fla's own, as its kernels would be called."""
    naive = {name: importlib.import_module(f"fla.ops.{name}.naive") for name in ("simple_gla", "gla", "gated_delta_rule", "kda")}
    rwkv6 = importlib.import_module("fla.ops.rwkv6.recurrent_naive").naive_recurrent_rwkv6
    dplr = importlib.import_module("fla.ops.generalized_delta_rule.dplr.naive").dplr_recurrence

    def gla(q, k, v, g, scale, initial_state, output_final_state):  # knows one scale
        return naive["gla"].naive_recurrent_gla(q * scale * K**0.5, k, v, g, initial_state, output_final_state)

    def heads_first(function, *tensors, **how):
        o, S = function(*(z.transpose(1, 2) for z in tensors), **how)
        return o.transpose(1, 2), S

    return {
        "decay": naive["simple_gla"].naive_recurrent_simple_gla,
        "delta_rule": naive["gated_delta_rule"].naive_recurrent_gated_delta_rule,
        "gla": gla,
        "rwkv6": lambda r, k, v, w, u, **how: heads_first(lambda *z, **more: rwkv6(*z, u, **more), r, k, v, w, **how),
        "kda": naive["kda"].naive_recurrent_kda,
        "channel": lambda q, k, v, a, b, gk, scale, **how: heads_first(dplr, q * scale * K**0.5, k, v, a, b, gk, **how),
    }


@pytest.mark.parametrize("op", KERNELS)
def test_flas_own_references_agree(fla, monkeypatch, op: str) -> None:
    module, function = KERNELS[op]
    monkeypatch.setattr(importlib.import_module(f"fla.ops.{module}"), function, references()[op])
    given = inputs(op)
    for found, exact in zip(getattr(fla_core, op)(*given, chunk_size=64), DEFINITIONS[op](*given), strict=True):
        torch.testing.assert_close(found, exact, rtol=1e-4, atol=1e-4)
