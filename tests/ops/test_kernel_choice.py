"""Which kernel computes an op: the order, what refuses, what can be asked for, and that the ops do what the answer says."""

import pytest
import torch

from memseq.errors import ConfigError
from memseq.memories.gla import GLAConfig
from memseq.ops.channel_decay import gla_chunkwise
from memseq.ops.decay import decay_chunkwise
from memseq.ops.delta_rule import delta_chunkwise
from memseq.ops.hadamard import hadamard_chunkwise
from memseq.ops.kernels import OPS, choice, chosen, use
from memseq.ops.prefix_softmax import Sums, prefix_softmax_chunkwise

HALF = {"dtype": torch.bfloat16}


@pytest.fixture
def packages(monkeypatch):
    """Says what is installed, whatever is, and that nobody has asked for anything."""
    monkeypatch.delenv(choice.VARIABLE, raising=False)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)

    def install(*there: str) -> None:
        monkeypatch.setattr(choice, "_installed", lambda package: package in there)

    return install


def test_on_a_cpu_it_is_torch_for_every_op(packages) -> None:
    packages("fla", "triton")
    assert {chosen(op, device="cpu").kernel for op in OPS} == {"torch"}


@pytest.mark.parametrize("op", OPS)
def test_on_cuda_it_is_fla_where_it_has_the_op(packages, op: str) -> None:
    packages("fla", "triton")
    first = "fla" if "fla" in OPS[op] else "torch"
    told = chosen(op, **HALF)
    assert told.kernel == first
    assert list(told.refused) == {"fla": [], "torch": ["fla", "triton"]}[first]
    packages("triton")
    assert chosen(op, **HALF).kernel == "torch"  # ours run where they are asked for
    if "triton" in OPS[op]:
        assert "asked for" in chosen(op, **HALF).refused["triton"]
        with use("triton"):
            assert chosen(op, **HALF).kernel == "triton"
    packages()
    told = chosen(op, **HALF)
    assert told.kernel == "torch"
    assert all("not installed" in why or "has no kernel" in why for why in told.refused.values())


def test_fla_without_triton_is_not_installed(packages) -> None:
    packages("fla")
    assert "Triton not installed" in chosen("gla", **HALF).refused["fla"]


def test_float32_is_not_rounded_unless_that_is_allowed(packages) -> None:
    packages("fla", "triton")
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("highest")
        assert chosen("delta_rule").kernel == "torch"
        assert "rounds float32 products to TF32" in chosen("delta_rule").refused["fla"]
        torch.set_float32_matmul_precision("high")
        assert chosen("delta_rule").kernel == "fla"
        assert chosen("channel").kernel == "torch"
        with use("fla"):
            assert chosen("channel").kernel == "fla"
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize(
    ("case", "why"),
    [
        ({"state_dtype": torch.float64}, "its states are float32"),
        ({"dtype": torch.float64}, "its states are float32"),
        ({"dtype": torch.bfloat16, "key_size": 512}, "256 channels at most, and these have 512"),
        ({"dtype": torch.bfloat16, "device": "mps"}, "its kernels run on CUDA, and this is mps"),
    ],
)
def test_what_they_cannot_is_torchs(packages, case: dict, why: str) -> None:
    packages("fla", "triton")
    told = chosen("delta_rule", **case)
    assert told.kernel == "torch"
    assert all(why in reason for reason in told.refused.values())
    with use("triton"), pytest.raises(ConfigError, match="delta_rule was to run on triton, which cannot be"):
        chosen("delta_rule", **case)


def test_one_token_is_read_by_the_definition(packages) -> None:
    packages("fla", "triton")
    assert chosen("delta_rule", n_tokens=1, **HALF).kernel == "torch"


def test_the_variable_asks_and_use_goes_before_it(packages, monkeypatch) -> None:
    packages("fla", "triton")
    monkeypatch.setenv(choice.VARIABLE, "torch")
    assert chosen("gla", **HALF) == choice.Choice("torch", "it was asked for", {})
    with use("fla"):
        assert chosen("gla", **HALF).kernel == "fla"
        with use("torch"):
            assert chosen("gla", **HALF).kernel == "torch"
        assert chosen("gla", **HALF).kernel == "fla"
    monkeypatch.setenv(choice.VARIABLE, "")
    assert chosen("gla", device="cpu").why.startswith("on a CPU")


def test_what_does_not_exist_is_said(packages, monkeypatch) -> None:
    with pytest.raises(ConfigError, match=r"no op 'delta' .* did you mean"):
        chosen("delta")
    with pytest.raises(ConfigError, match=r"use asks for the kernels 'tritn', which do not exist; did you mean 'triton'"), use("tritn"):
        pass
    monkeypatch.setenv(choice.VARIABLE, "cuda")
    with pytest.raises(ConfigError, match="MEMSEQ_KERNELS asks for the kernels 'cuda'"):
        chosen("gla", device="cpu")


def test_an_op_never_runs_on_another_kernel_than_was_asked_for(packages) -> None:
    q, k, v, log_w, S = (torch.randn(1, 1, 4, 3) for _ in range(5))
    packages("fla", "triton")
    for kernel, why in (("fla", "its kernels run on CUDA, and this is cpu"), ("triton", "Triton has no kernel for gla here")):
        with use(kernel), pytest.raises(ConfigError, match=why):
            gla_chunkwise(q, k, v, log_w, S[:, :, :3])
    with use("triton"), pytest.raises(ConfigError, match="prefix_softmax was to run on triton"):
        prefix_softmax_chunkwise(S[..., 0], v, Sums(*(torch.zeros(1, 1, *n) for n in ((), (), (3,)))))
    memory = GLAConfig(d_model=8, n_heads=2).build()
    with use("fla"), pytest.raises(ConfigError, match="gla was to run on fla"):
        memory(torch.randn(1, 4, 8), memory.init_state(1))


def test_the_ops_ask(packages, monkeypatch) -> None:
    """Each op hands its inputs over, as they are, to what was chosen."""
    packages("triton")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    given = {}

    def program(kernel: str, op: str):
        def run(*inputs, **how):
            given[op] = kernel, inputs, how
            return inputs[2], inputs[-1]

        return run

    monkeypatch.setattr(choice, "_program", program)
    B, H, T, K = 1, 2, 5, 3
    x, gate, S = torch.randn(B, H, T, K), -torch.rand(B, H, T), torch.randn(B, H, K, K)
    with use("triton"):
        decay_chunkwise(x, x, x, gate, S, chunk_size=4)
        delta_chunkwise(x, x, x, gate, gate, S, chunk_size=4)
        hadamard_chunkwise(*(x[:, 0] for _ in range(5)), S[:, 0], limit=2.0, chunk_size=4)
    assert {op: (kernel, how) for op, (kernel, _, how) in given.items()} == {
        "decay": ("triton", {"chunk_size": 4}),
        "delta_rule": ("triton", {"chunk_size": 4}),
        "hadamard": ("triton", {"limit": 2.0, "chunk_size": 4}),
    }
    assert [z is y for z, y in zip(given["delta_rule"][1], (x, x, x, gate, gate, S), strict=True)] == 6 * [True]
