"""MemMamba: the notes of a chunk are the notes of its tokens one by one, and without notes it is Mamba-2."""

from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from memseq.errors import ConfigError
from memseq.layers.notes import NoteReader, NoteWriter, sees, straight_through
from memseq.memories.mamba2 import Mamba2Config
from memseq.models.mamba2 import Mamba2LMConfig
from memseq.models.memmamba import MemMambaConfig

F64 = torch.float64
LAYER = Mamba2Config(d_model=8, head_size=8, state_size=4)
CONFIG = MemMambaConfig(vocab_size=11, layer=LAYER, n_layers=4, n_notes=3, note_size=4, below_every=2, below=2)


def tokens(*shape):
    return torch.randint(0, 11, shape, generator=torch.Generator().manual_seed(1))


def by_the_token(writer, reader, x):
    """A list for a pool, a loop for a chunk; what a token reads is what was in the pool before it."""
    raw, read, pools = writer.note(x), [], []
    for b in range(len(x)):
        pool, said = [], []
        for t in range(x.shape[1]):
            c = torch.zeros(x.shape[2], dtype=F64)
            if pool and reader.look(x[b, t]) > 0:
                k = reader.key(torch.stack(pool))
                c = reader.strength * reader.out((reader.query(x[b, t]) @ k.T / k.shape[1] ** 0.5).softmax(-1) @ k)
            said.append(c)
            if writer.worth(x[b, t]) > 0:
                last = [raw[b, s] if s >= 0 else torch.zeros_like(raw[b, 0]) for s in range(t - writer.window + 1, t + 1)]
                pool = [*pool, torch.stack(last).amax(0)][-writer.size :]
        read.append(torch.stack(said))
        pools.append(pool)
    return torch.stack(read), pools


@pytest.mark.parametrize("cuts", [[23], [1] * 23, [9, 1, 13]], ids=str)
@pytest.mark.parametrize("bias", [-9.0, 0.0, 9.0])  # nothing is written; some is; everything is
def test_notes_of_a_chunk_are_those_of_its_tokens(cuts, bias):
    torch.manual_seed(0)
    writer = NoteWriter(8, size=3, width=4, window=3, frozen=False).double()
    reader = NoteReader(8, width=4).double()
    torch.nn.init.constant_(writer.worth.bias, bias)
    x = torch.randn(2, 23, 8, dtype=F64)
    expected, pools = by_the_token(writer, reader, x)
    state, found = writer.init_state(2), []
    for piece in x.split(cuts, dim=1):
        notes, state = writer(piece, state)
        found.append(reader(piece, notes.notes, sees(notes.written, piece.shape[1], 3, inclusive=False)))
    assert_close(torch.cat(found, dim=1), expected, rtol=1e-12, atol=1e-13)
    for b, pool in enumerate(pools):
        assert int(state.filled[b].sum()) == len(pool)
        if pool:
            assert_close(state.pool[b, 3 - len(pool) :], torch.stack(pool), rtol=1e-12, atol=1e-13)
        assert not state.pool[b, : 3 - len(pool)].any()


def test_with_no_strength_it_is_the_mamba2_language_model():
    model = CONFIG.build().double()
    plain = Mamba2LMConfig(vocab_size=11, layer=LAYER, n_layers=4).build().double()
    plain.load_state_dict({name: t for name, t in model.state_dict().items() if not name.startswith(("writers", "own", "below"))})
    with torch.no_grad():
        for reader in (*model.own, *model.below.values()):
            reader.strength.zero_()
    ids = tokens(2, 30)
    assert torch.equal(model(ids, model.init_state(2))[0], plain(ids, plain.init_state(2))[0])


def test_chunks_are_a_matter_of_speed():
    torch.manual_seed(0)
    model = CONFIG.build().double()
    other = replace(CONFIG, chunk_size=7).build().double()
    other.load_state_dict(model.state_dict())
    ids = tokens(2, 40)
    assert_close(other(ids, other.init_state(2))[0], model(ids, model.init_state(2))[0], rtol=1e-10, atol=1e-12)


def test_layers_read_the_pools_below_and_no_others():
    assert [list(CONFIG.reads_below(i)) for i in range(4)] == [[], [0], [], [1, 2]]
    assert all(not replace(CONFIG, below_every=None).reads_below(i) for i in range(4))


def test_a_note_written_long_ago_receives_the_gradient_of_a_late_read():
    torch.manual_seed(0)
    writer, reader = NoteWriter(8, size=3, width=4, window=1, frozen=False).double(), NoteReader(8, width=4).double()
    with torch.no_grad():
        writer.worth.bias.fill_(9.0)
        reader.look.bias.fill_(9.0)
    early = torch.randn(1, 1, 8, dtype=F64, requires_grad=True)
    _, state = writer(early, writer.init_state(1))
    with torch.no_grad():
        writer.worth.bias.fill_(-9.0)  # nothing else is written
    for _ in range(5):
        _, state = writer(torch.randn(1, 6, 8, dtype=F64), state)
    late = torch.randn(1, 1, 8, dtype=F64)
    notes, _ = writer(late, state)
    read = reader(late, notes.notes, sees(notes.written, 1, 3, inclusive=False))
    wanted = (early, writer.note.weight, writer.worth.weight)
    assert all(g.abs().max() > 0 for g in torch.autograd.grad(read.square().sum(), wanted))


def test_choices_are_hard_and_their_gradient_is_the_sigmoids():
    logit = torch.tensor([-2.0, -1e-3, 1e-3, 2.0], dtype=F64, requires_grad=True)
    gate = straight_through(logit)
    assert gate.tolist() == [0.0, 0.0, 1.0, 1.0]
    s = logit.detach().sigmoid()
    assert_close(torch.autograd.grad(gate.sum(), logit)[0], s * (1 - s), rtol=1e-12, atol=0)


def test_a_frozen_choice_does_not_learn():
    model = replace(CONFIG, select="frozen").build()
    assert not any(p.requires_grad for writer in model.writers for p in writer.worth.parameters())
    assert all(p.requires_grad for writer in CONFIG.build().writers for p in writer.worth.parameters())


@pytest.mark.parametrize(
    ("change", "says"),
    [({"n_notes": 0}, "n_notes must be at least 1"), ({"below_every": 0}, "or None for no layer"), ({"vocab_size": 1}, "vocab_size")],
)
def test_a_config_that_makes_no_sense_is_refused(change, says):
    with pytest.raises(ConfigError, match=says):
        replace(CONFIG, **change)
