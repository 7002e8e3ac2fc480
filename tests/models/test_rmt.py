"""RMT: the official loops written out on copied weights, the mask of the paper, and what its parts reduce to."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close
from transformers import AutoModelForCausalLM, LlamaConfig

from memseq.errors import ConfigError
from memseq.memories.attention import AttentionConfig
from memseq.memories.compressive import CompressiveConfig
from memseq.memories.gru import GRUConfig
from memseq.memories.segment_attention import SegmentAttentionConfig
from memseq.models.presets import preset
from memseq.models.rmt import RMTConfig
from memseq.models.stack import StackConfig
from memseq.retrofit import HuggingFaceBackbone, HuggingFaceConfig
from memseq.training import Segment, StreamCell, replay_backward

V, D, L, N = 13, 16, 5, 3
LLAMA = LlamaConfig(vocab_size=V, hidden_size=D, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1)
TIGHT = {"rtol": 1e-10, "atol": 1e-12}


def stack(length=L + 2 * N, layers=2, dropout=0.0):
    layer = SegmentAttentionConfig(d_model=D, n_heads=2, segment_length=length)
    return StackConfig(vocab_size=V, d_model=D, layers=layers * (layer,), dropout=dropout)


def built(config):
    torch.manual_seed(0)
    model = config.build().double().eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return model


@pytest.mark.parametrize("mask", ["causal", "paper"])
def test_it_is_the_official_loop_around_a_pretrained_model(mask):
    """The wrapper of 2304.11062: [memory; embeddings; memory] as inputs_embeds, the last hidden states at the end are the memory."""
    torch.manual_seed(1)
    hub = AutoModelForCausalLM.from_config(LLAMA).double().eval()
    config = RMTConfig(backbone=HuggingFaceConfig.of(hub), n_slots=N, segment_length=L, mask=mask)
    model = config.build(HuggingFaceBackbone(hub)).double().eval()
    tokens = torch.randint(V, (2, 4 * L))
    length = L + 2 * N
    allowed = torch.ones(length, length).tril().bool()
    if mask == "paper":  # 0-based rows i see columns j: reads see all reads, writes all of everything
        allowed[:N, :N] = True
        allowed[-N:, -N:] = True
    memory, wanted = model.initial.expand(2, -1, -1), []
    for segment in tokens.split(L, dim=1):
        embeds = torch.cat([memory, hub.get_input_embeddings()(segment), memory], dim=1)
        out = hub(inputs_embeds=embeds, attention_mask=allowed[None, None].expand(2, -1, -1, -1), output_hidden_states=True)
        memory = out.hidden_states[-1][:, -N:]
        wanted.append(out.logits[:, N:-N])
    logits, state = model(tokens, model.init_state(2))
    assert_close(logits, torch.cat(wanted, dim=1), **TIGHT)
    assert_close(state.memory, memory, **TIGHT)


def test_on_a_stack_the_mask_is_the_papers():
    """One segment through the blocks, by hand: attention with the mask of LM-RMT, positions over the whole row."""
    model = built(RMTConfig(backbone=stack(), n_slots=N, segment_length=L))
    tokens = torch.randint(V, (2, 3 * L))
    net = model.backbone.stack
    length = L + 2 * N
    seen = torch.zeros(length, length, dtype=torch.bool)
    for i in range(length):
        for j in range(length):
            both_read, both_write = i < N and j < N, i >= N + L and j >= N + L
            seen[i, j] = j <= i or both_read or both_write
    memory, wanted = model.initial.expand(2, -1, -1), []
    for segment in tokens.split(L, dim=1):
        x = torch.cat([memory, net.embedding(segment), memory], dim=1)
        for block in net.blocks:
            heads = block.memories[0].heads
            q, k, v = heads(block.norms[0](x), torch.arange(length))
            weights = (q @ k.mT / (D // 2) ** 0.5).masked_fill(~seen, -torch.inf).softmax(-1)
            x = x + heads.write(weights @ v)
            x = x + block.ff(block.ff_norm(x))
        h = net.norm(x)
        memory = h[:, -N:]
        wanted.append(model.head(h[:, N:-N]))
    logits, state = model(tokens, model.init_state(2))
    assert_close(logits, torch.cat(wanted, dim=1), **TIGHT)
    assert_close(state.memory, memory, **TIGHT)


@pytest.mark.parametrize("backbone", [stack(L), HuggingFaceConfig.of(LLAMA)], ids=["stack", "llama"])
def test_without_slots_it_is_the_backbone_segment_by_segment(backbone):
    model = built(RMTConfig(backbone=backbone, n_slots=0, segment_length=L))
    tokens = torch.randint(V, (2, 3 * L + 2))
    logits, _ = model(tokens, model.init_state(2))
    for i, segment in enumerate(tokens.split(L, dim=1)):
        h, _ = model.backbone.read(model.backbone.embed(segment), None)
        assert_close(logits[:, i * L : i * L + segment.shape[1]], model.head(h), **TIGHT)


def test_the_write_changes_nothing_that_tokens_see_and_the_read_everything():
    model = built(RMTConfig(backbone=stack(), n_slots=N, segment_length=L))
    tokens = torch.randint(V, (1, L))
    whole = model(tokens, model.init_state(1))[0]
    short = model(tokens[:, :-1], model.init_state(1))[0]  # the segment stays open: no write block was read
    assert_close(whole[:, :-1], short, **TIGHT)
    state = model.init_state(1)
    other = state._replace(memory=torch.randn_like(state.memory))
    assert bool(((model(tokens, other)[0] - whole).abs().amax(-1) > 1e-6).all())


def test_the_initial_memory_learns_through_every_segment():
    model = built(RMTConfig(backbone=stack(), n_slots=N, segment_length=L))
    tokens = torch.randint(V, (4, 2, L))
    segments = [Segment(t, t.roll(1, 1) if i == 3 else torch.full_like(t, -100), torch.zeros(2).bool()) for i, t in enumerate(tokens)]
    replay_backward(StreamCell(model), segments, model.init_state(2))
    grad = model.initial.grad
    total, state = 0.0, model.init_state(2)
    for segment in segments:
        loss, state = StreamCell(model).loss(segment, state)
        total = total + loss
    assert grad.abs().max() > 1e-9  # the loss is four segments away
    assert_close(grad, torch.autograd.grad(total, model.initial)[0], rtol=1e-9, atol=1e-15)


def test_a_normed_feed_does_not_ask_how_long_a_vector_is():
    model = built(RMTConfig(backbone=stack(), n_slots=N, segment_length=L, feed="normed"))
    tokens, state = torch.randint(V, (1, L)), model.init_state(1)
    longer = state._replace(memory=1000 * state.memory)
    assert_close(model(tokens, longer)[0], model(tokens, state)[0], rtol=1e-4, atol=1e-4)
    raw = built(RMTConfig(backbone=stack(), n_slots=N, segment_length=L))
    assert (raw(tokens, longer)[0] - raw(tokens, state)[0]).abs().max() > 1e-2


@pytest.mark.parametrize("mask", ["causal", "paper"])
def test_begun_with_nothing_the_first_segment_is_the_backbones_and_the_next_reads_what_it_wrote(mask):
    model = built(RMTConfig(backbone=stack(), n_slots=N, segment_length=L, mask=mask, begin="nothing"))
    learned = built(RMTConfig(backbone=stack(), n_slots=N, segment_length=L, mask=mask))
    learned.load_state_dict(model.state_dict())
    tokens = torch.randint(V, (2, 2 * L))
    first, state = model(tokens[:, :L], model.init_state(2))
    assert_close(first, model.head(model.backbone.read(model.backbone.embed(tokens[:, :L]), None)[0]), **TIGHT)
    inputs = torch.cat([model.backbone.embed(tokens[:, :L]), model.initial.expand(2, -1, -1)], dim=1)
    allowed = torch.ones(L + N, L + N).tril().bool()
    if mask == "paper":
        allowed[L:, L:] = True
    wrote = model.backbone.read(inputs, None, mask=allowed)[0][:, L:]
    assert_close(state.memory, wrote, **TIGHT)
    second = model(tokens[:, L:], state)[0]  # from then on it is the published network
    assert_close(second, learned(tokens[:, L:], learned.init_state(2)._replace(memory=wrote))[0], **TIGHT)


def test_noise_at_borders_is_of_training_alone_and_replay_meets_it_again():
    model = built(RMTConfig(backbone=stack(), n_slots=N, segment_length=L, noise=0.5))
    plain = built(RMTConfig(backbone=stack(), n_slots=N, segment_length=L))
    tokens = torch.randint(V, (4, 2, L))
    read = model(tokens[0], model.init_state(2))[1].memory
    assert torch.equal(read, plain(tokens[0], plain.init_state(2))[1].memory)
    with torch.no_grad():
        noisy = [model.train()(tokens[0], model.init_state(2))[1].memory - read for _ in range(200)]
        spread = torch.stack(noisy).std(0) / read.square().mean(-1, keepdim=True).sqrt()
    assert abs(float(spread.mean()) - 0.5) < 0.02
    generators = []

    class Noted(StreamCell):
        def loss(self, segment, state):
            generators.append(torch.get_rng_state())
            return super().loss(segment, state)

    segments = [Segment(t, t.roll(1, 1), torch.zeros(2).bool()) for t in tokens]
    replay_backward(Noted(model), segments, model.init_state(2))
    found = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    total, state = 0.0, model.init_state(2)
    for segment, generator in zip(segments, reversed(generators), strict=True):
        torch.set_rng_state(generator)
        loss, state = StreamCell(model).loss(segment, state)
        total = total + loss
    total.backward()
    for name, p in model.named_parameters():
        assert_close(found[name], p.grad, rtol=1e-9, atol=1e-11)


def test_any_memory_serves_inside_a_segment():
    model = built(
        RMTConfig(backbone=StackConfig(vocab_size=V, d_model=D, layers=(GRUConfig(d_model=D),)), n_slots=2, segment_length=L, mask="causal")
    )
    assert not model.backbone.takes_mask
    tokens = torch.randint(V, (1, 2 * L))
    changed = tokens.clone()
    changed[:, 0] = (changed[:, 0] + 1) % V
    far = (model(tokens, model.init_state(1))[0] - model(changed, model.init_state(1))[0])[:, L:]
    assert far.abs().max() > 1e-6  # what was read in the first segment is known in the second


def test_errors_say_what_to_do():
    with pytest.raises(ConfigError, match=r"layers\[0\] ends its segment after 5 inputs and the backbone reads 11.*segment_length=11"):
        RMTConfig(backbone=stack(L), n_slots=N, segment_length=L).build()
    grows = StackConfig(vocab_size=V, d_model=D, layers=(AttentionConfig(d_model=D, n_heads=2),))
    with pytest.raises(ConfigError, match="AttentionConfig grows; use SegmentAttentionConfig"):
        RMTConfig(backbone=grows).build()
    adds = StackConfig(vocab_size=V, d_model=D, layers=(CompressiveConfig(d_model=D, n_heads=2),))
    with pytest.raises(ConfigError, match="adds to the loss by its state"):
        RMTConfig(backbone=adds).build()
    recurrent = StackConfig(vocab_size=V, d_model=D, layers=(GRUConfig(d_model=D),))
    with pytest.raises(ConfigError, match="takes no mask; use mask='causal'"):
        RMTConfig(backbone=recurrent).build()
    with pytest.raises(ConfigError, match="backbone must be a StackConfig or the config of a Backbone"):
        RMTConfig(backbone=GRUConfig(d_model=D)).build()
    for wrong in ({"n_slots": -1}, {"segment_length": 0}, {"mask": "none"}, {"feed": "cooked"}, {"noise": -1.0}, {"begin": "late"}):
        with pytest.raises(ConfigError):
            RMTConfig(backbone=stack(), **wrong)


def test_its_presets_are_models():
    for system in ("rmt", "armt"):
        config = preset(system, "tiny", vocab_size=V)
        assert (config.vocab_size, config.d_model) == (V, 128)
        model = config.build()
        tokens = torch.randint(V, (1, 2 * config.segment_length))
        assert model(tokens, model.init_state(1))[0].shape == (1, 64, V)
    assert isinstance(model.associations[0].query, nn.Linear)
