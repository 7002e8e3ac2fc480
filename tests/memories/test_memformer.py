"""What is special about slots as a memory of their own; the law is proven in `tests/contract`."""

import torch
from torch.testing import assert_close

from memseq.memories.memformer import MemformerConfig
from memseq.state import state_bytes

CONFIG = MemformerConfig(d_model=16, n_heads=2, n_slots=3, segment_length=5)


def build(config: MemformerConfig = CONFIG) -> torch.nn.Module:
    torch.manual_seed(0)
    memory = config.build().double()
    for p in memory.parameters():
        torch.nn.init.normal_(p, std=0.4)
    return memory


def test_a_new_memory_says_nothing() -> None:
    """The read starts at zero: in a residual stack it changes nothing until it is trained."""
    memory = CONFIG.build()
    y, _ = memory(torch.randn(2, 12, 16), memory.init_state(2))
    assert not y.any()


def test_a_segment_is_read_by_the_next_and_not_by_itself() -> None:
    memory, x = build(), torch.randn(1, 10, 16, dtype=torch.float64)
    other = x.clone()
    other[:, 1] += 1
    y, z = (memory(piece, memory.init_state(1))[0] for piece in (x, other))
    assert torch.equal(y[:, [0, 2, 3, 4]], z[:, [0, 2, 3, 4]])
    assert (y[:, 5:] - z[:, 5:]).abs().amin(-1).min() > 1e-9


def test_streams_that_have_read_nothing_stand_where_forgetting_ends() -> None:
    memory = build()
    bias, slots = memory.write.bias, memory.init_state(1).slots[0]
    assert_close(slots, 4.0 * bias / bias.norm(dim=-1, keepdim=True), rtol=1e-12, atol=0)


def test_advance_is_reading_without_the_answers() -> None:
    memory, x = build(), torch.randn(2, 13, 16, dtype=torch.float64)
    after, read = memory.advance(x, memory.init_state(2)), memory(x, memory.init_state(2))[1]
    assert all(torch.equal(a, b) for a, b in zip(after, read, strict=True))


def test_the_state_between_segments_is_the_slots() -> None:
    memory = CONFIG.build()
    sizes = [state_bytes(memory(torch.randn(1, n, 16), memory.init_state(1))[1]) for n in (5, 50, 500)]
    assert sizes[0] == sizes[1] == sizes[2] <= 4 * 3 * 16 + 8 + 3 * 4


def test_a_token_carried_to_many_slots_is_the_slots_projected_for_many_tokens() -> None:
    """Nine slots: a step takes the order of products for few tokens, a piece of five the one for many; gradients too."""
    memory = build(MemformerConfig(d_model=16, n_heads=2, n_slots=9, segment_length=5))
    x = torch.randn(2, 12, 16, dtype=torch.float64, requires_grad=True)
    y, state = memory(x, memory.init_state(2))
    stepped, after = [], memory.init_state(2)
    for token in x.unbind(1):
        out, after = memory.step(token, after)
        stepped.append(out)
    z = torch.stack(stepped, dim=1)
    assert_close(z, y, rtol=1e-11, atol=1e-12)
    assert_close(after.slots, state.slots, rtol=1e-11, atol=1e-12)
    assert_close(torch.autograd.grad(z.square().sum(), x), torch.autograd.grad(y.square().sum(), x), rtol=1e-9, atol=1e-12)
