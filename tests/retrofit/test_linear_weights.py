"""Weights of transformers' Mamba-2 and Qwen3-Next, and its torch reference of the gated delta rule, beside ours."""

import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close

from memseq.errors import ConfigError
from memseq.ops.linear_attention import decay_chunkwise, delta_chunkwise

pytest.importorskip("transformers")

from transformers import Mamba2Config, Mamba2ForCausalLM, Qwen3NextConfig
from transformers.models.mamba2.modeling_mamba2 import mamba2_chunk_scan
from transformers.models.qwen3_next.modeling_qwen3_next import (
    Qwen3NextGatedDeltaNet,
    torch_chunk_gated_delta_rule,
    torch_recurrent_gated_delta_rule,
)

from memseq.retrofit.linear_weights import from_mamba2, from_qwen3_next_layer


def mamba2(**changes):
    shape = {"vocab_size": 50, "hidden_size": 32, "num_heads": 8, "head_dim": 8, "state_size": 16, "num_hidden_layers": 2}
    model = Mamba2ForCausalLM(Mamba2Config(**{**shape, "n_groups": 1, "chunk_size": 16, **changes})).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # so that no norm is all ones and no bias all zeros
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"n_groups": 2, "use_bias": True, "tie_word_embeddings": True},
        {"use_conv_bias": False, "time_step_limit": (0.01, 0.06)},
    ],
    ids=["plain", "groups, biases, tied", "limits"],
)
def test_mamba2_gives_the_same_logits(changes):
    torch.manual_seed(0)
    theirs = mamba2(**changes)
    ours, tokens = from_mamba2(theirs), torch.randint(50, (2, 37))
    with torch.no_grad():
        expected = theirs(tokens).logits
        logits, _ = ours(tokens, ours.init_state(2))
        first, state = ours(tokens[:, :20], ours.init_state(2))
        rest, _ = ours(tokens[:, 20:], state)
    assert_close(logits, expected, rtol=1e-4, atol=1e-4)
    assert_close(torch.cat([first, rest], dim=1), expected, rtol=1e-4, atol=1e-4)
    assert not ours.training
    assert {id(p) for p in ours.parameters()}.isdisjoint(id(p) for p in theirs.parameters())


@pytest.mark.parametrize("n_value_heads", [2, 4])
def test_qwen3_next_gives_the_same_features(n_value_heads):
    torch.manual_seed(0)
    config = Qwen3NextConfig(
        hidden_size=32,
        num_hidden_layers=1,
        layer_types=["linear_attention"],
        linear_num_value_heads=n_value_heads,
        linear_num_key_heads=2,
        linear_key_head_dim=8,
        linear_value_head_dim=6,
    )
    theirs = Qwen3NextGatedDeltaNet(config, 0).eval()
    torch.nn.init.normal_(theirs.norm.weight)
    ours, x = from_qwen3_next_layer(theirs), torch.randn(2, 70, 32)
    with torch.no_grad():
        assert_close(ours(x, ours.init_state(2))[0], theirs(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("theirs", [torch_chunk_gated_delta_rule, torch_recurrent_gated_delta_rule])
def test_the_gated_delta_rule_is_that_of_transformers(theirs):
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, 100, 3, 16)
    g, beta, S = -torch.rand(2, 100, 3), torch.rand(2, 100, 3), torch.randn(2, 3, 16, 16)
    k = F.normalize(k, dim=-1)
    expected, last = theirs(q, k, v, g, beta, initial_state=S, output_final_state=True)
    y, end = delta_chunkwise(*(z.transpose(1, 2) for z in (q / 4, k, v, beta, g)), S)
    assert_close(y.transpose(1, 2), expected, rtol=1e-4, atol=1e-4)
    assert_close(end, last, rtol=1e-4, atol=1e-4)


def test_the_scan_of_mamba2_is_that_of_transformers():
    torch.manual_seed(0)
    u, d, A = torch.randn(2, 100, 4, 8), 0.1 * torch.rand(2, 100, 4), -torch.rand(4) * 8
    key, query, h = torch.randn(2, 100, 2, 16), torch.randn(2, 100, 2, 16), torch.randn(2, 4, 8, 16)
    expected, last = mamba2_chunk_scan(u, d, A, key, query, chunk_size=32, initial_states=h, return_final_states=True)
    written = (u * d[..., None]).transpose(1, 2)
    y, end = decay_chunkwise(query.transpose(1, 2), key.transpose(1, 2), written, (d * A).transpose(1, 2), h.mT.contiguous())
    assert_close(y.transpose(1, 2), expected, rtol=1e-4, atol=1e-4)
    assert_close(end.mT, last, rtol=1e-4, atol=1e-4)


def test_another_model_is_refused_by_name():
    with pytest.raises(ConfigError, match="reads the weights of a transformers Mamba2ForCausalLM, got Linear"):
        from_mamba2(torch.nn.Linear(2, 2))
