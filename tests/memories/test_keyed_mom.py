"""A mixture whose router reads keys: its definition token by token, straight-through gradients, its rule as a special case."""

import pytest
import torch
from torch.testing import assert_close

from memseq.errors import ConfigError
from memseq.layers.head_norm import unit
from memseq.layers.update_rules import AdditiveRule, ChannelRule, DeltaRule, GatedDeltaRule
from memseq.memories.gated_deltanet import GatedDeltaNetConfig
from memseq.memories.keyed_mom import KeyedMoMConfig
from memseq.ops.routing import balance, choose_memories, one_hot
from memseq.state import tensors

F64 = torch.float64
SMALL = {"d_model": 10, "n_heads": 2, "key_size": 3, "value_size": 4, "chunk_size": 4}
RULES = [AdditiveRule(), ChannelRule(), DeltaRule(), GatedDeltaRule(strength=1.5)]


def build(**options):
    torch.manual_seed(1)
    return KeyedMoMConfig(**{**SMALL, **options}).build().double()


def pieces(memory, x):
    """q, k, v, gates as the rule has them, z, and both choices' probabilities."""
    q, k, v, rest, _ = memory.heads(x, memory.heads.conv.init_tail(len(x)))
    z, gates = rest.split([8, rest.shape[-1] - 8], dim=-1)
    q, k = memory.rule.queries(q), memory.rule.keys(k)
    write, read = ((unit(u.flatten(2)) @ memory.router.weight.T).softmax(-1) for u in (k, q))
    q, k, v, gates = (
        u.transpose(1, 2) for u in (q, k, v, gates.unflatten(-1, (2, -1)) if gates.numel() else gates.reshape(*z.shape[:2], 2, 0))
    )
    return q, k, v, memory.rule.gates(gates), z, write, read


def defined(memory, x, n):
    """The equations of the docstring: every memory by itself, one token after another."""
    q, k, v, gates, z, write, read = pieces(memory, x)
    (B, T), E, rule = x.shape[:2], write.shape[-1], memory.config.rule
    keep = one_hot(write.topk(n, -1).indices, E).to(F64) + write - write.detach()
    chosen, weight = choose_memories(read, n)
    g = torch.zeros_like(read).scatter(-1, chosen, weight.detach()) + read - read.detach()
    M, o = [torch.zeros(B, 2, 3, 4, dtype=F64) for _ in range(E)], []
    for t in range(T):
        for m in range(E):
            share = keep[:, t, m, None, None]
            key, gate = k[:, :, t], gates[:, :, t] * share
            S = M[m]
            if isinstance(rule, ChannelRule):
                S = gate.exp()[..., None] * S
            if isinstance(rule, GatedDeltaRule):
                S = gate[..., 1, None, None].exp() * S
            if isinstance(rule, DeltaRule | GatedDeltaRule):
                told = v[:, :, t] - (key[..., None, :] @ S)[..., 0, :]
                S = S + gate[..., :1, None] * key[..., None] * told[..., None, :]
            else:
                S = S + (key * share)[..., None] * v[:, :, t, None, :]
            M[m] = S
        o.append(sum(g[:, t, m, None, None] * (q[:, :, t, None] @ M[m])[..., 0, :] for m in range(E)))
    y = memory.out(memory.norm(torch.stack(o, 1), z.unflatten(-1, (2, -1))).flatten(2))
    return y, torch.stack(M, 1)


def gradients(memory, x, *values):
    g = torch.Generator().manual_seed(0)
    total = sum((z * torch.randn(z.shape, generator=g, dtype=F64)).sum() for z in values)
    return torch.autograd.grad(total, [x, *memory.parameters()])


@pytest.mark.parametrize("n", [1, 2])
@pytest.mark.parametrize("rule", RULES, ids=lambda rule: type(rule).__name__)
def test_it_is_its_definition_with_the_gradient_of_soft_choices(rule, n):
    memory = build(rule=rule, n_active=n)
    x = torch.randn(2, 11, 10, dtype=F64, requires_grad=True)
    y, state = memory(x, memory.init_state(2))
    wanted, M = defined(memory, x, n)
    assert_close(y, wanted, rtol=1e-11, atol=1e-12)
    assert_close(state.M, M, rtol=1e-11, atol=1e-12)
    found, expected = (gradients(memory, x, *values) for values in ((y, state.M), (wanted, M)))
    for f, w in zip(found, expected, strict=True):
        assert_close(f, w, rtol=1e-9, atol=1e-11)
    router = dict(zip(["x", *dict(memory.named_parameters())], found, strict=True))["router.weight"]
    assert float(router.abs().amin(1).min()) > 0  # of memories that were not chosen too


@pytest.mark.parametrize("n", [1, 2])
@pytest.mark.parametrize("rule", RULES, ids=lambda rule: type(rule).__name__)
@torch.no_grad()
def test_a_step_that_touches_the_chosen_alone_is_a_token_of_the_stream(rule, n):
    memory = build(rule=rule, n_active=n).eval()
    x = torch.randn(3, 15, 10, dtype=F64)
    wanted, end = memory(x, memory.init_state(3))
    state, y = memory.init_state(3), []
    for t in range(15):
        before = state
        out, state = memory.step(x[:, t], state)
        alone = state.load == before.load
        assert int(alone.sum()) == 3 * (4 - n)
        assert torch.equal(state.M[alone], before.M[alone])
        y.append(out)
    assert_close(torch.stack(y, 1), wanted, rtol=1e-11, atol=1e-12)
    for f, w in zip(tensors(state), tensors(end), strict=True):
        assert_close(f, w, rtol=1e-11, atol=1e-12)


@torch.no_grad()
def test_memories_that_nothing_is_written_to_stay_as_they_are_bit_for_bit():
    memory = build(n_memories=6).float()
    used = memory.advance(torch.randn(5, 40, 10), memory.init_state(5))
    after = memory(torch.randn(5, 3, 10), used)[1]
    alone = after.load == used.load
    assert 10 <= int(alone.sum()) < 30
    assert torch.equal(after.M[alone], used.M[alone])


def as_backend(memory, backend):
    """The weights of the heads, in a layer of Gated DeltaNet: there strengths of all heads come before fades of all heads."""
    w = memory.heads.inputs.weight
    with torch.no_grad():
        backend.heads.inputs.weight.copy_(torch.cat([w[:-4], w[-4::2], w[-3::2]]))
        backend.heads.conv.weight.copy_(memory.heads.conv.weight)
        backend.out.weight.copy_(memory.out.weight)
    backend.gate.load_state_dict(memory.rule.decay.state_dict())
    return backend


@pytest.mark.parametrize("E", [1, 3])
def test_all_memories_together_are_one_gated_deltanet(E):
    """Which is where training begins, by setting n_active."""
    memory = build(n_memories=E, n_active=1)
    memory.n_active = E
    with torch.no_grad():
        memory.router.weight.zero_()  # even weights, so that they add up to one to the last digit
    backend = as_backend(memory, GatedDeltaNetConfig(**SMALL).build().double())
    x = torch.randn(2, 30, 10, dtype=F64)
    (y, state), (wanted, kept) = memory(x, memory.init_state(2)), backend(x, backend.init_state(2))
    assert_close(y, wanted, rtol=1e-10, atol=1e-12)
    for m in range(E):
        assert_close(state.M[:, m], kept.S, rtol=1e-10, atol=1e-12)


@torch.no_grad()
def test_a_query_that_is_a_key_reads_where_the_key_was_written():
    memory = build(n_active=2, rule=DeltaRule())
    memory.heads.inputs.weight[:6] = memory.heads.inputs.weight[6:12]
    memory.heads.conv.weight[:6] = memory.heads.conv.weight[6:12]
    written, read = memory.routes(torch.randn(4, 50, 10, dtype=F64), memory.init_state(4))
    assert torch.equal(written, read)
    assert written.sum(-1).eq(2).all()
    assert int(written.sum((0, 1)).min()) > 0


def test_the_balance_is_of_what_is_written_and_only_while_training():
    memory = build(balance=0.5)
    x = torch.randn(2, 9, 10, dtype=F64)
    write = pieces(memory, x)[5]
    written = one_hot(write.topk(1, -1).indices, 4)
    added, load = balance(write, written, torch.zeros(2, 4, dtype=F64), 1)
    trained = memory.train()(x, memory.init_state(2))[1]
    assert_close(trained.auxiliary, 0.5 * added, rtol=1e-12, atol=0)
    assert_close(trained.load, load, rtol=0, atol=0)
    assert not memory.eval()(x, memory.init_state(2))[1].auxiliary.any()


@pytest.mark.parametrize("wrong", [{"n_active": 5}, {"n_active": 0}, {"sharpness": 0.0}, {"balance": -1.0}, {"n_heads": 0}], ids=str)
def test_configs_that_make_no_sense(wrong):
    with pytest.raises(ConfigError):
        KeyedMoMConfig(**{**SMALL, **wrong})
