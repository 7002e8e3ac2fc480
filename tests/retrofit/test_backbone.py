"""A model of transformers as a backbone: any cut reads the same, rows at any position, nothing written in place."""

import copy
import threading

import pytest
import torch
from torch.testing import assert_close
from transformers import (
    AutoModelForCausalLM,
    FalconMambaConfig,
    Gemma2Config,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    Mamba2Config,
    MambaConfig,
    MistralConfig,
    Qwen2Config,
    Qwen3Config,
)

from memseq.errors import ConfigError, TrainingError
from memseq.models.rmt import RMTConfig
from memseq.retrofit.backbone import HuggingFaceBackbone, HuggingFaceConfig
from memseq.state import fork, select, stack, tensors

V, D = 13, 16
WIDE = {"vocab_size": V, "hidden_size": D, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
RECURRENT = {"vocab_size": V, "hidden_size": D, "num_hidden_layers": 2, "state_size": 4}
FAMILIES = {
    "llama": LlamaConfig(**WIDE, num_key_value_heads=1),
    "qwen2": Qwen2Config(**WIDE, num_key_value_heads=1),
    "qwen3": Qwen3Config(**WIDE, num_key_value_heads=1, head_dim=8),
    "mistral": MistralConfig(**WIDE, num_key_value_heads=1, sliding_window=32),
    "gpt2": GPT2Config(vocab_size=V, n_embd=D, n_layer=2, n_head=2, n_positions=32),
    "gpt_neox": GPTNeoXConfig(**WIDE),
    "mamba": MambaConfig(**RECURRENT),
    "mamba2": Mamba2Config(**RECURRENT, num_heads=4, head_dim=8, n_groups=1, chunk_size=4),
    "falcon_mamba": FalconMambaConfig(**RECURRENT),
}


def hub(family):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(FAMILIES[family]).double().eval()


@pytest.fixture(params=FAMILIES)
def backbone(request):
    return HuggingFaceBackbone(hub(request.param))


def read(backbone, x, pieces, cache):
    h = []
    for piece in x.split(pieces, dim=1):
        y, cache = backbone.read(piece, cache)
        h.append(y)
    return torch.cat(h, dim=1), cache


def test_any_cut_reads_what_the_model_says_of_the_whole(backbone):
    tokens = torch.randint(V, (3, 9))
    x = backbone.embed(tokens)
    logits, wanted = backbone.model(input_ids=tokens).logits, backbone.read(x, None)[0]
    assert_close(backbone.head(wanted).to(logits.dtype), logits)  # Mamba rounds its logits to float32
    grads = []
    for pieces in ([9], [1] * 9, [4, 1, 4]):
        leaf = x.detach().requires_grad_()
        h, _ = read(backbone, leaf, pieces, backbone.init_cache(3, 11))
        assert_close(h, wanted, rtol=1e-10, atol=1e-12)
        grads.append(torch.autograd.grad(h.sin().sum(), leaf)[0])
    near = {"rtol": 1e-8, "atol": 1e-10} if backbone.shapes else {"rtol": 1e-4, "atol": 1e-5}  # transformers' Mamba is in float32 inside
    assert_close(grads[1], grads[0], **near)
    assert_close(grads[2], grads[0], **near)


@torch.no_grad()
def test_rows_at_positions_of_their_own_share_a_batch_and_states_are_never_written(backbone):
    x = backbone.embed(torch.randint(V, (3, 8)))
    starts = [0, 2, 5]
    caches = [backbone.init_cache(1, 8)]
    caches += [backbone.read(x[i : i + 1, : starts[i]], caches[0])[1] for i in (1, 2)]
    together = stack(caches)
    before = [t.clone() for t in tensors(together)]
    new = torch.stack([x[i, n : n + 3] for i, n in enumerate(starts)])
    h, after = backbone.read(new, together)
    for i, cache in enumerate(caches):
        alone, alone_after = backbone.read(new[i : i + 1], cache)
        assert_close(h[i : i + 1], alone, rtol=1e-10, atol=1e-12)
        for found, wanted in zip(tensors(select(after, [i])), tensors(alone_after), strict=True):
            assert_close(found, wanted, rtol=1e-10, atol=1e-12)
    assert all(torch.equal(a, b) for a, b in zip(tensors(together), before, strict=True))
    branches = backbone.read(new[[1, 1]], fork(select(together, [1]), 2))[0]
    assert_close(branches[0], branches[1], rtol=1e-10, atol=1e-12)


class Doubling:
    """Doubles what layer 1 reads and keeps what every layer made."""

    def __init__(self):
        self.seen = {}

    def before(self, layer, x):
        return 2 * x if layer == 1 else x

    def after(self, layer, x):
        self.seen[layer] = x


@torch.no_grad()
def test_a_visitor_meets_every_layer_and_leaves_no_trace(backbone):
    x = backbone.embed(torch.randint(V, (2, 5)))
    plain = backbone.read(x, None)[0]
    visitor = Doubling()
    visited = backbone.read(x, None, visitor=visitor)[0]
    assert list(visitor.seen) == [0, 1]
    assert (visited - plain).abs().max() > 1e-3
    assert torch.equal(backbone.read(x, None)[0], plain)
    in_pieces, cache = [], backbone.init_cache(2, 5)
    for piece in x.split(2, dim=1):
        h, cache = backbone.read(piece, cache, visitor=visitor)
        in_pieces.append(h)
    assert_close(torch.cat(in_pieces, dim=1), visited, rtol=1e-10, atol=1e-12)


@torch.no_grad()
def test_two_backbones_around_one_model_have_visitors_of_their_own():
    model = hub("llama")
    first, second = HuggingFaceBackbone(model), HuggingFaceBackbone(model)
    x = first.embed(torch.randint(V, (2, 5)))
    visited = first.read(x, None, visitor=Doubling())[0]
    assert torch.equal(second.read(x, None, visitor=Doubling())[0], visited)
    twin = copy.deepcopy(second)
    assert torch.equal(twin.read(x, None, visitor=Doubling())[0], visited)
    assert torch.equal(twin.read(x, None)[0], first.read(x, None)[0])


@torch.no_grad()
def test_visitors_of_two_threads_do_not_meet():
    backbone = HuggingFaceBackbone(hub("llama"))
    x = backbone.embed(torch.randint(V, (2, 5)))
    plain, visited = backbone.read(x, None)[0], backbone.read(x, None, visitor=Doubling())[0]
    wrong = []

    def reads(visitor, wanted):
        with torch.no_grad():
            wrong.extend(visitor for _ in range(20) if not torch.equal(backbone.read(x, None, visitor=visitor)[0], wanted))

    threads = [threading.Thread(target=reads, args=who) for who in ((None, plain), (Doubling(), visited))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@torch.no_grad()
def test_a_mask_says_what_sees_what(attention):
    model = AutoModelForCausalLM.from_config(FAMILIES["llama"], attn_implementation=attention).double().eval()
    backbone = HuggingFaceBackbone(model)
    x = backbone.embed(torch.randint(V, (2, 6)))
    causal = torch.ones(6, 6).tril().bool()
    plain = backbone.read(x, None)[0]
    assert_close(backbone.read(x, None, mask=causal)[0], plain, rtol=1e-10, atol=1e-12)
    opened = causal.clone()
    opened[:2, :2] = True
    changed, other = x.clone(), backbone.read(x, None, mask=opened)[0]
    changed[:, 1] += 1
    assert (backbone.read(changed, None, mask=opened)[0] - other)[:, 0].abs().max() > 1e-3  # 0 sees 1
    assert (backbone.read(changed, None)[0] - plain)[:, 0].abs().max() == 0
    first, cache = backbone.read(x[:, :3], backbone.init_cache(2, 6), mask=opened[:3, :3])
    second, _ = backbone.read(x[:, 3:], cache, mask=opened[3:])
    assert_close(torch.cat([first, second], dim=1), other, rtol=1e-10, atol=1e-12)


def test_the_config_goes_to_text_and_back_and_builds_the_same_model():
    for family, of in FAMILIES.items():
        config = HuggingFaceConfig.of(of)
        assert HuggingFaceConfig.of(config.hub) == config
        assert (config.vocab_size, config.d_model) == (V, D), family
    backbone = HuggingFaceConfig.of(FAMILIES["gpt2"]).build()
    model = hub("gpt2").float()
    backbone.model.load_state_dict(model.state_dict())
    tokens = torch.randint(V, (1, 5))
    assert torch.equal(backbone.eval().model(tokens).logits, model(tokens).logits)


def test_errors_say_what_to_do():
    with pytest.raises(ConfigError, match=r"max_position_embeddings=32 and would read 36 inputs.*at least 4 shorter"):
        RMTConfig(backbone=HuggingFaceConfig.of(FAMILIES["gpt2"]), n_slots=2, segment_length=32).build()
    with pytest.raises(ConfigError, match=r"sliding_window=32 and would read 34 inputs"):
        RMTConfig(backbone=HuggingFaceConfig.of(FAMILIES["mistral"]), n_slots=1, segment_length=32).build()
    with pytest.raises(ConfigError, match=r"takes no mask; use mask='causal'"):
        RMTConfig(backbone=HuggingFaceConfig.of(FAMILIES["mamba"])).build()
    gemma = Gemma2Config(**WIDE, num_key_value_heads=1, head_dim=8, final_logit_softcapping=2.0)
    with pytest.raises(ConfigError, match="Gemma2ForCausalLM does more to its logits than a linear head"):
        HuggingFaceConfig.of(gemma).build()
    with pytest.raises(ConfigError, match="names no model_type"):
        HuggingFaceConfig(json="{}")
    with pytest.raises(ConfigError, match="not the text of a transformers config"):
        HuggingFaceConfig(json="llama")
    backbone = HuggingFaceBackbone(hub("llama")).train()
    backbone.model.gradient_checkpointing_enable()
    with pytest.raises(TrainingError, match="switch it off"):
        backbone.read(backbone.embed(torch.zeros(1, 2, dtype=torch.int64)), None)
