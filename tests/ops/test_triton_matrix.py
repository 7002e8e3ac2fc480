"""The decay and the delta rule by Triton's kernels, under its interpreter where there is no GPU: equal to the definition."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

pytest.importorskip("triton", reason="Triton is not installed; on Linux pip install 'memseq[dev]' brings it")

from memseq.memories.gated_deltanet import GatedDeltaNetConfig
from memseq.ops.kernels import use
from memseq.ops.linear_attention import decay_chunkwise, decay_recurrent, delta_chunkwise, delta_recurrent

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
FORMS = {"decay": (decay_recurrent, decay_chunkwise), "delta rule": (delta_recurrent, delta_chunkwise)}


def inputs(op: str, B: int = 1, G: int = 2, H: int = 2, T: int = 37, K: int = 5, V: int = 3) -> list[Tensor]:
    q, k, v, S = torch.randn(B, G, T, K), F.normalize(torch.randn(B, G, T, K), dim=-1), torch.randn(B, H, T, V), torch.randn(B, H, K, V)
    gates = [-torch.rand(B, H, T)] if op == "decay" else [torch.rand(B, H, T), -torch.rand(B, H, T)]
    return [z.to(DEVICE) for z in (q, k, v, *gates, S)]


def read_and_gradients(form, given: list[Tensor], **how) -> list[Tensor]:
    leaves = [z.detach().requires_grad_() for z in given]
    y, S = form(*leaves, **how)
    weighted = (y * torch.linspace(-1, 2, y.numel(), device=DEVICE).view_as(y)).sum() + (S.sin() * 0.7).sum()
    return [y, S, *torch.autograd.grad(weighted, leaves)]


def relative(found: Tensor, exact: Tensor) -> float:
    return float((found.detach().double() - exact.detach()).norm() / exact.detach().norm())


def check(op: str, given: list[Tensor], chunk_size: int, tolerance: float = 1e-5) -> None:
    definition, form = FORMS[op]
    exact = read_and_gradients(definition, [z.double() for z in given])
    with use("triton"):
        found = read_and_gradients(form, given, chunk_size=chunk_size)
    assert max(relative(a, b) for a, b in zip(found, exact, strict=True)) < tolerance


@pytest.mark.parametrize("op", FORMS)
@pytest.mark.parametrize(("T", "chunk_size"), [(37, 16), (16, 16), (20, 64), (2, 2)])
def test_it_is_the_definition_at_any_length(op: str, T: int, chunk_size: int) -> None:
    check(op, inputs(op, T=T), chunk_size)


@pytest.mark.parametrize("op", FORMS)
def test_matrices_of_several_blocks_and_streams(op: str) -> None:
    check(op, inputs(op, B=2, T=19, K=20, V=40), 16)


def test_heads_that_share_keys() -> None:
    check("decay", inputs("decay", B=2, G=2, H=6), 16)


def test_one_key_written_again_and_again() -> None:
    """Where an inverse by doubling is off by 1e9."""
    q, k, v, beta, log_a, S = inputs("delta rule", T=64)
    k = k[:, :, :1].expand_as(k)
    check("delta rule", [q, k, v, torch.ones_like(beta), torch.zeros_like(log_a), S], 64)


@pytest.mark.parametrize("log_a", [-30.0, -1e4])
@pytest.mark.parametrize("op", FORMS)
def test_the_gradient_of_a_shut_gate_is_nothing(op: str, log_a: float) -> None:
    """And no rounding of a difference of two sums, which an optimiser that divides by its size would follow."""
    given = inputs(op, T=20)
    given[-2] = torch.full_like(given[-2], log_a)
    with use("triton"):
        found = read_and_gradients(FORMS[op][1], given, chunk_size=16)
    exact = read_and_gradients(FORMS[op][0], [z.double() for z in given])
    for a, b in zip(found, exact, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-4, atol=1e-5)
    assert float(found[-2].abs().max()) < 1e-10


@pytest.mark.parametrize("log_a", [0.0, -30.0, -1e4])
@pytest.mark.parametrize("op", FORMS)
def test_gates_at_their_limits(op: str, log_a: float) -> None:
    given = inputs(op, T=20)
    given[-2] = torch.full_like(given[-2], log_a)
    with use("triton"):
        found = FORMS[op][1](*given, chunk_size=16)
    exact = FORMS[op][0](*(z.double() for z in given))
    assert max(relative(a, b) for a, b in zip(found, exact, strict=True)) < 1e-5


def test_bfloat16_is_computed_in_the_precision_of_the_state() -> None:
    given = [z.bfloat16() for z in inputs("delta rule")]
    given[-1] = given[-1].float()
    with use("triton"):
        y, S = delta_chunkwise(*given, chunk_size=16)
    assert y.dtype == S.dtype == torch.float32
    exact, _ = delta_recurrent(*(z.double() for z in given))
    assert relative(y, exact) < 1e-5


def test_nothing_that_was_given_is_written_to() -> None:
    given = inputs("delta rule")
    before = [z.clone() for z in given]
    with use("triton"):
        read_and_gradients(delta_chunkwise, given, chunk_size=16)
    assert all(torch.equal(a, b) for a, b in zip(given, before, strict=True))


def test_a_memory_runs_on_it_with_its_gradients() -> None:
    memory = GatedDeltaNetConfig(d_model=8, n_heads=2, chunk_size=16).build().to(DEVICE)
    x = torch.randn(1, 19, 8, device=DEVICE)

    def read() -> list[Tensor]:
        y, state = memory(x, memory.init_state(1))
        return [y, state.S, *torch.autograd.grad(y.square().sum(), list(memory.parameters()))]

    exact = read()
    with use("triton"):
        found = read()
    for a, b in zip(found, exact, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
