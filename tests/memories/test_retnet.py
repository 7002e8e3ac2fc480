"""RetNet: its parallel form, its rates, and positions that matter only as distances."""

import torch
from torch.nn import functional as F
from torch.testing import assert_close

from memseq.memories.retnet import RetNetConfig, RetNetState


def test_it_is_the_parallel_form_of_the_paper():
    memory = RetNetConfig(d_model=8, n_heads=2).build().double()
    with torch.no_grad():
        memory.norm.weight.uniform_(0.5, 2)
    x = torch.randn(2, 30, 8, dtype=torch.float64)
    q, k, v, z = (t.unflatten(-1, (2, -1)).transpose(1, 2) for t in memory.inputs(x).split([8, 8, 16, 16], dim=-1))
    n = torch.arange(30, dtype=torch.float64)
    angle = n[:, None] * 10000 ** (-torch.arange(0, 4, 2, dtype=torch.float64) / 4)

    def turned(t):
        real, imaginary = t[..., 0::2], t[..., 1::2]
        return torch.stack([real * angle.cos() - imaginary * angle.sin(), real * angle.sin() + imaginary * angle.cos()], dim=-1).flatten(-2)

    gamma = torch.tensor([1 - 2.0**-5, 1 - 2.0**-6], dtype=torch.float64)[:, None, None]
    D = torch.where(n[:, None] >= n, gamma ** (n[:, None] - n), 0.0)
    o = ((turned(q) @ turned(k).mT) * 0.5 * D) @ v
    o = o / (o.square().mean(-1, keepdim=True) + 1e-6).sqrt() * memory.norm.weight * F.silu(z)
    assert_close(memory(x, memory.init_state(2))[0], memory.out(o.transpose(1, 2).flatten(2)), rtol=1e-10, atol=1e-12)


def test_only_distances_matter():
    memory = RetNetConfig(d_model=8, n_heads=2).build().double()
    x, state = torch.randn(1, 30, 8, dtype=torch.float64), memory.init_state(1)
    late = RetNetState(state.S, state.tail, state.position + 1_000_000)
    assert_close(memory(x, late)[0], memory(x, state)[0], rtol=1e-8, atol=1e-9)


def test_what_a_head_wrote_fades_at_its_rate():
    memory = RetNetConfig(d_model=8, n_heads=2).build().double()
    start = memory.init_state(1)._replace(S=torch.ones(1, 2, 4, 8, dtype=torch.float64))
    end = memory(torch.zeros(1, 22, 8, dtype=torch.float64), start)[1].S  # keys and values of nothing
    assert_close(end[0, :, 0, 0], torch.tensor([(31 / 32) ** 22, (63 / 64) ** 22], dtype=torch.float64), rtol=1e-12, atol=1e-12)
