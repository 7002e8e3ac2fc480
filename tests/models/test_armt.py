"""ARMT: the equations of the sheet as scalar loops over a written-out GPT-2, and what it is before it has learned anything."""

import pytest
import torch
from torch.testing import assert_close
from transformers import AutoModelForCausalLM, GPT2Config

from memseq.errors import ConfigError
from memseq.memories.gru import GRUConfig
from memseq.memories.segment_attention import SegmentAttentionConfig
from memseq.models.armt import ARMTConfig
from memseq.models.rmt import RMTConfig
from memseq.models.stack import StackConfig
from memseq.retrofit import HuggingFaceBackbone, HuggingFaceConfig

V, D, L, N, M, NU = 13, 16, 4, 2, 3, 2
GPT2 = GPT2Config(vocab_size=V, n_embd=D, n_layer=2, n_head=2, n_positions=16)
TIGHT = {"rtol": 1e-9, "atol": 1e-11}


def phi(a):
    u = torch.cat([a.relu(), (-a).relu()])
    return torch.cat([u * torch.cat([u[-j:], u[:-j]]) for j in range(1, NU + 1)])


def generic(model):
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return model.double().eval()


@torch.no_grad()
def test_it_is_the_papers_equations_vector_by_vector():
    """One stream, four segments: every read and write of A and z as a loop over vectors, layers of GPT-2 called one by one."""
    torch.manual_seed(0)
    hub = generic(AutoModelForCausalLM.from_config(GPT2))
    config = ARMTConfig(backbone=HuggingFaceConfig.of(hub), n_slots=N, segment_length=L, key_size=M, nu=NU)
    model = generic(config.build(HuggingFaceBackbone(hub)))
    tokens = torch.randint(V, (1, 4 * L))
    transformer, eps, F = hub.transformer, 1e-5, 2 * NU * M
    A = [torch.zeros(F, D, dtype=torch.float64) for _ in range(2)]
    z = [torch.zeros(F, dtype=torch.float64) for _ in range(2)]
    wanted = []
    for s, segment in enumerate(tokens.split(L, dim=1)):
        x = torch.cat([transformer.wte(segment), model.slots[None]], dim=1) + transformer.wpe(torch.arange(L + N))
        for layer, block in enumerate(transformer.h):
            assoc = model.associations[layer]
            if s > 0:  # from the second segment on
                for t in range(L + N):
                    q = phi(assoc.query.weight @ x[0, t])
                    x[0, t] += (q @ A[layer]) / (q @ z[layer] + eps)
            x = block(x)
            new_A, new_z = A[layer].clone(), z[layer].clone()
            for m in x[0, L:]:
                k, v = phi(assoc.key.weight @ m), assoc.value.weight @ m
                beta = torch.sigmoid(assoc.beta.weight[0] @ m + assoc.beta.bias[0])
                old = (k @ A[layer]) / (k @ z[layer] + eps) if s > 0 else torch.zeros_like(v)
                gamma = (1 - (z[layer] @ k) / (k @ k + eps)).clamp(0, 1) if s > 0 else 1.0
                new_A += beta * torch.outer(k, v - old)
                new_z += gamma * k
            A[layer], z[layer] = new_A, new_z
        wanted.append(hub.lm_head(transformer.ln_f(x))[:, :L])
    logits, state = model(tokens, model.init_state(1))
    assert_close(logits, torch.cat(wanted, dim=1), **TIGHT)
    assert_close(state.matrices[0], torch.stack(A), **TIGHT)
    assert_close(state.norms[0], torch.stack(z), **TIGHT)


@torch.no_grad()
def test_before_it_has_learned_it_is_its_backbone():
    layer = SegmentAttentionConfig(d_model=D, n_heads=2, segment_length=L + N)
    backbone = StackConfig(vocab_size=V, d_model=D, layers=2 * (layer,))
    torch.manual_seed(0)
    model = ARMTConfig(backbone=backbone, n_slots=N, segment_length=L, key_size=M).build().double()
    alone = RMTConfig(backbone=backbone, n_slots=0, segment_length=L).build(model.backbone).double()
    tokens = torch.randint(V, (2, 4 * L))
    logits, state = model(tokens, model.init_state(2))
    assert_close(logits, alone(tokens, alone.init_state(2))[0], rtol=1e-12, atol=1e-12)
    assert state.norms.abs().max() > 0  # keys were written, with values of zero
    assert not state.matrices.any()


def test_every_layer_has_a_matrix_of_its_own_and_rows_do_not_share_theirs():
    torch.manual_seed(0)
    layer = SegmentAttentionConfig(d_model=D, n_heads=2, segment_length=L + N)
    model = generic(ARMTConfig(backbone=StackConfig(vocab_size=V, d_model=D, layers=3 * (layer,)), n_slots=N, segment_length=L).build())
    state = model.advance(torch.randint(V, (2, L)), model.init_state(2))
    assert state.matrices.shape == (2, 3, model.config.features, D)
    flat = state.matrices.flatten(0, 1)
    assert all((a - b).abs().max() > 1e-6 for i, a in enumerate(flat) for b in flat[:i])


def test_errors_say_what_to_do():
    backbone = StackConfig(vocab_size=V, d_model=D, layers=(GRUConfig(d_model=D),))
    with pytest.raises(ConfigError, match=r"use at least 1, or RMTConfig\(n_slots=0\)"):
        ARMTConfig(backbone=backbone, n_slots=0)
    with pytest.raises(ConfigError, match=r"nu=6 must lie in 1 to 2 key_size - 1 = 5"):
        ARMTConfig(backbone=backbone, key_size=3, nu=6)
    with pytest.raises(ConfigError, match="takes no mask; use mask='causal'"):
        ARMTConfig(backbone=backbone, mask="paper").build()
    with pytest.raises(ConfigError, match="mask must be"):
        ARMTConfig(backbone=backbone, mask="none")
