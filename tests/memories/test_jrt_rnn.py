"""Prefix linear attention against its double sum, for prefixes of every length, order and cut."""

import math

import pytest
import torch
from torch.testing import assert_close

from memseq.errors import ConfigError, InputError
from memseq.memories.based import BasedConfig
from memseq.memories.jrt_rnn import JRTRNNConfig
from memseq.state import tensors

F64 = torch.float64
SMALL = {"d_model": 12, "n_heads": 3, "feature_size": 4, "chunk_size": 8}
T = 26


def build(**options):
    return JRTRNNConfig(**{**SMALL, **options}).build().double()


def kernel(q, k):
    z = q @ k.mT / math.sqrt(q.shape[-1])
    return 1 + z + z**2 / 2


def by_the_equations(memory, x, M):
    """The double sum of prefix linear attention: encoder weights for every position, causal ones beside them."""
    heads = memory.heads
    layers = (heads.query, heads.key, heads.value, memory.encoder_key, memory.encoder_value)
    q, k, v, k_e, v_e = (layer(x).unflatten(-1, (3, -1)).transpose(1, 2) for layer in layers)
    causal, encoder = kernel(q, k).tril(), kernel(q, k_e[:, :, :M])
    total = causal.sum(-1, keepdim=True) + encoder.sum(-1, keepdim=True)
    return heads.out(((causal @ v + encoder @ v_e[:, :, :M]) / total).transpose(1, 2).flatten(2))


@pytest.mark.parametrize("M", [0, 1, 8, 13, T])
@pytest.mark.parametrize("chunk_size", [1, 8, 64])
def test_reading_a_prefix_is_the_double_sum(M, chunk_size):
    memory = build(chunk_size=chunk_size)
    x = torch.randn(2, T, 12, dtype=F64, requires_grad=True)
    expected = by_the_equations(memory, x, M)
    state, y = memory.init_state(2), []
    if M:
        read, state = memory.read_prefix(x[:, :M], state)
        y.append(read)
    for t in range(M, T):  # the decoder, by the ordinary step
        read, state = memory.step(x[:, t], state)
        y.append(read[:, None])
    found = torch.cat(y, dim=1)
    at_once = memory.read_prefix(x, memory.init_state(2), (torch.arange(T) < M).expand(2, T))[0]
    for way in (found, at_once):
        assert_close(way, expected, rtol=1e-10, atol=1e-12)
    seed = torch.randn_like(expected)
    sources = (x, *memory.parameters())
    wanted, *grads = (
        torch.autograd.grad((z * seed).sum(), sources, materialize_grads=True, allow_unused=True) for z in (expected, found, at_once)
    )
    for way in grads:
        for f, w in zip(way, wanted, strict=True):
            assert_close(f, w, rtol=1e-9, atol=1e-10)


def test_without_a_prefix_it_is_based():
    memory, based = build(), BasedConfig(**SMALL).build().double()
    based.heads.load_state_dict(memory.heads.state_dict())
    x = torch.randn(2, T, 12, dtype=F64)
    (y, state), (y_based, state_based) = memory(x, memory.init_state(2)), based(x, based.init_state(2))
    assert_close(y, y_based, rtol=0, atol=0)
    assert_close(state.M, state_based.M, rtol=0, atol=0)


def test_encoder_weights_of_zero_are_not_based():
    """phi(0) is 1 in its first feature: every token of the prefix adds 1 to the normaliser."""
    memory = build()
    with torch.no_grad():
        memory.encoder_key.weight.zero_()
        memory.encoder_value.weight.zero_()
    x = torch.randn(1, T, 12, dtype=F64)
    read, state = memory.read_prefix(x, memory.init_state(1))
    plain, state_plain = memory(x, memory.init_state(1))
    assert_close(state.M[..., 0, -1], state_plain.M[..., 0, -1] + T, rtol=1e-12, atol=0)
    assert float((read - plain).detach().abs().max()) > 1e-2


@pytest.mark.parametrize("cuts", [[T], [1] * T, [5, 17, 4]], ids=str)
def test_the_encoder_sums_in_any_order_and_in_any_pieces(cuts):
    memory = build()
    x = torch.randn(2, T, 12, dtype=F64)
    whole = memory.encode(x, memory.init_state(2))
    state = memory.init_state(2)
    for piece in x[:, torch.randperm(T)].split(cuts, dim=1):
        state = memory.encode(piece, state)
    assert_close(state.M, whole.M, rtol=1e-10, atol=1e-12)


def test_a_prefix_in_pieces_is_read_as_it_is_whole():
    memory = build()
    x = torch.randn(2, T, 12, dtype=F64)
    y, state = memory.read_prefix(x, memory.init_state(2))
    after = memory.init_state(2)
    for piece in x.split(7, dim=1):
        after = memory.encode(piece, after)
    read = []
    for piece in x.split(4, dim=1):
        z, after = memory(piece, after)
        read.append(z)
    assert_close(torch.cat(read, dim=1), y, rtol=1e-10, atol=1e-12)
    assert_close(after.M, state.M, rtol=1e-10, atol=1e-12)


def test_what_is_not_of_the_prefix_changes_nothing_in_it():
    memory = build()
    x = torch.randn(3, T, 12, dtype=F64)
    keep = torch.arange(T) < torch.tensor([[4], [11], [0]])  # a prefix of its own length in each row
    y, _ = memory.read_prefix(x, memory.init_state(3), keep)
    changed = torch.where(keep[..., None], x, torch.randn_like(x))
    z, _ = memory.read_prefix(changed, memory.init_state(3), keep)
    assert_close(z[keep], y[keep], rtol=0, atol=0)
    for row, M in enumerate([4, 11]):
        alone = memory.read_prefix(x[row : row + 1, :M], memory.init_state(1))
        assert_close(y[row : row + 1, :M], alone[0], rtol=1e-10, atol=1e-12)
        assert_close(y[row : row + 1, M:], memory(x[row : row + 1, M:], alone[1])[0], rtol=1e-10, atol=1e-12)


def test_any_tokens_may_be_the_prefix():
    memory = build()
    x = torch.randn(2, T, 12, dtype=F64)
    keep = torch.rand(2, T) < 0.5
    state = memory.encode(x, memory.init_state(2), keep)
    for row in range(2):
        alone = memory.encode(x[row : row + 1, keep[row]], memory.init_state(1))
        assert_close(state.M[row : row + 1], alone.M, rtol=1e-12, atol=1e-12)


def test_the_given_state_is_left_as_it_was():
    memory = build()
    x, state = torch.randn(2, T, 12, dtype=F64), memory.init_state(2)
    before = [t.clone() for t in tensors(state)]
    memory.encode(x, state)
    assert_close(tensors(state), before, rtol=0, atol=0)


def test_under_autocast_the_state_stays_float32():
    memory = JRTRNNConfig(**SMALL).build()
    x = torch.randn(2, T, 12)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, state = memory.read_prefix(x, memory.init_state(2))
    exact, _ = memory.read_prefix(x, memory.init_state(2))
    assert state.M.dtype == torch.float32
    assert float(((y.float() - exact).norm() / exact.norm()).detach()) < 0.02


def test_errors_say_what_was_given():
    memory = build()
    x = torch.randn(2, 5, 12, dtype=F64)
    with pytest.raises(InputError, match=r"\[2, 5\], got \[2, 4\]"):
        memory.encode(x, memory.init_state(2), torch.ones(2, 4, dtype=torch.bool))
    with pytest.raises(InputError, match="T = 0"):
        memory.encode(x[:, :0], memory.init_state(2))
    with pytest.raises(ConfigError, match="feature_size must be"):
        JRTRNNConfig(d_model=12, n_heads=3, feature_size=0)
