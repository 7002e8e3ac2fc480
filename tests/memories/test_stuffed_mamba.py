"""Repairs of a collapsing state: what each computes, and that each does nothing at its neutral setting."""

import pytest
import torch
from reading import aged, read
from torch.testing import assert_close

from memseq.errors import ConfigError
from memseq.memories.attention import AttentionConfig
from memseq.memories.gru import GRUConfig
from memseq.memories.mamba2 import Mamba2Config
from memseq.memories.retnet import RetNetConfig
from memseq.memories.stuffed_mamba import Limited, Scaled, StuffedMambaConfig, Windowed
from memseq.state import map_state, stack

F64 = torch.float64
MAMBA = Mamba2Config(d_model=8, head_size=8, state_size=4)


def pair(repair, memory=MAMBA, seed=0):
    """A repaired memory, and the memory itself with the same weights."""
    torch.manual_seed(seed)
    repaired, base = StuffedMambaConfig(memory=memory, repair=repair).build().double(), memory.build().double()
    base.load_state_dict(repaired.memory.state_dict())
    return repaired, base


@pytest.mark.parametrize("repair", [Scaled(retain=1.0), Limited(largest=1e9, every=3), Windowed(window=40)], ids=str)
def test_a_neutral_repair_changes_nothing_bit_for_bit(repair):
    repaired, base = pair(repair)
    x = torch.randn(2, 17, 8, dtype=F64)
    y, _ = read(repaired, x, [3, 14])
    expected, _ = read(base, x, [3, 6, 6, 2] if isinstance(repair, Limited) else [3, 14])
    assert_close(y, expected, rtol=1e-12, atol=1e-13)
    if isinstance(repair, Scaled):
        assert torch.equal(y, expected)


def test_scaling_multiplies_the_kept_share_and_the_insertion():
    repaired, base = pair(Scaled(retain=0.5, insert=0.25))
    x = torch.randn(1, 2, 8, dtype=F64)
    (_, first), (_, base_first) = (m(x[:, :1], m.init_state(1)) for m in (repaired, base))
    assert_close(first.states[0].h, 0.25 * base_first.h, rtol=1e-12, atol=1e-14)
    _, second = repaired(x[:, 1:], first)
    _, kept = base(x[:, 1:], base_first)
    _, alone = base(x[:, 1:], base_first._replace(h=torch.zeros_like(base_first.h)))
    assert_close(second.states[0].h, 0.5 * 0.25 * (kept.h - alone.h) + 0.25 * alone.h, rtol=1e-11, atol=1e-14)


@pytest.mark.parametrize("window", [1, 4, 9])
def test_what_is_read_began_between_one_and_two_windows_ago(window):
    repaired, base = pair(Windowed(window=window))
    x = torch.randn(2, 31, 8, dtype=F64)
    y, _ = read(repaired, x, [5, 26])
    for t in range(31):
        begin = max(0, t // window - 1) * window
        assert window <= t + 1 - begin + (window if begin == 0 else 0)
        assert t + 1 - begin <= 2 * window
        alone, _ = base(x[:, begin : t + 1], base.init_state(2))
        assert_close(y[:, t], alone[:, -1], rtol=1e-10, atol=1e-12)


def test_a_window_forgets_what_lies_before_it_and_holds_for_any_memory():
    repaired, _ = pair(Windowed(window=5), GRUConfig(d_model=8))
    x = torch.randn(1, 30, 8, dtype=F64, requires_grad=True)
    y, _ = read(repaired, x, [30])
    grad = torch.autograd.grad(y[:, 24].sum(), x)[0][0].abs().amax(-1)
    assert bool((grad[:15] == 0).all())
    assert bool((grad[15:25] > 0).all())


def test_norms_are_held_below_the_limit_at_every_border_and_heads_below_it_are_left_alone():
    repaired, base = pair(Limited(largest=0.2, every=4))
    x = 3 * torch.randn(2, 24, 8, dtype=F64)
    state, plain = repaired.init_state(2), base.init_state(2)
    for i, piece in enumerate(x.split(4, dim=1)):
        _, state = repaired(piece, state)
        _, plain = base(piece, plain)
        norm = plain.h.flatten(2).norm(dim=2)
        expected = plain.h * (repaired.largest[0] / norm).clamp(max=1)[..., None, None]
        assert_close(state.states[0].h, expected, rtol=1e-11, atol=1e-13, msg=f"border {i}")
        plain = plain._replace(h=expected)


def test_calibration_takes_a_share_of_the_largest_norm_of_each_head():
    repaired, base = pair(Limited(largest=1.0, every=4))
    x = torch.randn(3, 16, 8, dtype=F64)
    repaired.calibrate(x, share=0.5)
    state, seen = base.init_state(3), []
    for piece in x.split(4, dim=1):
        _, state = base(piece, state)
        seen.append(state.h.flatten(2).norm(dim=2).amax(0))
    assert_close(repaired.largest, 0.5 * torch.stack(seen).amax(0), rtol=1e-6, atol=0)
    with pytest.raises(ConfigError, match="Windowed has no limit"):
        pair(Windowed(window=3))[0].calibrate(x)


@pytest.mark.parametrize("repair", [Limited(largest=0.1, every=4), Windowed(window=3)], ids=str)
def test_rows_of_different_ages_keep_their_own_borders(repair):
    repaired, _ = pair(repair)
    pasts = [torch.randn(1, n, 8, dtype=F64) for n in (0, 2, 7)]
    x = torch.randn(3, 9, 8, dtype=F64)
    y, after = repaired(x, stack([aged(repaired, past) for past in pasts]))
    for row, past in enumerate(pasts):
        alone, end = repaired(x[row : row + 1], aged(repaired, past))
        assert_close(y[row : row + 1], alone, rtol=1e-10, atol=1e-12)
        map_state(lambda a, b, row=row: assert_close(a[row : row + 1], b, rtol=1e-10, atol=1e-12), after, end)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: StuffedMambaConfig(memory=RetNetConfig(d_model=8), repair=Scaled()), "has no gates that Scaled can scale"),
        (lambda: StuffedMambaConfig(memory=GRUConfig(d_model=8), repair=Limited(largest=1.0)).build(), "keeps no matrix a head"),
        (
            lambda: StuffedMambaConfig(memory=AttentionConfig(d_model=8, n_heads=2), repair=Windowed(window=3)).build(),
            "grows with the stream",
        ),
        (lambda: Windowed(window=0), "window must be at least 1"),
        (lambda: Limited(largest=0.0), "largest must be above 0"),
        (lambda: Mamba2Config(d_model=8, head_size=8, retain=1.5), "retain lies in"),
    ],
)
def test_what_cannot_be_repaired_is_said(call, says):
    with pytest.raises(ConfigError, match=says):
        call()
