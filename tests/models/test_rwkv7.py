"""The RWKV-7 language model: what its layers share, its channel mixing, and what its state costs. Its equations: test_fla_weights.py."""

import pytest
import torch
from torch.testing import assert_close

from memseq.errors import ConfigError
from memseq.memories.rwkv7 import RWKV7Config
from memseq.models.rwkv7 import ChannelMixing, RWKV7LMConfig
from memseq.state import state_bytes

F64 = torch.float64
LAYER = RWKV7Config(d_model=12, n_heads=2, decay_rank=3, rate_rank=3, gate_rank=4, chunk_size=4)


def build(n_layers=3):
    """A model none of whose weights is zero."""
    model = RWKV7LMConfig(vocab_size=11, layer=LAYER, n_layers=n_layers, value_rank=3, hidden_size=20).build().double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def gate(model, logit):
    """Every layer takes its values wholly from the first (a large logit), or wholly from itself."""
    with torch.no_grad():
        for block in model.blocks[1:]:
            block.share.up.weight.zero_()
            block.share.up.bias.fill_(logit)


def test_with_shut_gates_every_layer_is_the_memory_alone():
    model, tokens = build(), torch.randint(11, (2, 9))
    gate(model, -1e3)
    x = model.first_norm(model.embedding(tokens))
    for block in model.blocks:
        x = x + block.time(block.time_norm(x), block.time.init_state(2))[0]
        u = block.channel_norm(x)
        before = torch.cat([torch.zeros_like(u[:, :1]), u[:, :-1]], dim=1)
        mixed = u + (before - u) * block.channel.mixing
        x = x + (mixed @ block.channel.up.weight.T).relu().square() @ block.channel.down.weight.T
    assert_close(model(tokens, model.init_state(2))[0], model.norm(x) @ model.output.weight.T, rtol=1e-10, atol=1e-11)


def test_with_open_gates_only_the_first_layer_has_values_of_its_own():
    model, tokens = build(), torch.randint(11, (2, 9))
    gate(model, 1e3)
    before, _ = model(tokens, model.init_state(2))
    with torch.no_grad():
        for block in model.blocks[1:]:
            block.time.value.weight.normal_()
    assert_close(model(tokens, model.init_state(2))[0], before, rtol=0, atol=0)
    with torch.no_grad():
        model.blocks[0].time.value.weight.normal_()
    assert float((model(tokens, model.init_state(2))[0] - before).abs().max()) > 1e-3


def test_upper_layers_learn_of_the_first_layers_values_directly():
    """The gradient of the first layer's values through the second's, with everything else between them cut."""
    model, tokens = build(2), torch.randint(11, (1, 5))
    with torch.no_grad():
        model.blocks[0].time.out.weight.zero_()  # what the first layer reads reaches nobody
    model(tokens, model.init_state(1))[0].square().sum().backward()
    assert float(model.blocks[0].time.value.weight.grad.abs().max()) > 1e-6
    assert float(model.blocks[0].time.key.weight.grad.abs().max()) == 0


def test_channels_of_upper_layers_look_less_far_back():
    lower, upper = ChannelMixing(16, 8, 0.0), ChannelMixing(16, 8, 0.75)
    assert_close(lower.mixing, 1 - torch.arange(16) / 16)
    assert bool((upper.mixing[1:] < lower.mixing[1:]).all())


def test_the_state_costs_what_its_docstring_says():
    model = build().float()
    with torch.no_grad():
        state = model.advance(torch.randint(11, (3, 40)), model.init_state(3))
    assert state_bytes(state) == 3 * 4 * 3 * 12 * (6 + 2)


def test_ranks_and_the_hidden_size_follow_the_paper():
    layer = RWKV7Config(d_model=1024, n_heads=16)
    block = RWKV7LMConfig(vocab_size=4, layer=layer, n_layers=2).build().blocks[1]
    assert block.share.down.out_features == 64  # 54 to the nearest multiple of 32
    assert block.channel.up.out_features == 4096


def test_numbers_that_make_no_sense_are_refused():
    for options, words in (
        ({"vocab_size": 1}, "vocab_size"),
        ({"n_layers": 0}, "n_layers must be"),
        ({"value_rank": 0}, "value_rank must"),
    ):
        with pytest.raises(ConfigError, match=words):
            RWKV7LMConfig(**{"vocab_size": 4, "layer": LAYER, "n_layers": 1, **options})
