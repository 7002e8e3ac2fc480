"""HMT: the segment's pseudo-code on copied weights, what the recall computes, and where the published order leaks."""

import pytest
import torch
from torch.testing import assert_close
from transformers import AutoModelForCausalLM, LlamaConfig

from memseq.errors import ConfigError
from memseq.memories.segment_attention import SegmentAttentionConfig
from memseq.models.hmt import HMTConfig
from memseq.models.rmt import RMTConfig
from memseq.models.stack import StackConfig
from memseq.retrofit import HuggingFaceBackbone, HuggingFaceConfig
from memseq.state import fork, select, state_bytes

V, D, L, K = 13, 16, 6, 2
LLAMA = LlamaConfig(vocab_size=V, hidden_size=D, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1)
TIGHT = {"rtol": 1e-10, "atol": 1e-12}


def stack(length=L + K + 2):
    return StackConfig(vocab_size=V, d_model=D, layers=2 * (SegmentAttentionConfig(d_model=D, n_heads=2, segment_length=length),))


def built(**options):
    torch.manual_seed(0)
    settings = {"backbone": stack(), "segment_length": L, "n_kept": 3, "n_sensory": K, **options}
    model = HMTConfig(**settings).build().double().eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.3 * torch.randn_like(p))
    return model


def tokens(*shape, seed=1):
    return torch.randint(V, shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("query", ["previous", "current"])
def test_it_is_the_pseudo_code_around_a_pretrained_model(query):
    torch.manual_seed(1)
    hub = AutoModelForCausalLM.from_config(LLAMA).double().eval()
    config = HMTConfig(backbone=HuggingFaceConfig.of(hub), segment_length=L, n_kept=3, n_sensory=K, n_summarised=4, query=query)
    model = config.build(HuggingFaceBackbone(hub)).double().eval()
    x, embed = tokens(2, 5 * L), hub.get_input_embeddings()

    def run(*parts):
        return hub(inputs_embeds=torch.cat(parts, dim=1), output_hidden_states=True)

    def recall(about, kept):
        if not kept:
            return model.initial.expand(2, 1, -1)
        ends = model.prompt.expand(2, 1, -1)
        S, M = run(ends, embed(about), ends).hidden_states[-1][:, -1:], torch.stack(kept, dim=1)
        weights = (model.query(S) @ model.key(M).mT / D**0.5).softmax(-1)
        return weights @ M

    kept, sensory, wanted, before = [], [], [], None
    for segment in x.split(L, dim=1):
        about = segment[:, :4] if query == "current" else None if before is None else before[:, -4:]
        P = recall(about, kept)
        out = run(P, *sensory, embed(segment), P)
        n = 1 + (K if sensory else 0)
        wanted.append(out.logits[:, n : n + L])
        kept = [*kept, out.hidden_states[-1][:, -1]][-3:]
        sensory, before = [embed(segment[:, -K:])], segment
    logits, state = model(x, model.init_state(2))
    assert_close(logits, torch.cat(wanted, dim=1), **TIGHT)
    assert_close(state.kept, torch.stack(kept, dim=1), **TIGHT)


def test_one_kept_vector_is_rmt_with_one_memory_vector():
    torch.manual_seed(0)
    model = built(n_kept=1, n_sensory=0)
    rmt = RMTConfig(backbone=stack(), n_slots=1, segment_length=L).build().double().eval()
    rmt.backbone.load_state_dict(model.backbone.state_dict())
    with torch.no_grad():
        rmt.initial.copy_(model.initial[None])
    x = tokens(2, 4 * L + 3)
    assert_close(model(x, model.init_state(2))[0], rmt(x, rmt.init_state(2))[0], **TIGHT)


def test_a_query_of_nothing_recalls_the_mean_and_the_order_of_what_is_kept_does_not_matter():
    model = built()
    _, state = model(tokens(1, 4 * L), model.init_state(1))
    summary = torch.randn(1, D, dtype=torch.float64)
    shuffled = state._replace(kept=state.kept[:, [2, 0, 1]])
    assert_close(model.attend(summary, shuffled), model.attend(summary, state)[:, [2, 0, 1]], **TIGHT)
    with torch.no_grad():
        model.query.weight.zero_()
    _, state = model(tokens(1, 4 * L), model.init_state(1))
    assert_close(state.recalled, state.kept.mean(1), **TIGHT)


def test_vectors_not_yet_kept_are_not_recalled():
    model = built()
    _, state = model(tokens(1, L), model.init_state(1))
    assert_close(model.attend(torch.randn(1, D, dtype=torch.float64), state), torch.tensor([[0.0, 0.0, 1.0]], dtype=torch.float64))
    assert_close(state.recalled, state.kept[:, -1], **TIGHT)


def test_the_oldest_vector_leaves_and_bytes_stay():
    model = built()
    _, state = model(tokens(1, 3 * L), model.init_state(1))
    _, later = model(tokens(1, L, seed=2), state)
    assert torch.equal(later.kept[:, :2], state.kept[:, 1:])
    assert state_bytes(later) == state_bytes(state)


@pytest.mark.parametrize(("query", "leaks"), [("previous", False), ("current", True)])
def test_the_published_order_leaks_inside_a_segment_and_ours_does_not(query, leaks):
    """Logits of the second token of a segment against the third, which is summarised with the first half."""
    model = built(query=query)
    a = tokens(1, 3 * L)
    b = a.clone()
    b[0, 2 * L + 2] = (a[0, 2 * L + 2] + 1) % V
    ya, yb = (model(x, model.init_state(1))[0][:, : 2 * L + 2] for x in (a, b))
    assert torch.equal(ya, yb) != leaks
    assert torch.equal(ya[:, : 2 * L], yb[:, : 2 * L])
    assert model.causal != leaks


@pytest.mark.parametrize("query", ["previous", "current"])
def test_begun_with_nothing_the_first_segment_is_the_backbones_and_the_next_reads_what_it_wrote(query):
    model, learned = built(begin="nothing", query=query), built(query=query)
    x = tokens(2, 2 * L)
    first, state = model(x[:, :L], model.init_state(2))
    embedded = model.backbone.embed(x[:, :L])
    read = model.backbone.read(torch.cat([embedded, model.initial.expand(2, 1, -1)], dim=1), None)[0]
    assert_close(first, model.head(read[:, :L]), **TIGHT)
    assert_close(state.kept[:, -1], read[:, L], **TIGHT)
    assert_close(model(x[:, L:], state)[0], learned(x[:, L:], state)[0], **TIGHT)  # from then on it is the published network


def test_a_fork_goes_its_own_way():
    model = built()
    _, state = model(tokens(1, 2 * L + 3), model.init_state(1))
    ways = fork(state, 2)
    x = tokens(2, L, seed=5)
    y, _ = model(x, ways)
    for row in range(2):
        assert_close(y[row : row + 1], model(x[row : row + 1], select(ways, [row]))[0], **TIGHT)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"n_kept": 0}, "n_kept must be at least 1"),
        ({"n_sensory": 7}, "n_sensory=7 tokens are taken from one segment of 6"),
        ({"n_summarised": 9, "n_sensory": 0}, "n_summarised must lie in 1 to segment_length=6"),
    ],
)
def test_a_config_that_makes_no_sense_is_refused(change, says):
    with pytest.raises(ConfigError, match=says):
        HMTConfig(**{"backbone": stack(), "segment_length": L, **change})


def test_a_backbone_that_is_too_short_is_refused():
    with pytest.raises(ConfigError, match="give it segment_length=10"):
        HMTConfig(backbone=stack(9), segment_length=L, n_sensory=K).build()
