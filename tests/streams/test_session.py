"""A session is its stream: however it is read, stopped, saved, forked and continued, it says the same."""

import copy

import pytest
import torch
from torch.testing import assert_close

from memseq.errors import ConfigError, DataError, InputError, StateError
from memseq.state import load_state, save_state, tensors
from memseq.streams import Session, generate
from memseq.tasks.tokenizers import BPE, Bytes

HOW = {"temperature": 0.9, "top_p": 0.95, "top_k": 9}


def ids(n, vocab=11, seed=0):
    return torch.randint(vocab, (n,), generator=torch.Generator().manual_seed(seed))


def same(a, b):
    """Bit for bit."""
    assert a.tokens_seen == b.tokens_seen
    assert torch.equal(a.logits, b.logits)
    assert all(torch.equal(x, y) for x, y in zip(tensors(a.state), tensors(b.state), strict=True))


def test_any_way_of_reading_is_the_whole_read(model):
    tokens = ids(23)
    expected, _ = model(tokens[None], model.init_state(1))
    ways = [
        tokens,
        tokens.tolist(),
        tokens.numpy(),
        iter(tokens.tolist()),
        iter(tokens.numpy()),
        tokens.split(5),
        (t for t in tokens.split([1, 20, 2])),
        iter([*tokens[:7].tolist(), tokens[7:20], *tokens[20:].tolist()]),
        iter([tokens[:0], tokens, []]),
    ]
    for way in ways:
        session = Session(model, chunk_size=4)
        assert session.read(way) == 23 == session.tokens_seen
        assert_close(session.logits, expected[:, -1], rtol=1e-10, atol=1e-12)


def test_reading_in_turns_is_reading_at_once(model):
    whole, turns = Session(model), Session(model)
    whole.read(ids(9))
    assert [turns.read(part) for part in ids(9).split([4, 1, 4])] == [4, 1, 4]
    assert_close(turns.logits, whole.logits, rtol=1e-10, atol=1e-12)


def test_nothing_to_read_is_no_turn(gru):
    session = Session(gru(), tokenizer=None, undo_turns=3)
    session.read([1, 2])
    for nothing in ([], iter([]), torch.empty(0, dtype=torch.int64)):
        assert session.read(nothing) == 0
    session.undo()
    assert session.tokens_seen == 0


def test_generation_in_pieces_is_generation_at_once(model):
    whole, pieces, iterator = Session(model, seed=3), Session(model, seed=3), Session(model, seed=3)
    for session in (whole, pieces, iterator):
        session.read(ids(5))
    expected = whole.generate(20, **HOW)
    assert pieces.generate(7, **HOW) + pieces.generate(0, **HOW) + pieces.generate(13, **HOW) == expected
    endless = iterator.tokens(**HOW)
    assert [next(endless) for _ in range(8)] == expected[:8]
    assert iterator.tokens_seen == 13
    assert [next(endless) for _ in range(12)] == expected[8:]
    same(pieces, whole)
    same(iterator, whole)
    assert len(set(expected)) > 2, "the toy says always the same: the test shows nothing"


def test_what_is_generated_is_what_is_read(model):
    said, read = Session(model), Session(model)
    said.read(ids(5))
    text = said.generate(9, **HOW)
    read.read(torch.tensor([*ids(5).tolist(), *text]))
    assert_close(read.logits, said.logits, rtol=1e-10, atol=1e-12)


def test_greedy_is_the_argmax(model):
    session = Session(model)
    session.read(ids(6))
    tokens = ids(6).tolist()
    for _ in range(8):
        tokens.append(int(model(torch.tensor([tokens]), model.init_state(1))[0][0, -1].argmax()))
    assert session.generate(8, temperature=0.0) == tokens[6:]


def test_saved_and_loaded_is_never_stopped(model, tmp_path):
    path = tmp_path / "stream.safetensors"
    session = Session(model, seed=5)
    session.read(ids(7))
    session.generate(3, **HOW)
    session.save(path)
    loaded = Session.load(path, model)
    same(loaded, session)
    assert loaded.seed == 5
    assert loaded.generate(12, **HOW) == session.generate(12, **HOW)  # from zero new tokens
    loaded.read(ids(4, seed=9))
    session.read(ids(4, seed=9))
    same(loaded, session)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_logits_survive_a_file_in_every_dtype(gru, tmp_path, dtype):
    model = gru().to(dtype)
    session = Session(model)
    session.read(ids(7))
    session.save(tmp_path / "s")
    same(Session.load(tmp_path / "s", model), session)
    assert Session.load(tmp_path / "s", model).logits.dtype == dtype


def test_a_stream_that_has_read_nothing_can_be_saved(gru, tmp_path):
    model = gru()
    Session(model).save(tmp_path / "s")
    loaded = Session.load(tmp_path / "s", model)
    assert loaded.logits is None
    assert loaded.tokens_seen == 0


def test_a_session_file_is_a_state_file(gru, tmp_path):
    model = gru()
    session = Session(model)
    session.read(ids(7))
    session.save(tmp_path / "s")
    assert torch.equal(load_state(tmp_path / "s", model).h, session.state.h)


def test_forks_go_their_own_ways(model):
    parent = Session(model, seed=2)
    parent.read(ids(8))
    before = [t.clone() for t in tensors(parent.state)]
    forks = parent.fork(3)
    texts = [fork.generate(15, **HOW) for fork in forks]
    assert all(torch.equal(a, b) for a, b in zip(before, tensors(parent.state), strict=True)), "a fork changed its parent"
    assert parent.tokens_seen == 8
    assert parent.generate(15, **HOW) == texts[0] != texts[1]
    assert parent.fork(2)[1].generate(0) == []
    a, b = parent.fork(2)
    assert a.generate(9, seed=7, **HOW) == b.generate(9, seed=7, **HOW)


def test_undo_takes_back_one_turn_and_the_next_says_the_same(model):
    session = Session(model, undo_turns=2)
    session.read(ids(8))
    at = session.fork(1)[0]
    said = session.generate(6, **HOW)
    session.undo()
    same(session, at)
    assert session.generate(6, **HOW) == said
    session.read([1, 2, 3])
    session.undo()
    session.undo()
    same(session, at)
    with pytest.raises(StateError, match="no turn to take back"):
        session.undo()


def test_generation_that_is_broken_off_is_one_turn(gru):
    session = Session(gru())
    session.read(ids(4))
    tokens = session.tokens(**HOW)
    next(tokens), next(tokens)
    assert session.tokens_seen == 6
    session.undo()
    assert session.tokens_seen == 4


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_a_source_that_breaks_leaves_what_it_gave(gru, error):
    def source():
        yield from ids(10).split(3)
        raise error("the line went dead")

    model = gru()
    session, expected = Session(model), Session(model)
    with pytest.raises(error, match="went dead"):
        session.read(source())
    expected.read(ids(10).split(3))
    same(session, expected)
    session.undo()
    assert session.tokens_seen == 0


def test_a_wrong_id_in_a_list_leaves_the_stream_as_it_was(gru):
    session = Session(gru(), chunk_size=2)
    with pytest.raises(InputError, match="0 to 10, got 99"):
        session.read([1, 2, 3, 4, 5, 99])
    assert session.tokens_seen == 0
    with pytest.raises(InputError, match="got 99"):
        session.read(iter([[1, 2], [3, 99], [4]]))
    assert session.tokens_seen == 2


def test_the_model_and_the_caller_keep_their_modes(gru):
    model = gru(dropout=0.5).train()
    model.head.eval()
    session, again = Session(model), Session(model)
    session.read(ids(9))
    again.read(ids(9))
    same(session, again)  # no dropout while reading
    tokens = session.tokens(**HOW)
    next(tokens)
    assert torch.is_grad_enabled()
    assert model.training
    assert model.gru.training
    assert not model.head.training
    assert not any(t.requires_grad or t.is_inference() for t in tensors(session.state))


def test_bytes_held_are_constant(gru):
    session = Session(gru())
    sizes = set()
    for _ in range(5):
        session.read(ids(500))
        sizes.add(session.state_bytes)
    assert len(sizes) == 1
    assert f"state_bytes={session.state_bytes}" in repr(session)


def test_text_in_and_text_out(gru):
    model, text = gru(vocab_size=256), "Straße, 東京 and 🙂"
    whole, chunks, raw = (Session(model, tokenizer=Bytes()) for _ in range(3))
    assert whole.read(text) == len(text.encode())
    chunks.read(iter(text))  # single characters, of one to four bytes
    raw.read(text.encode()[i : i + 1] for i in range(len(text.encode())))
    for session in (chunks, raw):
        assert_close(session.logits, whole.logits, rtol=1e-10, atol=1e-12)
    alone = Session(model, tokenizer=None)
    alone.read(torch.tensor(list(text.encode())))
    assert_close(alone.logits, whole.logits, rtol=1e-10, atol=1e-12)
    tokens = alone.generate(300, temperature=3.0)
    assert whole.generate(300, temperature=3.0) == Bytes().decode(tokens)  # bytes by chance: broken characters of every kind
    assert len(list(chunks.stream(50))) > 1


@pytest.mark.parametrize("text", ["Straße, 東京 and 🙂", "plain", "\ufffd"])
def test_text_comes_out_in_whole_characters(gru, text):
    """A model that says given bytes: no piece of the stream shows half a character."""
    tokens = list(text.encode())
    model = gru(vocab_size=256)
    model.step = lambda token, state: (_likes(tokens[int(state.seen) % len(tokens)]), model(token[:, None], state)[1])
    session = Session(model, tokenizer=Bytes())
    session.read(tokens[-1:])
    pieces = list(session.stream(2 * len(tokens), temperature=0.0))
    assert "".join(pieces) == 2 * text
    assert len(pieces) == 2 * len(text)


def _likes(token):
    logits = torch.zeros(1, 256, dtype=torch.float64)
    logits[0, token] = 9.0
    return logits


def test_generation_ends_at_a_stop(gru):
    tokens = list(b"one two. three. ")
    model = gru(vocab_size=256)
    model.step = lambda token, state: (_likes(tokens[int(state.seen + 1) % len(tokens)]), model(token[:, None], state)[1])

    def said(stop):
        session = Session(model, tokenizer=Bytes())
        session.read(tokens[:1])
        text = session.generate(40, temperature=0.0, stop=stop)
        assert session.tokens_seen == 1 + len(text)
        return text

    assert said(ord("w")) == "ne tw"
    assert said([ord("z"), ord(".")]) == "ne two."
    assert said("th") == "ne two. th"
    assert said(["never", ". t", ord("h")]) == "ne two. t"
    assert said(()) == (bytes(tokens) * 3)[1:41].decode()


def test_bpe_in_chunks_is_bpe_at_once(gru):
    text = "the quick brown fox jumps over the lazy dog. " * 20
    tokenizer = BPE.train([text.encode()], vocab_size=300)
    model = gru(vocab_size=300)
    whole, chunks = (Session(model, tokenizer=tokenizer) for _ in range(2))
    whole.read(text)
    chunks.read(text[i : i + 7] for i in range(0, len(text), 7))
    assert whole.tokens_seen == chunks.tokens_seen < len(text)
    assert_close(chunks.logits, whole.logits, rtol=1e-10, atol=1e-12)
    assert whole.generate(30, temperature=0.5) == tokenizer.decode(list(chunks.tokens(30, temperature=0.5)))


def test_a_batch_says_what_each_would_say_alone(model):
    prompts = [ids(n, seed=n) for n in (3, 9, 1, 3)]
    made = generate(model, prompts, 14, seed=4, stop=[2, 5], **HOW)
    for row, prompt in enumerate(prompts):
        session = Session(model, seed=4 + row)
        session.read(prompt)
        assert session.generate(14, stop=[2, 5], **HOW) == made.tokens[row]
        assert_close(made.logits[row], session.logits[0], rtol=1e-10, atol=1e-12)
    assert len({len(tokens) for tokens in made.tokens}) > 1, "no row stopped early: the test shows nothing"
    read = [torch.tensor([*p.tolist(), *t]) for p, t in zip(prompts, made.tokens, strict=True)]
    more = generate(model, [[1]] * 4, 3, states=made.state, temperature=0.0)
    fresh = generate(model, [torch.cat([r, torch.tensor([1])]) for r in read], 3, temperature=0.0)
    assert more.tokens == fresh.tokens


def test_a_batch_of_texts(gru):
    made = generate(gru(vocab_size=256), ["a", b"longer"], 5, tokenizer=Bytes(), temperature=0.0)
    assert [len(tokens) for tokens in made.tokens] == [5, 5]
    assert generate(gru(vocab_size=256), [[1], [2]], 0).tokens == [[], []]


def test_a_file_of_another_model_is_refused(gru, tmp_path):
    model, path = gru(), tmp_path / "s"
    session = Session(model, tokenizer=Bytes())
    session.read(ids(3))
    session.save(path)
    with pytest.raises(StateError, match="state of another model"):
        Session.load(path, gru(d_model=16))
    retrained = copy.deepcopy(model)
    with torch.no_grad():
        retrained.head.weight.mul_(1.01)
    with pytest.raises(StateError, match="other weights of this model"):
        Session.load(path, retrained)
    with pytest.raises(StateError, match="another tokenizer"):
        Session.load(path, model, BPE.train([b"some text"], vocab_size=257))
    with pytest.raises(StateError, match="there is no state at"):
        Session.load(tmp_path / "missing", model)
    data = path.read_bytes()
    for size in (0, 5, len(data) // 2, len(data) - 1):
        (tmp_path / "cut").write_bytes(data[:size])
        with pytest.raises(StateError, match="truncated"):
            Session.load(tmp_path / "cut", model)
    save_state(session.state, tmp_path / "bare", model=model)
    with pytest.raises(StateError, match=r"without a session; open it with Session\(model, load_state"):
        Session.load(tmp_path / "bare", model)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda m: Session(m, m.init_state(3)), StateError, "holds 3; take one"),
        (lambda m: Session(m, chunk_size=0), ConfigError, "chunk_size=0"),
        (lambda m: Session(m, undo_turns=-1), ConfigError, "undo_turns=-1"),
        (lambda m: Session(m, seed=-1), ConfigError, "seed=-1"),
        (lambda m: Session(m).generate(3), StateError, "nothing was read yet"),
        (lambda m: Session(m).read("text"), InputError, "no tokenizer to read text"),
        (lambda m: Session(m).read(iter([3, 4.5])), InputError, "features of one sequence"),
        (lambda m: Session(m).stream(3), InputError, "no tokenizer to turn tokens"),
        (lambda m: Session(m).tokens(-1), ConfigError, "n=-1"),
        (lambda m: Session(m).tokens(0, stop="end"), InputError, "stop='end' is a text"),
        (lambda m: Session(m).tokens(0, stop=[""]), ConfigError, "non-empty texts"),
        (lambda m: Session(m).tokens(0, temperature=-1.0), ConfigError, "temperature=-1"),
        (lambda m: Session(m).undo(), StateError, "no turn to take back"),
        (lambda m: Session(m).fork(0), ConfigError, "fork"),
        (lambda m: Session(m, tokenizer=Bytes()).read(iter(["", 3])), InputError, "goes on as text, got int"),
        (lambda m: Session(m, tokenizer=Bytes()).read("a\ud800"), InputError, "lone surrogate"),
        (lambda m: generate(m, [[1], []], 3), InputError, "prompt 1 is empty"),
        (lambda m: generate(m, ["text"], 3), InputError, "prompt 0 is a text"),
        (lambda m: generate(m, [[1]], -3), ConfigError, "n=-3"),
    ],
)
def test_errors_say_what_was_given(gru, call, error, words):
    with pytest.raises(error, match=words):
        call(gru())


def test_text_a_tokenizer_cannot_read_says_where(gru):
    tokenizer = BPE.train([b"plain text"], vocab_size=257)
    with pytest.raises(DataError, match="0xff"):
        Session(gru(vocab_size=257), tokenizer=tokenizer).read([b"good \xff bad"])
