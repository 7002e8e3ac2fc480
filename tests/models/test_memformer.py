"""What is special about the Memformer language model; the law itself is proven in `tests/contract`."""

from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from memseq.errors import ConfigError, InputError, StateError
from memseq.layers.slots import SlotsConfig
from memseq.memories.segment_attention import SegmentAttentionConfig
from memseq.memories.sliding_window import SlidingWindowConfig
from memseq.models import MemformerLMConfig, StackConfig
from memseq.state import state_bytes, tensors

SLOTS = SlotsConfig(d_model=16, n_heads=2, n_slots=3, segment_length=5)
SEGMENT = SegmentAttentionConfig(d_model=16, n_heads=2, segment_length=5)
CONFIG = MemformerLMConfig(vocab_size=11, d_model=16, layers=(SEGMENT, SEGMENT), slots=SLOTS)


def build(config: MemformerLMConfig, seed: int = 0) -> torch.nn.Module:
    """In float64, with weights large enough that every path matters (reads start from zero)."""
    torch.manual_seed(seed)
    model = config.build().double()
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.4)
    return model


def tokens(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randint(0, 11, shape, generator=torch.Generator().manual_seed(seed))


def test_a_new_model_is_the_model_without_memory() -> None:
    """Reads start from zero: at step 0 the logits are those of a stack with the same local memories."""
    model, plain = CONFIG.build(), StackConfig(vocab_size=11, d_model=16, layers=(SEGMENT, SEGMENT)).build()
    plain.load_state_dict(model.state_dict(), strict=False)
    x = tokens(2, 12)
    assert_close(model(x, model.init_state(2))[0], plain(x, plain.init_state(2))[0], rtol=1e-5, atol=1e-5)


def test_what_one_segment_writes_is_read_in_the_next_and_not_before() -> None:
    model = build(CONFIG)
    a, b = tokens(1, 10), tokens(1, 10)
    b[0, 2] = (a[0, 2] + 1) % 11
    ya, yb = (model(x, model.init_state(1))[0] for x in (a, b))
    assert torch.equal(ya[:, :2], yb[:, :2])
    assert (ya[:, 5:] - yb[:, 5:]).abs().amin(-1).min() > 1e-9  # every token of the next segment feels it


def test_with_memory_cleared_segments_are_strangers() -> None:
    model = build(CONFIG)
    a, b = tokens(1, 10), tokens(1, 10)
    b[0, 2] = (a[0, 2] + 1) % 11
    (_, sa), (_, sb) = (model(x[:, :5], model.init_state(1)) for x in (a, b))
    fresh = model.init_state(1).slots
    assert torch.equal(model(a[:, 5:], sa._replace(slots=fresh))[0], model(a[:, 5:], sb._replace(slots=fresh))[0])


@pytest.mark.parametrize("memory", ["shared", "per_layer"])
def test_a_block_that_does_not_read_is_one_that_reads_nothing(memory: str) -> None:
    some = build(replace(CONFIG, memory=memory, reading=(1,)))
    every = build(replace(CONFIG, memory=memory), seed=2)
    names = {name: name.replace("reads.0", "reads.1").replace("norms.0", "norms.1") for name in some.state_dict()}
    if memory == "per_layer":
        names |= {name: name.replace("writes.0", "writes.1") for name in names if name.startswith("writes")}
    names |= {name: name for name in names if name.startswith("blocks")}
    every.load_state_dict({names[name]: value for name, value in some.state_dict().items()}, strict=False)
    torch.nn.init.zeros_(every.reads[0].out.weight)
    x = tokens(2, 23)
    assert_close(some(x, some.init_state(2))[0], every(x, every.init_state(2))[0], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("reading", [(), (2,), (1, 0), (0, 0), (-1,)], ids=str)
def test_blocks_that_read_are_named_once_and_in_order(reading: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match="blocks from 0 to 1"):
        replace(CONFIG, reading=reading)


@pytest.mark.parametrize("memory", ["shared", "per_layer"])
def test_the_gradient_of_a_late_loss_reaches_the_first_token(memory: str) -> None:
    model = build(replace(CONFIG, memory=memory))
    x = tokens(1, 40).clamp_max(9)
    x[0, 0] = 10  # occurs nowhere else: its embedding's gradient is the first token's
    _, state = model.features(x[:, :35], model.init_state(1))
    h, _ = model.features(x[:, 35:], state)
    assert torch.autograd.grad(h.square().sum(), model.embedding.weight)[0][10].abs().max() > 0


def test_forgetting_alone_pulls_idle_slots_to_their_bias() -> None:
    """With a write that always keeps, every segment turns the slots by the angle law and nothing else."""
    slots = replace(SLOTS, keep_bias=1e9)
    model = build(replace(CONFIG, slots=slots))
    before = model.init_state(1)
    moved = before._replace(slots=(before.slots[0]._replace(slots=torch.randn(1, 3, 16, dtype=torch.float64)),))
    after = model(tokens(1, 5), moved)[1].slots[0].slots
    expected = moved.slots[0].slots + model.writes[0].bias
    expected = expected * 4.0 / expected.norm(dim=-1, keepdim=True)  # radius sqrt(16)
    assert_close(after, expected, rtol=1e-12, atol=1e-12)


def test_without_forgetting_and_with_a_keeping_write_the_memory_never_moves() -> None:
    model = build(replace(CONFIG, slots=replace(SLOTS, keep_bias=1e9, forget="none")))
    start = model.init_state(2)
    assert torch.equal(model(tokens(2, 50), start)[1].slots[0].slots, start.slots[0].slots)


def test_a_segment_of_one_token_is_a_normalised_recurrence() -> None:
    model = build(
        replace(
            CONFIG,
            slots=replace(SLOTS, segment_length=1, keep_bias=-1e9, forget="norm"),
            layers=(SlidingWindowConfig(d_model=16, n_heads=2, window=3),),
        )
    )
    x = tokens(1, 4)
    h, state = model.features(x[:, :3], model.init_state(1))
    value = torch.nn.functional.linear(h[:, -1], model.writes[0].value.weight)
    assert_close(state.slots[0].slots, (4.0 * value / value.norm(dim=-1, keepdim=True))[:, None].expand(-1, 3, -1), rtol=1e-10, atol=1e-12)


def test_the_paper_letter_is_the_unit_sphere() -> None:
    model = build(replace(CONFIG, slots=replace(SLOTS, radius=1.0)))
    slots = model(tokens(2, 10), model.init_state(2))[1].slots[0].slots
    assert_close(slots.norm(dim=-1), torch.ones(2, 3, dtype=torch.float64), rtol=1e-12, atol=0)


def test_a_state_at_a_border_is_as_small_as_its_slots() -> None:
    model = CONFIG.build()
    at_border, inside = (model(tokens(1, n), model.init_state(1))[1] for n in (10, 12))
    assert state_bytes(at_border) <= 4 * 3 * 16 + 8 * 3 + 4 * 7  # slots, positions, and one number for each empty buffer
    assert state_bytes(inside) > 2 * state_bytes(at_border)
    assert [t.shape for t in tensors(at_border)] == [t.shape for t in tensors(inside)]


def test_the_forgetting_bias_asks_for_its_own_optimiser_settings() -> None:
    bias = CONFIG.build().writes[0].bias
    assert bias.no_decay is True
    assert bias.lr_scale == 0.1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"d_model": 10}, "layers[0] has d_model=16 and the model d_model=10"),
        ({"layers": ()}, "layers is empty"),
        ({"vocab_size": 1}, "vocab_size must be at least 2, got 1"),
        ({"memory": "both"}, "memory must be 'shared' or 'per_layer', got 'both'"),
        ({"dropout": 1.0}, "dropout must lie in [0, 1), got 1.0"),
        ({"slots": SlotsConfig(d_model=8, n_heads=2)}, "slots has d_model=8 and the model d_model=16"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_config_that_cannot_be_built_says_so(change: dict, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        replace(CONFIG, **change)
    assert message in str(error.value)


def test_slots_that_cannot_be_split_into_heads_say_what_to_do() -> None:
    with pytest.raises(ConfigError, match="d_model=10 cannot be split into n_heads=4 equal heads; use a multiple of 4, such as d_model=8"):
        SlotsConfig(d_model=10, n_heads=4)


def test_bad_tokens_and_states_are_named() -> None:
    model = CONFIG.build()
    with pytest.raises(InputError, match="T = 0 tokens"):
        model(torch.zeros(1, 0, dtype=torch.int64), model.init_state(1))
    with pytest.raises(InputError, match="token ids must lie in 0 to 10, got 3 to 11"):
        model(torch.tensor([[3, 11]]), model.init_state(1))
    with pytest.raises(InputError, match="integer tokens"):
        model(torch.zeros(1, 2), model.init_state(1))
    with pytest.raises(StateError, match=r"the state holds 2 streams and the input 1; take streams with select\(state, rows\)"):
        model(tokens(1, 4), model.init_state(2))
    with pytest.raises(InputError, match="give one target a token"):
        model.loss(tokens(1, 4), tokens(1, 3), model.init_state(1))


def test_loss_is_the_cross_entropy_of_the_logits() -> None:
    model = build(CONFIG)
    x, targets = tokens(2, 13), tokens(2, 13, seed=2)
    targets[0, 3:6] = -100
    total, count, state = model.loss(x, targets, model.init_state(2))
    logits, end = model(x, model.init_state(2))
    assert_close(total, torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum"), rtol=1e-12, atol=0)
    assert count == 23
    assert all(torch.equal(a, b) for a, b in zip(tensors(state), tensors(end), strict=True))


def test_dropout_draws_the_same_numbers_in_advance_and_in_loss() -> None:
    """Replay reads a segment twice, once without the head: the states must agree bit for bit."""
    model = replace(CONFIG, dropout=0.5).build().train()
    x = tokens(2, 12)
    torch.manual_seed(3)
    a = model.advance(x, model.init_state(2))
    torch.manual_seed(3)
    b = model.loss(x, x, model.init_state(2))[2]
    assert all(torch.equal(s, t) for s, t in zip(tensors(a), tensors(b), strict=True))
