"""The Mamba-2 language model: its loss is its logits', tied or not."""

import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close

from memseq.errors import ConfigError
from memseq.memories.mamba2 import Mamba2Config
from memseq.models.mamba2 import Mamba2LMConfig

LAYER = Mamba2Config(d_model=16, head_size=8, state_size=4)


@pytest.mark.parametrize("tied", [True, False])
def test_its_loss_is_that_of_its_logits(tied):
    model = Mamba2LMConfig(vocab_size=13, layer=LAYER, n_layers=2, tied=tied).build().double()
    tokens, targets = torch.randint(13, (2, 2, 9))
    targets[0, :3] = -100
    total, count, _ = model.loss(tokens, targets, model.init_state(2))
    expected = F.cross_entropy(model(tokens, model.init_state(2))[0].flatten(0, 1), targets.flatten(), reduction="sum")
    assert_close(total, expected, rtol=1e-10, atol=1e-12)
    assert int(count) == 15
    total.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def test_the_residual_stream_is_float32_where_the_weights_are_not():
    torch.manual_seed(0)
    model = Mamba2LMConfig(vocab_size=13, layer=LAYER, n_layers=6).build()
    rough = Mamba2LMConfig(vocab_size=13, layer=LAYER, n_layers=6).build()
    rough.load_state_dict(model.state_dict())
    rough, tokens, seen = rough.bfloat16(), torch.randint(13, (2, 50)), []
    rough.norms[3].register_forward_hook(lambda module, given, out: seen.append(given[0].dtype))
    with torch.no_grad():
        found, _ = rough(tokens, rough.init_state(2))
        exact, _ = model(tokens, model.init_state(2))
    assert seen == [torch.float32]
    assert float((found - exact).norm() / exact.norm()) < 0.03


def test_it_has_one_layer_at_least():
    with pytest.raises(ConfigError, match="n_layers at least 1, got vocab_size=13, n_layers=0"):
        Mamba2LMConfig(vocab_size=13, layer=LAYER, n_layers=0)
