"""The Compressive Transformer: Transformer-XL where nothing is compressed, a longer one where one is made into one."""

from dataclasses import replace

import pytest
import torch
from reading import aged, read
from torch.testing import assert_close

from memseq.errors import ConfigError
from memseq.memories.compressive import CompressiveConfig
from memseq.memories.transformer_xl import TransformerXLConfig
from memseq.models.stack import StackConfig
from memseq.state import auxiliary, stack
from memseq.training.replay import replay_backward

F64 = torch.float64
SMALL = {"d_model": 12, "n_heads": 2, "segment_length": 4}


def build(**options):
    return CompressiveConfig(**SMALL, **options).build().double()


def transformer_xl(window, like):
    memory = TransformerXLConfig(**SMALL, window=window, visible="segment").build().double()
    memory.load_state_dict({name: t for name, t in like.state_dict().items() if name.startswith("heads.")})
    return memory


@pytest.mark.parametrize("cuts", [[23], [1] * 23, [5, 11, 7]], ids=str)
def test_without_a_compressed_memory_it_is_transformer_xl(cuts):
    memory = build(window=8, compressed=0, rate=2)
    x = torch.randn(2, 23, 12, dtype=F64, requires_grad=True)
    y, _ = read(memory, x, cuts)
    expected, _ = read(transformer_xl(8, memory), x, [23])
    assert_close(y, expected, rtol=1e-10, atol=1e-12)
    found, wanted = (torch.autograd.grad(z.square().sum(), x)[0] for z in (y, expected))
    assert_close(found, wanted, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("compression", ["conv", "mean", "max"])  # the convolution starts as the mean
@pytest.mark.parametrize(("window", "compressed"), [(4, 8), (0, 12), (8, 4)])
def test_one_made_into_one_is_a_longer_cache(compression, window, compressed):
    memory = build(window=window, compressed=compressed, rate=1, compression=compression)
    x = torch.randn(2, 31, 12, dtype=F64)
    expected, _ = read(transformer_xl(12, memory), x, [31])
    assert_close(read(memory, x, [3, 20, 8])[0], expected, rtol=1e-10, atol=1e-12)


def test_what_is_kept_is_what_the_equations_say():
    memory = build(window=4, compressed=3, rate=2)
    with torch.no_grad():
        memory.convolution.weight.normal_(std=0.2)
    x = torch.randn(2, 19, 12, dtype=F64)
    state = memory.advance(x, memory.init_state(2))
    assert torch.equal(state.memory[:, 3:], x[:, 12:16])
    squeezed = memory.compress(x[:, :12])  # 6 of them, from segments 0 to 2
    assert_close(state.memory[:, :3], squeezed[:, 3:], rtol=1e-12, atol=1e-12)
    groups = x[:, :12].reshape(2, 6, 24)
    assert_close(squeezed, groups @ memory.convolution.weight.mT + memory.convolution.bias, rtol=1e-12, atol=1e-12)


def test_rows_of_different_ages_read_together_as_alone():
    memory = build(window=4, compressed=3, rate=2)
    pasts = [torch.randn(1, n, 12, dtype=F64) for n in (0, 3, 9, 17)]
    x = torch.randn(4, 7, 12, dtype=F64)
    together, _ = memory(x, stack([aged(memory, past) for past in pasts]))
    for row, past in enumerate(pasts):
        alone, _ = memory(x[row : row + 1], aged(memory, past))
        assert_close(together[row : row + 1], alone, rtol=1e-10, atol=1e-12)


def test_the_reconstruction_trains_the_compression_and_nothing_else():
    memory = build(window=4, compressed=4, rate=2).train()
    x = torch.randn(2, 16, 12, dtype=F64, requires_grad=True)
    y, state = read(memory, x, [16])
    named = dict(memory.named_parameters())
    grads = torch.autograd.grad(state.auxiliary.sum(), [x, *named.values()], allow_unused=True, retain_graph=True)
    moved = {name for name, g in zip(["x", *named], grads, strict=True) if g is not None and g.abs().sum() > 0}
    assert moved == {"convolution.weight", "convolution.bias"}
    task = torch.autograd.grad(y.square().sum(), [memory.convolution.weight], allow_unused=True)[0]
    assert task is None or task.abs().sum() == 0


def test_with_the_full_gradient_the_task_trains_the_compression():
    memory = build(window=4, compressed=4, rate=2, gradient="full", reconstruction=0.0)
    y, _ = read(memory, torch.randn(2, 16, 12, dtype=F64), [16])
    assert torch.autograd.grad(y.square().sum(), memory.convolution.weight)[0].abs().sum() > 0


def test_the_loss_of_a_model_holds_the_reconstruction_while_training_and_replay_replays_it():
    layer = CompressiveConfig(**SMALL, window=4, compressed=4, rate=2)
    model = StackConfig(vocab_size=11, d_model=12, layers=(layer, replace(layer, rate=4))).build().double()
    tokens = torch.randint(11, (2, 24))
    plain, _, after = model.eval().loss(tokens, tokens, model.init_state(2))
    assert auxiliary(after).abs().sum() == 0
    total, _, after = model.train().loss(tokens, tokens, model.init_state(2))
    assert_close(total - plain, auxiliary(after).sum(), rtol=1e-9, atol=1e-12)
    assert auxiliary(after).min() > 0
    whole = torch.autograd.grad(total, list(model.parameters()), allow_unused=True)

    class Cell:
        def loss(self, segment, state):
            loss, _, state = model.loss(segment, segment, state)
            return loss, state

        advance = staticmethod(model.advance)

    replay_backward(Cell(), tokens.split(5, dim=1), model.init_state(2))
    for p, g in zip(model.parameters(), whole, strict=True):
        assert_close(p.grad, torch.zeros_like(p) if g is None else g, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"rate": 3}, "4 inputs cannot be compressed 3 to 1"),
        ({"window": 6}, "window holds whole segments of 4, got window=6; use 8"),
        ({"compressed": -1}, "compressed must be at least 0"),
        ({"reconstruction": -1.0}, "reconstruction must be at least 0"),
    ],
)
def test_a_config_that_makes_no_sense_is_refused(change, says):
    with pytest.raises(ConfigError, match=says):
        CompressiveConfig(**SMALL, **{"window": 4, "rate": 2, **change})
