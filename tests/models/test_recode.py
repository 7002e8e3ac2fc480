"""Recode around models: the law, the model itself at step 0, slopes by differences, descent, and what it is for a matrix and an LSTM."""

from dataclasses import dataclass

import pytest
import torch
from reading import read
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint

from memseq.checking import check_memory
from memseq.errors import ConfigError
from memseq.layers.recoding import AdaptiveStep, Decoders, FixedStep, LearnedStep, Masks, Surprisal
from memseq.layers.slots import SlotsConfig
from memseq.memories.bidirectional import BidirectionalConfig
from memseq.memories.gru import GRUConfig
from memseq.memories.retnet import RetNetConfig
from memseq.memories.sliding_window import SlidingWindowConfig
from memseq.models.language_model import LanguageModel
from memseq.models.memformer import MemformerLMConfig
from memseq.models.recode import RecodeConfig
from memseq.models.recoding import RecodingConfig
from memseq.models.stack import StackConfig
from memseq.ops.decay import decay_recurrent
from memseq.ops.recurrent import lstm_cell
from memseq.pretrained import load_pretrained, save_pretrained
from memseq.state import leaf_names, rebuild, tensors

V, D = 11, 8
SIGNALS = {
    "log": Surprisal(),
    "power": Surprisal(form="power"),
    "masks": Masks(n=4, rate=0.4),
    "decoders": Decoders(n=3, prior_scale=0.6),
}


def stack(*memories):
    return StackConfig(vocab_size=V, d_model=D, layers=memories, ff_mult=1.0)


def slots():
    near, kept = SlidingWindowConfig(d_model=D, n_heads=2, window=3), SlotsConfig(d_model=D, n_heads=2, n_slots=2, segment_length=4)
    return MemformerLMConfig(vocab_size=V, d_model=D, layers=(near,), ff_mult=1.0, slots=kept)


def made(model=None, signal="log", **settings):
    torch.manual_seed(1)
    config = RecodeConfig(model=stack(GRUConfig(d_model=D)) if model is None else model, signal=SIGNALS[signal], **settings)
    recode = config.build().double().eval()
    with torch.no_grad():
        for p in recode.model.parameters():
            p.add_(0.1 * torch.randn_like(p))  # slots are not read by a new model
        recode.embedding.weight.mul_(3)
    return recode


def tokens(T=9, rows=2, seed=0):
    return torch.randint(V, (rows, T), generator=torch.Generator().manual_seed(100 * T + seed))


@pytest.mark.parametrize(
    "config",
    [
        RecodeConfig(model=stack(GRUConfig(d_model=D)), signal=Masks(n=2), step=AdaptiveStep(hidden=(5,)), most=0.1),
        RecodeConfig(model=slots(), step=FixedStep(alpha=0.5), segment_length=3, leaves=("slots",)),
        RecodeConfig(model=stack(GRUConfig(d_model=D)), signal=Decoders(n=2, prior_scale=0.3), step=LearnedStep(), segment_length=3),
    ],
    ids=["every token, entropy", "some leaves, surprisal", "a segment, entropy"],
)
def test_the_law_of_splits_for_steps_at_every_token_and_for_other_memories(config):
    report = check_memory(config, laws=["splits"], tokens=9)
    assert report.passed, f"\n{report}"


@pytest.mark.parametrize("length", [1, 4])
@pytest.mark.parametrize("signal", SIGNALS)
@pytest.mark.parametrize("model", [None, slots()], ids=["gru", "slots"])
def test_without_a_step_it_is_the_model_bit_for_bit(model, signal, length):
    recode, ids = made(model, signal, step=FixedStep(alpha=0.0), segment_length=length), tokens(12)
    with torch.no_grad():
        found, _ = recode(ids, recode.init_state(2))
        wanted, _ = read(recode.model, ids, 12 // length * [length])
    assert torch.equal(found, wanted)


@pytest.mark.parametrize("signal", SIGNALS)
def test_the_slope_is_that_of_differences(signal):
    # what a softmax holds as its reference (`peak`) is a constant to its memory's gradient: it does not move
    recode, ids = made(slots(), signal, segment_length=3, leaves=("slots", "keys", "values")), tokens(3)
    answers = tokens(3, seed=1) if recode.waits else None
    _, state = recode.model(tokens(7), recode.model.init_state(2))
    slope = recode.slope(ids, state, answers)
    assert bool((slope.lost == 0).all())
    nudge = 1e-6
    met = 0
    for i, g in zip(recode.moving, slope.gradient, strict=True):
        for place in torch.linspace(0, g[0].numel() - 1, min(7, g[0].numel())).long().tolist():
            errors = []
            for sign in (1, -1):
                leaves = [t.clone() for t in tensors(state)]
                leaves[i].view(2, -1)[:, place] += sign * nudge
                errors.append(recode.slope(ids, rebuild(state, leaves), answers).error)
            assert_close((errors[0] - errors[1]) / (2 * nudge), g.reshape(2, -1)[:, place], rtol=1e-6, atol=1e-8)
            met += int((g.reshape(2, -1)[:, place].abs() > 1e-6).sum())
    assert met > 10  # slopes that are not nothing


@pytest.mark.parametrize("signal", SIGNALS)
def test_a_small_step_lowers_the_error_of_its_own_segment(signal):
    recode, ids = made(None, signal, step=FixedStep(alpha=1e-3)), tokens(1, rows=1000)
    answers = tokens(1, rows=1000, seed=1) if recode.waits else None
    with torch.no_grad():
        _, state = recode.model(tokens(6, rows=1000), recode.model.init_state(1000))
    slope = recode.slope(ids, state, answers)
    after = recode.slope(ids, recode.moved(state, slope), answers)
    steep = sum(g.flatten(1).square().sum(1) for g in slope.gradient) > 1e-10  # enough for float64 to show a step of 1e-3 down it
    assert int(steep.sum()) > 900
    assert float((after.error < slope.error)[steep].double().mean()) >= 0.999


@pytest.mark.parametrize(("signal", "length"), [("log", 1), ("log", 3), ("masks", 3)])
def test_no_answer_reaches_its_own_prediction_and_all_reach_later_ones(signal, length):
    recode, ids = made(None, signal, step=FixedStep(alpha=2.0), segment_length=length), tokens(12)
    with torch.no_grad():
        one, plain = recode(ids, recode.init_state(2))[0], recode.model(ids, recode.model.init_state(2))[0]
        for place in range(1, 12):
            other = ids.clone()
            other[:, place] = (ids[:, place] + 1) % V
            two = recode(other, recode.init_state(2))[0]
            assert torch.equal(one[:, :place], two[:, :place])
            assert not torch.equal(one[:, place], two[:, place])
    first = length if signal == "log" else length - 1  # entropy speaks anew at the end of a segment
    assert_close(one[:, :first], plain[:, :first], rtol=1e-12, atol=1e-12)
    assert bool(((one - plain)[:, first:].abs().amax(-1) > 1e-6).all())


def test_entropy_predicts_from_the_corrected_state():
    recode, ids = made(None, "masks", step=FixedStep(alpha=1.5)), tokens(1)
    _, state = recode.model(tokens(5), recode.model.init_state(2))
    moved = recode.moved(state, recode.slope(ids, state))
    with torch.no_grad():
        found, _ = recode(ids, recode.init_state(2)._replace(before=state))
        assert torch.equal(found, recode.model(ids, moved)[0])


# ------------------------------------------------------------------------------------------------- what it is elsewhere


@dataclass(frozen=True, kw_only=True)
class SumsConfig:
    vocab_size: int = V
    d_model: int = D

    def build(self):
        return Sums(self)


class Sums(LanguageModel):
    """h_t = q_t S_t, S_t = S_{t-1} + k_t v_t: linear attention with a linear head."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.embedding = torch.nn.Embedding(V, D)
        self.parts = torch.nn.Embedding(V, 3 * D)

    def init_state(self, batch_size):
        return (torch.zeros(batch_size, 1, D, D, dtype=self.embedding.weight.dtype),)

    def features(self, tokens, state):
        q, k, v = self.parts(tokens)[:, None].chunk(3, dim=-1)
        y, S = decay_recurrent(q, k, v, torch.zeros_like(q[..., 0]), state[0])
        return y[:, 0], (S,)


@pytest.mark.parametrize("length", [1, 5])
def test_recoding_a_matrix_is_a_descent_step_of_an_associative_memory(length):
    """Keys q_i, values the words that came: the memory's loss is -log softmax((q_i S) E^T) of them, whatever the segment wrote beside."""
    torch.manual_seed(3)
    alpha = 0.7
    recode = RecodeConfig(model=SumsConfig(), step=FixedStep(alpha=alpha), segment_length=length).build().double()
    model, ids = recode.model, tokens(length + 1, seed=2)
    S = torch.randn(2, 1, D, D, dtype=torch.float64)
    start = recode.init_state(2)
    start = start._replace(before=(S,), now=(S,) if length > 1 else ())
    with torch.no_grad():
        end = recode(ids, start)[1]
        [found] = end.before  # before the last token, which opened a segment of its own
        q, k, v = model.parts(ids[:, :length])[:, None].chunk(3, dim=-1)
        written = k.mT @ v
        local = torch.stack([k[:, :, : i + 1].mT @ v[:, :, : i + 1] for i in range(length)], dim=2)  # what h_i has of the segment itself
        h = (q[..., None, :] @ (S[:, :, None] + local))[..., 0, :]
        p = (h @ model.embedding.weight.mT).softmax(-1)
        wanted = torch.nn.functional.one_hot(ids[:, 1:], V)[:, None].double()
        error = (p - wanted) @ model.embedding.weight
        memory = S - alpha / length * q.mT @ error
    assert_close(found, memory + written, rtol=1e-10, atol=1e-12)


def test_how_it_differs_from_the_source_on_an_lstm():
    """There g moves h and c after the token; here the state before it moves, which is -J J_h^T g_h of it, to first order."""
    torch.manual_seed(5)
    source = RecodingConfig(vocab_size=V, d_model=D, n_layers=1, step=FixedStep(alpha=0.0)).build().double()
    [cell] = source.cells

    @dataclass(frozen=True, kw_only=True)
    class CellConfig:
        vocab_size: int = V
        d_model: int = D

    class Cell(LanguageModel):
        config, embedding = CellConfig(), source.embedding

        def init_state(self, batch_size):
            return (torch.zeros(batch_size, D, dtype=torch.float64), torch.zeros(batch_size, D, dtype=torch.float64))

        def features(self, tokens, state):
            state = lstm_cell(cell.inputs(self.embedding(tokens[:, 0])), state, w_h=cell.w_h)
            return state[0][:, None], state

    alpha = 1e-6
    recode = RecodeConfig(model=CellConfig(), step=FixedStep(alpha=alpha)).build(Cell())
    before = tuple(torch.randn(1, D, dtype=torch.float64) for _ in range(2))
    x, gold = tokens(1, rows=1), tokens(1, rows=1, seed=1)
    slope = recode.slope(x, before, gold)
    with torch.no_grad():
        after, moved = (recode.model.features(x, state) for state in (before, recode.moved(before, slope)))
        g_h = source.error(after[0][:, 0], gold[:, 0])[1]
    J = torch.autograd.functional.jacobian(lambda h, c: torch.cat(recode.model.features(x, (h, c))[1], dim=-1), before)
    J = torch.cat([part[0, :, 0] for part in J], dim=-1)  # of (h, c) with respect to (h, c) before
    wanted = -J @ (J[:D].mT @ g_h[0])
    found = (torch.cat(moved[1], dim=-1) - torch.cat(after[1], dim=-1))[0] / alpha
    assert_close(found, wanted, rtol=1e-4, atol=1e-6)
    assert float(wanted.norm()) > 1e-3


# ---------------------------------------------------------------------------------------------------- where it can stand


def test_it_reads_under_inference_mode_and_inside_a_checkpoint():
    recode, ids = made(step=LearnedStep(), segment_length=2), tokens()
    wanted, end = recode(ids, recode.init_state(2))
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            found, state = read(recode, ids, [4, 5])
        assert_close(found, wanted, rtol=1e-10, atol=1e-12)
        assert not found.requires_grad
    weights = [recode.embedding.weight, recode.step_size.s]
    grads = torch.autograd.grad(wanted.square().sum(), weights)
    again, _ = checkpoint(recode, ids, recode.init_state(2), use_reentrant=False)
    for one, other in zip(torch.autograd.grad(again.square().sum(), weights), grads, strict=True):
        assert_close(one, other, rtol=1e-10, atol=1e-12)
        assert bool(one.abs().sum() > 0)
    assert not any(t.requires_grad for t in recode.slope(ids[:, :2], end.before, ids[:, 1:3]).gradient)


def test_no_step_is_longer_than_its_share():
    recode = made(None, step=FixedStep(alpha=1e3), most=0.01)
    _, state = recode.model(tokens(5), recode.model.init_state(2))
    state = rebuild(state, [torch.cat([t[:1], torch.zeros_like(t[1:])]) for t in tensors(state)])  # the second row holds nothing
    slope = recode.slope(tokens(1), state, tokens(1, seed=1))
    for t, m in zip(tensors(state), tensors(recode.moved(state, slope)), strict=True):
        assert_close((m - t)[0].norm(), 0.01 * t[0].norm())
        assert torch.equal(m[1], t[1])


def test_only_named_leaves_move():
    recode = made(slots(), step=FixedStep(alpha=1.0), leaves=("slots",))
    _, state = recode.model(tokens(9), recode.model.init_state(2))
    moved = recode.moved(state, recode.slope(tokens(1), state, tokens(1, seed=1)))
    names = [n for n, t, m in zip(leaf_names(state), tensors(state), tensors(moved), strict=True) if not torch.equal(t, m)]
    assert names
    assert all(name.endswith(".slots") for name in names)


def test_what_is_not_finite_is_counted_and_does_not_move():
    recode = made()
    _, state = recode.model(tokens(5), recode.model.init_state(2))
    state = rebuild(state, [torch.cat([t[:1], torch.full_like(t[1:], float("nan"))]) for t in tensors(state)])
    slope = recode.slope(tokens(1), state, tokens(1, seed=1))
    assert slope.lost.tolist() == [0, D]
    assert all(bool((g[1] == 0).all()) and bool((g[0] != 0).any()) for g in slope.gradient)


def test_decoders_learn_alone():
    recode, ids = made(None, "decoders"), tokens()
    assert float(recode.anchor_loss(100).detach()) == 0.0
    total, count, _ = recode.decoder_loss(ids[:, :-1], ids[:, 1:], recode.init_state(2))
    total.backward()
    assert int(count) == 16
    assert [name for name, p in recode.named_parameters() if p.grad is not None and bool(p.grad.any())] == [
        "decoders",
        "model.embedding.weight",
    ]


def test_a_wrapped_model_is_saved_and_loaded(tmp_path):
    recode, ids = made(slots(), "masks", step=LearnedStep(), segment_length=2), tokens()
    save_pretrained(recode, tmp_path)
    back = load_pretrained(tmp_path)
    assert back.config == recode.config
    with torch.no_grad():
        assert torch.equal(back(ids, back.init_state(2))[0], recode(ids, recode.init_state(2))[0])


def test_what_cannot_be_wrapped_says_so():
    @dataclass(frozen=True, kw_only=True)
    class NothingConfig(SumsConfig):
        def build(self):
            return Nothing(self)

    class Nothing(Sums):
        def init_state(self, batch_size):
            return (torch.zeros(batch_size, dtype=torch.int64),)

    with pytest.raises(ConfigError, match="the state of Nothing holds no floating numbers"):
        RecodeConfig(model=NothingConfig()).build()
    with pytest.raises(ConfigError, match=r"no leaf of the state of Stack is called 'slot'"):
        RecodeConfig(model=stack(GRUConfig(d_model=D)), leaves=("slot",)).build()
    with pytest.raises(ConfigError, match="GRUConfig is no language model's config"):
        RecodeConfig(model=GRUConfig(d_model=D))
    with pytest.raises(ConfigError, match="is not the one of this config"):
        RecodeConfig(model=stack(GRUConfig(d_model=D))).build(stack(RetNetConfig(d_model=D, n_heads=2)).build())
    with pytest.raises(ConfigError, match="surprisal is of the tokens that came"):
        made().slope(tokens(1), made().model.init_state(2))
    with pytest.raises(ConfigError, match="Surprisal has no decoders"):
        made().anchor_loss(10)
    for wrong in ({"segment_length": 0}, {"most": 0.0}):
        with pytest.raises(ConfigError):
            RecodeConfig(model=stack(GRUConfig(d_model=D)), **wrong)
    with pytest.raises(ConfigError, match="sees later tokens"):
        RecodeConfig(model=stack(BidirectionalConfig(memory=GRUConfig(d_model=D)))).build()
