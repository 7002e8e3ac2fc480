"""The Taylor features against their kernel, and the chunkwise form against the definition, gradients too."""

import math

import pytest
import torch
from torch.testing import assert_close

from memseq.ops.taylor import feature_count, taylor_chunkwise, taylor_features, taylor_recurrent, taylor_write

F64 = torch.float64


def stream(T, *, d=4, V=3, B=2, H=2):
    return [torch.randn(B, H, T, size, dtype=F64, requires_grad=True) for size in (d, d, V)]


def matrix(d=4, V=3, B=2, H=2, tokens=0):
    M = torch.zeros(B, H, feature_count(d), V + 1, dtype=F64)
    return taylor_write(*(z.detach() for z in stream(tokens, d=d, V=V)[1:]), M, chunk_size=5) if tokens else M


@pytest.mark.parametrize("d", [1, 2, 16])
def test_the_features_are_those_of_the_kernel(d):
    q, k = torch.randn(2, 50, d, dtype=F64)
    z = (q * k).sum(-1) / math.sqrt(d)
    phi_q, phi_k = taylor_features(q), taylor_features(k)
    assert phi_q.shape[-1] == feature_count(d) == 1 + d + d * (d + 1) // 2
    assert_close((phi_q * phi_k).sum(-1), 1 + z + z**2 / 2, rtol=1e-12, atol=1e-12)


def test_the_published_features_are_the_same_kernel():
    q, k = torch.randn(2, 9, 5, dtype=F64)

    def published(x):
        squares = x[..., :, None] * x[..., None, :] / (math.sqrt(2) * math.sqrt(5))
        return torch.cat([torch.ones_like(x[..., :1]), x / 5**0.25, squares.flatten(-2)], dim=-1)

    assert_close(taylor_features(q) @ taylor_features(k).mT, published(q) @ published(k).mT, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("read", [0, 6], ids=["a new stream", "a stream in use"])
@pytest.mark.parametrize("chunk_size", [1, 7, 16, 64, 37])
def test_chunks_change_nothing(chunk_size, read):
    q, k, v = stream(37)
    M = matrix(tokens=read).requires_grad_()
    sources = (q, k, v, M)
    wanted, found = taylor_recurrent(*sources), taylor_chunkwise(*sources, chunk_size=chunk_size)
    seeds = [torch.randn_like(z) for z in wanted]
    for f, w in zip(found, wanted, strict=True):
        assert_close(f, w, rtol=1e-10, atol=1e-11)
    grads = [torch.autograd.grad(sum((z * seed).sum() for z, seed in zip(out, seeds, strict=True)), sources) for out in (found, wanted)]
    for f, w in zip(*grads, strict=True):
        assert_close(f, w, rtol=1e-9, atol=1e-10)


def test_what_is_read_is_the_weighted_mean_of_the_values():
    q, k, v = (z.detach() for z in stream(20))
    z = q @ k.mT / 2
    weights = (1 + z + z**2 / 2).tril()
    y, M = taylor_chunkwise(q, k, v, matrix(), chunk_size=8)
    assert_close(y, weights @ v / weights.sum(-1, keepdim=True), rtol=1e-10, atol=1e-12)
    assert_close(M[:, :, 0, -1], torch.full((2, 2), 20.0, dtype=F64), rtol=0, atol=0)


@pytest.mark.parametrize("chunk_size", [1, 7, 64])
def test_writing_without_reading_writes_the_same(chunk_size):
    q, k, v = stream(23)
    wanted = taylor_recurrent(q, k, v, matrix(tokens=4))[1]
    torch.manual_seed(0)
    q, k, v = stream(23)
    assert_close(taylor_write(k, v, matrix(tokens=4), chunk_size=chunk_size), wanted, rtol=1e-10, atol=1e-12)


def test_what_is_not_kept_leaves_no_trace():
    """phi(0) is not zero: a token with its key zeroed would still enter with weight 1."""
    _, k, v = (z.detach() for z in stream(9))
    keep = torch.tensor([[1, 1, 0, 1, 0, 0, 1, 1, 0], [0, 0, 0, 1, 1, 1, 0, 0, 0]], dtype=torch.bool)
    found = taylor_write(k, v, matrix(), keep, chunk_size=4)
    for row in range(2):
        alone = taylor_write(k[row : row + 1, :, keep[row]], v[row : row + 1, :, keep[row]], matrix(B=1), chunk_size=9)
        assert_close(found[row : row + 1], alone, rtol=1e-12, atol=1e-12)
    zeroed = taylor_write(k * keep[:, None, :, None], v, matrix(), chunk_size=4)
    assert float((zeroed - found).abs().max()) > 0.5


def test_the_normaliser_survives_keys_whose_kernel_is_lost_to_rounding():
    """q and k at right angles: the kernel is 1, of terms of 1e13 in float32."""
    angle = torch.linspace(0, 3, 200)
    q = 4e3 * torch.stack([angle.cos(), angle.sin()], dim=-1)[None, None]
    k = 4e3 * torch.stack([-angle.sin(), angle.cos()], dim=-1)[None, None]
    y, _ = taylor_chunkwise(q, k, torch.ones(1, 1, 200, 1), matrix(d=2, V=1, B=1, H=1).float(), chunk_size=1)
    assert bool(y.isfinite().all())


def test_in_float32():
    q, k, v = (z.detach() for z in stream(500, d=16, V=16))
    y = taylor_chunkwise(q, k, v, matrix(d=16, V=16), chunk_size=64)[0]
    low = taylor_chunkwise(q.float(), k.float(), v.float(), matrix(d=16, V=16).float(), chunk_size=64)[0]
    assert float((low.double() - y).abs().max() / y.abs().max()) < 2e-5
