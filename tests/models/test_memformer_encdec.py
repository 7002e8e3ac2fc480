"""The paper's encoder-decoder: what it conditions on, its inference, and sequence to sequence."""

from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from memseq.errors import ConfigError, InputError
from memseq.layers.slots import SlotsConfig
from memseq.models import MemformerEncDec, MemformerEncDecConfig
from memseq.state import stack, state_bytes, tensors

SLOTS = SlotsConfig(d_model=16, n_heads=2, n_slots=3, segment_length=5)
CONFIG = MemformerEncDecConfig(vocab_size=11, d_model=16, n_heads=2, n_encoder_layers=2, n_decoder_layers=2, slots=SLOTS)


def build(config: MemformerEncDecConfig = CONFIG) -> MemformerEncDec:
    torch.manual_seed(0)
    model = config.build().double()
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.4)
    return model


def tokens(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randint(0, 11, shape, generator=torch.Generator().manual_seed(seed))


def segment_by_segment(model: MemformerEncDec, x: torch.Tensor) -> torch.Tensor:
    """Section 3.7 of the paper's inference, written out: encode what is past, decode a segment with teacher forcing.

    Returns the logits that predict tokens 2 .. T of x [1, T], T a multiple of the segment length.
    """
    L, M = model.segment_length, model.init_state(1).slots
    begin = model.begin[None, None]
    H, out = model._encode(begin, M.slots), []
    for segment in x.split(L, dim=1):
        before = begin if not out else model.embedding(x[:, sum(len(o[0]) for o in out) - 1, None])
        inputs = torch.cat([before, model.embedding(segment[:, :-1])], dim=1)
        state = model.init_state(1)._replace(encoded=H.expand(1, L, -1) if H.shape[1] == 1 else H)
        out.append(model.head(model._decode(inputs, state, model._empty_decoder(1))[0]))
        H = model._encode(model.embedding(segment), M.slots)
        M = model.write(H, M)
    return torch.cat(out, dim=1)[:, 1:]


def test_reading_a_stream_is_the_papers_inference() -> None:
    model, x = build(), tokens(1, 20)
    y, _ = model(x, model.init_state(1))
    assert_close(y[:, :-1], segment_by_segment(model, x), rtol=1e-11, atol=1e-12)


def test_the_decoder_meets_the_memory_through_the_last_segment_only() -> None:
    model, x = build(), tokens(1, 13)
    _, state = model(x[:, :10], model.init_state(1))
    other = state._replace(slots=state.slots._replace(slots=torch.randn_like(state.slots.slots)))
    inside, after = model(x[:, 10:12], state)[0], model(x[:, 10:12], other)[0]
    assert torch.equal(inside, after)  # the slots are read when the segment is encoded, not while it is predicted
    long = tokens(1, 12, seed=4)
    assert not torch.equal(model(long, state)[0][:, 5:], model(long, other)[0][:, 5:])


def test_advance_decodes_nothing_of_a_segment_that_closes() -> None:
    model, x = build(), tokens(2, 15)
    calls: list[int] = []
    decode = model._decode
    model._decode = lambda *a: calls.append(a[0].shape[1]) or decode(*a)
    start = model.init_state(2)
    after = model.advance(x, start)
    assert calls == []
    model._decode = decode
    assert all(torch.equal(a, b) for a, b in zip(tensors(after), tensors(model(x, start)[1]), strict=True))


def test_a_state_at_a_border_holds_slots_and_the_encoding_only() -> None:
    model = CONFIG.build()
    at_border = model(tokens(1, 10), model.init_state(1))[1]
    assert state_bytes(at_border) <= 4 * 16 * (3 + 5) + 200


@pytest.mark.parametrize("length", [3, 5, 12], ids="source of {}".format)
def test_a_source_is_read_by_the_encoder_and_conditions_every_target_token(length: int) -> None:
    model, source, target = build(), tokens(2, length), tokens(2, 8, seed=2)
    state = model.read_source(source, model.init_state(2))
    total, count, _ = model.target_loss(target, state)
    first = model.predict_first(state)
    rest, _ = model(target[:, :-1], state)
    logits = torch.cat([first[:, None], rest], dim=1)
    assert_close(total, torch.nn.functional.cross_entropy(logits.flatten(0, 1), target.flatten(), reduction="sum"), rtol=1e-11, atol=0)
    assert count == 16
    for place in range(length):
        changed = source.clone()
        changed[:, place] = (changed[:, place] + 1) % 11
        assert (model.predict_first(model.read_source(changed, model.init_state(2))) - first).abs().max() > 1e-9


def test_a_short_source_reads_no_padding() -> None:
    """Sources of 3 and of 5 tokens in one batch give what each gives alone."""
    model = build()
    a, b = tokens(1, 3), tokens(1, 5, seed=3)
    states = [model.read_source(x, model.init_state(1)) for x in (a, b)]
    target = tokens(2, 7, seed=5)
    both, _ = model(target, stack(states))
    for row, state in enumerate(states):
        assert_close(both[row : row + 1], model(target[row : row + 1], state)[0], rtol=1e-11, atol=1e-12)


def test_a_source_inside_a_segment_is_refused() -> None:
    model = build()
    with pytest.raises(InputError, match=r"the rows stand \[2\] tokens into one"):
        model.read_source(tokens(1, 4), model(tokens(1, 2), model.init_state(1))[1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_heads": 3}, "cannot be split into n_heads=3"),
        ({"n_decoder_layers": 0}, "need a layer each, got 2 and 0"),
        ({"vocab_size": 0}, "at least 2"),
    ],
    ids=["heads", "layers", "vocabulary"],
)
def test_a_config_that_cannot_be_built_says_so(change: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        replace(CONFIG, **change)
