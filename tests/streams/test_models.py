"""Streams over the library's own models: batches of different ages and segment phases, stores that grow, files."""

import pytest
import torch
from torch.testing import assert_close

from memseq.layers.slots import SlotsConfig
from memseq.memories.attention import AttentionConfig
from memseq.memories.segment_attention import SegmentAttentionConfig
from memseq.memories.sliding_window import SlidingWindowConfig
from memseq.memories.transformer_xl import TransformerXLConfig
from memseq.models import MemformerLMConfig, StackConfig
from memseq.state import select, state_bytes, tensors
from memseq.streams import Session, generate, read_ragged, read_ragged_last

D = 8
MODELS = {
    "memformer": MemformerLMConfig(
        vocab_size=11,
        d_model=D,
        layers=2 * (SlidingWindowConfig(d_model=D, n_heads=2, window=5),),
        slots=SlotsConfig(d_model=D, segment_length=4, n_slots=3, n_heads=2),
    ),
    "memformer_segments": MemformerLMConfig(
        vocab_size=11,
        d_model=D,
        layers=(SegmentAttentionConfig(d_model=D, n_heads=2, segment_length=4),),
        slots=SlotsConfig(d_model=D, segment_length=4, n_slots=3, n_heads=2),
        memory="per_layer",
    ),
    "transformer_xl": StackConfig(
        vocab_size=11, d_model=D, layers=(TransformerXLConfig(d_model=D, n_heads=2, window=6, segment_length=3),)
    ),
    "attention": StackConfig(vocab_size=11, d_model=D, layers=(AttentionConfig(d_model=D, n_heads=2, block_size=4),)),
}


@pytest.fixture(params=MODELS)
def model(request):
    torch.manual_seed(0)
    model = MODELS[request.param].build().double().eval()
    with torch.no_grad():
        for parameter in model.parameters():  # some projections start at zero, where a memory would not be noticed
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def sequences(lengths, seed=0):
    g = torch.Generator().manual_seed(seed)
    return [torch.randint(11, (n,), generator=g) for n in lengths]


@torch.no_grad()
def test_ragged_reads_of_streams_at_different_phases(model):
    first, second = sequences([9, 2, 4, 13]), sequences([3, 11, 1, 6], seed=1)
    _, state = read_ragged(model, first)
    outputs, after = read_ragged(model, second, state)
    last, last_state = read_ragged_last(model, second, state, chunk_size=3)
    probe = torch.tensor([7])
    for row, (a, b) in enumerate(zip(first, second, strict=True)):
        whole, alone = model(torch.cat([a, b])[None], model.init_state(1))
        assert_close(outputs[row], whole[0, len(a) :], rtol=1e-9, atol=1e-11)
        assert_close(last[row], whole[0, -1], rtol=1e-9, atol=1e-11)
        for together in (after, last_state):
            assert_close(model.step(probe, select(together, [row]))[0], model.step(probe, alone)[0], rtol=1e-9, atol=1e-11)


def test_saved_at_every_phase_of_a_segment_it_goes_on_bit_for_bit(model, tmp_path):
    session = Session(model, seed=1)
    session.read(sequences([6])[0])
    for phase in range(5):
        path = tmp_path / f"{phase}.safetensors"
        session.save(path)
        assert Session.load(path, model).generate(11, temperature=1.5) == session.fork(1)[0].generate(11, temperature=1.5)
        loaded = Session.load(path, model)
        for way in (session, loaded):
            way.read([phase])
        assert torch.equal(loaded.logits, session.logits)
        assert all(torch.equal(a, b) for a, b in zip(tensors(loaded.state), tensors(session.state), strict=True))


def test_a_batch_says_what_each_would_say_alone(model):
    prompts = sequences([5, 1, 12])
    made = generate(model, prompts, 15, seed=9, temperature=1.2, stop=[3])
    for row, prompt in enumerate(prompts):
        session = Session(model, seed=9 + row)
        session.read(prompt)
        assert session.generate(15, temperature=1.2, stop=3) == made.tokens[row]


def test_a_session_of_a_bounded_memory_holds_constant_bytes(model):
    session = Session(model)
    held = []
    for piece in sequences([60, 60, 240]):
        session.read(piece)
        held.append(state_bytes(session.state))
    assert (held[0] == held[1] == held[2]) == model.bounded
