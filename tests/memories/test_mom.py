"""Mixture of memories: three readings of one function, backends found again as special cases, and memories that are left alone."""

import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close

from memseq.errors import ConfigError
from memseq.layers.update_rules import AdditiveRule, ChannelRule, DeltaRule, GatedDeltaRule
from memseq.memories.deltanet import DeltaNetConfig
from memseq.memories.gated_deltanet import GatedDeltaNetConfig
from memseq.memories.gla import GLAConfig
from memseq.memories.mom import MoMConfig
from memseq.models.stack import StackConfig
from memseq.state import select, stack, state_bytes, tensors

F64 = torch.float64
SMALL = {"d_model": 10, "n_heads": 2, "key_size": 3, "value_size": 4, "chunk_size": 4}
RULES = [AdditiveRule(), ChannelRule(), DeltaRule(), GatedDeltaRule(strength=1.5)]


def build(**options):
    torch.manual_seed(1)
    return MoMConfig(**{**SMALL, **options}).build().double()


def read(memory, x, cuts, state=None):
    state, y = memory.init_state(len(x)) if state is None else state, []
    for piece in x.split(cuts, dim=1):
        z, state = memory(piece, state)
        y.append(z)
    return torch.cat(y, dim=1), state


def measured(memory, x, cuts):
    """Outputs, state, and gradients of both."""
    y, state = read(memory, x, cuts)
    values = [y, *tensors(state)]
    g = torch.Generator().manual_seed(0)
    total = sum((z * torch.randn(z.shape, generator=g, dtype=F64)).sum() for z in values)
    return values, torch.autograd.grad(total, [x, *memory.parameters()], allow_unused=True, materialize_grads=True)


@pytest.mark.parametrize(("E", "k", "shared"), [(4, 2, True), (3, 1, False), (3, 3, True), (1, 1, False)], ids=str)
@pytest.mark.parametrize("rule", RULES, ids=lambda rule: type(rule).__name__)
def test_sorted_is_dense_is_token_by_token(rule, E, k, shared):
    options = {"rule": rule, "n_memories": E, "n_active": k, "shared": shared, "projections": "one" if E == 3 and shared else "each"}
    memory, dense = build(**options), build(**options, form="dense")
    dense.load_state_dict(memory.state_dict())
    x = torch.randn(2, 21, 10, dtype=F64, requires_grad=True)
    wanted, grads = measured(dense, x, [21])
    for who, cuts in ((memory, [21]), (memory, [1] * 21), (memory, [2, 12, 7]), (dense, [1, 20])):
        found, grads_found = measured(who, x, cuts)
        for f, w in zip(found, wanted, strict=True):
            assert_close(f, w, rtol=1e-12, atol=1e-13)
        for f, w in zip(grads_found, grads, strict=True):
            assert_close(f, w, rtol=1e-10, atol=1e-12)


def as_backend(memory, backend):
    """The weights of a mixture of one memory, in a layer of Gated DeltaNet."""
    keys, values = memory.keys, memory.values
    w, H = memory.written[0], memory.config.n_heads
    strength, fade = memory.decided[0].unflatten(0, (H, 2)).unbind(1)
    with torch.no_grad():
        backend.heads.inputs.weight.copy_(torch.cat([memory.query.weight, w, memory.gate.weight, strength, fade]))
        backend.heads.conv.weight.copy_(memory.conv.weight)
        backend.out.weight.copy_(memory.out.weight)
        backend.norm.weight.copy_(memory.norm.weight)
    backend.gate.load_state_dict(memory.rule.decay.state_dict())
    assert w.shape[0] == keys + values
    return backend


def test_one_memory_is_gated_linear_attention():
    memory = build(n_memories=1, n_active=1, shared=False, rule=ChannelRule())
    backend = GLAConfig(**SMALL, conv_width=4, gate_rank=10, norm_eps=1e-6).build().double()
    with torch.no_grad():
        backend.inputs.weight.copy_(torch.cat([memory.query.weight, memory.written[0], memory.gate.weight, torch.eye(10)]))
        backend.gate.weight.copy_(memory.decided[0])
        backend.conv.weight.copy_(memory.conv.weight)
        backend.out.weight.copy_(memory.out.weight)
    x = torch.randn(2, 30, 10, dtype=F64)
    (y, state), (wanted, kept) = memory(x, memory.init_state(2)), backend(x, backend.init_state(2))
    assert_close(y, wanted, rtol=1e-10, atol=1e-12)
    assert_close(state.M[:, 0], kept.S, rtol=1e-10, atol=1e-12)


def test_one_memory_whose_gate_is_open_is_deltanet():
    """DeltaNet's layer has no output gate: a feature that is 1 holds ours at silu(1.278...) = 1."""
    memory = build(n_memories=1, n_active=1, shared=False, rule=DeltaRule())
    backend = DeltaNetConfig(**SMALL).build().double()
    one = torch.tensor(1.2784645427610738, dtype=F64)
    assert_close(F.silu(one), torch.ones_like(one), rtol=1e-12, atol=0)
    with torch.no_grad():
        memory.gate.weight.zero_()
        memory.gate.weight[:, 0] = one
        backend.heads.inputs.weight.copy_(torch.cat([memory.query.weight, memory.written[0], memory.decided[0]]))
        backend.heads.conv.weight.copy_(memory.conv.weight)
        backend.out.weight.copy_(memory.out.weight)
    x = torch.randn(2, 30, 10, dtype=F64)
    x[..., 0] = 1
    (y, state), (wanted, kept) = memory(x, memory.init_state(2)), backend(x, backend.init_state(2))
    assert_close(y, wanted, rtol=1e-10, atol=1e-12)
    assert_close(state.M[:, 0], kept.S, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("form", ["sorted", "dense"])
def test_one_memory_is_its_backend(form):
    memory = build(n_memories=1, n_active=1, shared=False, form=form, rule=GatedDeltaRule(strength=1.5))
    backend = as_backend(memory, GatedDeltaNetConfig(**SMALL, strength=1.5).build().double())
    x = torch.randn(2, 30, 10, dtype=F64)
    for cuts in ([30], [1] * 30):
        (y, state), (wanted, kept) = read(memory, x, cuts), read(backend, x, cuts)
        assert_close(y, wanted, rtol=1e-10, atol=1e-12)
        assert_close(state.M[:, 0], kept.S, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: type(rule).__name__)
def test_one_memory_is_its_rule(rule):
    """The recurrence as it is written, on what the layer projects."""
    memory = build(n_memories=1, n_active=1, shared=False, rule=rule)
    x = torch.randn(2, 19, 10, dtype=F64)
    before = torch.zeros(2, 3, 10, dtype=F64)
    taps = memory.conv.weight.split([memory.keys, memory.keys + memory.values])
    q = memory._mixed(x, before, memory.query.weight, taps[0])
    k, v = memory._mixed(x, before, memory.written[0], taps[1]).split([memory.keys, memory.values], dim=-1)
    q, k, v, logits = (z.reshape(2, 19, 2, -1 if z.numel() else 0).transpose(1, 2) for z in (q, k, v, x @ memory.decided[0].T))
    q, k = memory.rule.queries(q), memory.rule.keys(k)
    gates = memory.rule.gates(logits) if logits.numel() else logits
    S, y = torch.zeros(2, 2, 3, 4, dtype=F64), []
    for t in range(19):
        keys, g = k[:, :, t, :, None], gates[:, :, t]
        if isinstance(rule, ChannelRule):
            S = g.exp()[..., None] * S
        if isinstance(rule, GatedDeltaRule):
            S = g[..., 1, None, None].exp() * S
        strength = g[..., :1, None] if isinstance(rule, DeltaRule | GatedDeltaRule) else 1.0
        erased = keys @ (keys.mT @ S) if isinstance(rule, DeltaRule | GatedDeltaRule) else 0.0
        S = S + strength * (keys @ v[:, :, t, None] - erased)
        y.append((q[:, :, t, None] @ S)[..., 0, :])
    o = torch.stack(y, dim=2).transpose(1, 2)
    expected = memory.out(memory.norm(o, memory.gate(x).unflatten(-1, (2, -1))).flatten(2))
    found, state = memory(x, memory.init_state(2))
    assert_close(found, expected, rtol=1e-10, atol=1e-12)
    assert_close(state.M[:, 0], S, rtol=1e-10, atol=1e-12)


def test_all_memories_alike_are_one_memory():
    """k = E, even weights, one projection: every memory holds the same, and their mean is read."""
    memory = build(n_memories=3, n_active=3, shared=False, projections="one")
    with torch.no_grad():
        memory.router.weight.zero_()
    backend = as_backend(memory, GatedDeltaNetConfig(**SMALL).build().double())
    x = torch.randn(2, 30, 10, dtype=F64)
    (y, state), (wanted, kept) = memory(x, memory.init_state(2)), backend(x, backend.init_state(2))
    assert_close(y, wanted, rtol=1e-10, atol=1e-12)
    for m in range(3):
        assert_close(state.M[:, m], kept.S, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("form", ["sorted", "dense"])
@pytest.mark.parametrize("T", [1, 2, 3, 7])
@pytest.mark.parametrize("rule", RULES, ids=lambda rule: type(rule).__name__)
def test_memories_that_nothing_is_routed_to_stay_as_they_are_bit_for_bit(rule, T, form):
    memory = build(rule=rule, n_memories=6, n_active=1, form=form).float()
    used = memory.advance(torch.randn(5, 40, 10), memory.init_state(5))
    after = memory(torch.randn(5, T, 10), used)[1]
    alone = after.load == used.load
    assert 4 <= int(alone.sum()) < 30
    assert torch.equal(after.M[alone], used.M[alone])
    assert float((after.M - used.M).detach().abs().amax((2, 3, 4))[~alone].min()) > 0
    assert_close(after.load.sum(1) - used.load.sum(1), torch.full((5,), float(T)), rtol=0, atol=0)


def test_a_router_that_never_chooses_a_memory_leaves_it_empty():
    memory = build(shared=False)
    with torch.no_grad():
        memory.router.weight[2:] = 0
        memory.router.weight[:2, 0], memory.router.weight[:2, 1:] = 9, 0
    x = torch.randn(2, 30, 10, dtype=F64)
    x[..., 0] = x[..., 0].abs() + 0.1
    y, state = memory(x, memory.init_state(2))
    assert state.load.tolist() == 2 * [[30, 30, 0, 0]]
    assert not bool(state.M[:, 2:].any())
    assert bool(y.isfinite().all())


@pytest.mark.parametrize("dtype", [torch.float32, F64], ids=str)
@pytest.mark.parametrize("form", ["sorted", "dense"])
@pytest.mark.parametrize("rule", RULES, ids=lambda rule: type(rule).__name__)
def test_later_tokens_change_nothing_earlier_to_the_last_bit(rule, form, dtype):
    """Also where they are routed elsewhere, so that memories have other numbers of tokens."""
    memory = build(rule=rule, form=form, n_active=1, chunk_size=8).to(dtype)
    x = torch.randn(2, 70, 10, dtype=dtype)
    y = memory(x, memory.init_state(2))[0]
    for t in (1, 20, 33, 69):
        changed = x.clone()
        changed[:, t:] = 5 * torch.randn(2, 70 - t, 10, dtype=dtype)
        z, state = memory(changed, memory.init_state(2))
        assert torch.equal(z[:, :t], y[:, :t])
        assert not torch.equal(state.load, memory(x, memory.init_state(2))[1].load)


def test_streams_of_a_batch_are_routed_each_for_itself():
    memory = build()
    x = torch.randn(3, 25, 10, dtype=F64)
    states = stack([memory.advance(x[b : b + 1, : 3 * b + 1], memory.init_state(1)) for b in range(3)])
    y, state = memory(x, states)
    for b in range(3):
        alone, kept = memory(x[b : b + 1], select(states, [b]))
        assert_close(y[b : b + 1], alone, rtol=1e-10, atol=1e-12)
        assert_close(tensors(select(state, [b])), tensors(kept), rtol=1e-10, atol=1e-12)


def test_a_step_uses_the_weights_of_what_it_chose_and_no_others():
    memory = build(n_memories=5)
    x = torch.randn(1, 10, dtype=F64)
    y, state = memory.step(x, memory.init_state(1))
    (y.sum() + state.M.sum()).backward()
    chosen = state.load[0] > 0
    assert int(chosen.sum()) == 2
    used = torch.cat([chosen, torch.tensor([True])])  # the shared memory's are the last
    assert torch.equal(memory.written.grad.flatten(1).any(1), used)
    assert torch.equal(memory.decided.grad.flatten(1).any(1), used)


def test_a_training_model_pays_for_an_uneven_load_and_another_does_not():
    mom = MoMConfig(d_model=8, n_heads=2, chunk_size=4, balance=0.3)
    model = StackConfig(vocab_size=11, d_model=8, layers=(mom, mom)).build().double().eval()
    tokens, targets = torch.randint(11, (2, 2, 9))
    state = model.advance(tokens, model.init_state(2))
    plain, count, after = model.loss(tokens, targets, state)
    assert all(not bool(layer[0].auxiliary.any()) for layer in after.layers)
    total, _, after = model.train().loss(tokens, targets, state)
    added = sum(layer[0].auxiliary.sum() for layer in after.layers)
    assert_close(total, plain + added, rtol=1e-10, atol=0)
    floor = 0.3 * 2 * int(count) * 2  # balance, layers, tokens, k: an even load
    assert 0.5 * floor < float(added.detach()) < 4 * floor
    router = model.blocks[0].memories[0].router.weight
    with_balance, without = (torch.autograd.grad(z, router, retain_graph=True)[0] for z in (total, plain))
    assert float((with_balance - without).abs().max()) > 1e-6


def test_the_state_costs_what_its_docstring_says():
    memory = MoMConfig(d_model=32, n_heads=4, n_memories=4).build()
    with torch.no_grad():
        state = memory.advance(torch.randn(3, 50, 32), memory.init_state(3))
    assert state_bytes(state) == 4 * 3 * ((4 + 1) * 4 * 8 * 8 + 3 * 32 + 4 + 1)


def test_bad_configs_are_refused_in_words():
    for options, words in (
        ({"n_active": 5}, "n_active=5 must lie in 1 to n_memories=4"),
        ({"n_active": 0}, "n_active=0"),
        ({"balance": -1.0}, "balance must not be negative"),
        ({"d_model": 9, "key_size": None}, "such as d_model=10"),
    ):
        with pytest.raises(ConfigError, match=words):
            MoMConfig(**{**SMALL, **options})
    for name in ("form", "projections"):  # a config file may say anything
        config = MoMConfig(**SMALL)
        object.__setattr__(config, name, "all")
        with pytest.raises(ConfigError, match=f"{name} must be"):
            config.__post_init__()
    for rule, words in ((DeltaRule, "strength must lie"), (GatedDeltaRule, "strength must lie")):
        with pytest.raises(ConfigError, match=words):
            rule(strength=2.5)
    with pytest.raises(ConfigError, match="temper must be"):
        ChannelRule(temper=0.0)
