"""Memory as context, as gate, as layer: nothing of the future leaks, and each is what its page says, token by token."""

import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close

from memseq.errors import ConfigError
from memseq.layers.persistent import PersistentWindow
from memseq.memories.sliding_window import SlidingWindowConfig
from memseq.memories.titans import TitansConfig
from memseq.models.titans_mac import MAC, TitansMACConfig
from memseq.models.titans_mag import MAG, TitansMAGConfig
from memseq.models.titans_mal import MAL, TitansMALConfig

F64 = torch.float64
MEMORY = TitansConfig(d_model=8, n_heads=2, segment_length=4, step=0.5)
WINDOW = SlidingWindowConfig(d_model=8, n_heads=2, window=3)
MODEL = {"vocab_size": 11, "d_model": 8, "n_layers": 2, "memory": MEMORY}
MODELS = {
    "mac": TitansMACConfig(**MODEL, n_heads=2),
    "mag": TitansMAGConfig(**MODEL, n_heads=2, window=3),
    "mal": TitansMALConfig(**MODEL, window=WINDOW),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_token_changes_nothing_before_it_and_something_after(name):
    model = MODELS[name].build().double()
    tokens = torch.randint(11, (2, 14))
    with torch.no_grad():
        y, _ = model(tokens, model.init_state(2))
        for j in range(14):
            changed = tokens.clone()
            changed[:, j] = (changed[:, j] + 1) % 11
            z, _ = model(changed, model.init_state(2))
            assert float((z - y)[:, :j].abs().max()) == 0.0 if j else True
            assert float((z - y)[:, -1].abs().max()) > 0


def rms(x, weight):
    return x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight


def softmax_read(q, keys, values):
    return torch.stack([(keys[h] @ q[h] / q.shape[1] ** 0.5).softmax(0) @ values[h] for h in range(len(q))]).flatten()


def projected(heads, x, position, part):
    """Query (0), key (1) or value (2) of one token x [D]: [H, K]; keys and queries turned to `position`, None for no turn."""
    z = (x @ heads.inputs.weight.view(3, 8, 8)[part].T).view(2, 4)
    if position is None or part == 2:
        return z
    angles = position * 10000.0 ** (-torch.arange(0, 4, 2, dtype=F64) / 4)
    return torch.view_as_real(torch.view_as_complex(z.reshape(2, 2, 2)) * torch.polar(torch.ones_like(angles), angles)).flatten(1)


def test_a_window_with_persistent_tokens_is_one_softmax_over_both():
    attention = PersistentWindow(8, 2, window=3, n_persistent=2).double()
    heads, x = attention.heads, torch.randn(1, 9, 8, dtype=F64)
    wanted = []
    for t in range(9):
        near = range(max(0, t - 2), t + 1)
        read = []
        for h in range(2):
            logits = [projected(heads, p, None, 0 + 1)[h] @ projected(heads, x[0, t], None, 0)[h] for p in heads.persistent]
            logits += [projected(heads, x[0, s], s, 1)[h] @ projected(heads, x[0, t], t, 0)[h] for s in near]
            values = [projected(heads, z, None, 2)[h] for z in (*heads.persistent, *(x[0, s] for s in near))]
            read.append((torch.stack(logits) / 2).softmax(0) @ torch.stack(values))
        wanted.append(torch.cat(read) @ heads.out.weight.T)
    for cuts in ([9], [1] * 9, [4, 5]):
        state, ys = attention.init_state(1), []
        for piece in x.split(cuts, dim=1):
            y, state = attention(piece, state)
            ys.append(y)
        assert_close(torch.cat(ys, dim=1)[0], torch.stack(wanted), rtol=1e-10, atol=1e-12)


def test_memory_as_context_is_its_equations_token_by_token():
    branch = MAC(d_model=8, n_heads=2, n_persistent=2, memory=MEMORY).build().double()
    x, state = torch.randn(1, 10, 8, dtype=F64), branch.memory.init_state(1)
    wanted, keys, values, heads = [], [], [], branch.heads
    for t in range(10):
        if t % 4 == 0:  # a new segment: M_{s-1} is what the memory is now
            keys = [projected(heads, p, None, 1) for p in heads.persistent]
            values = [projected(heads, p, None, 2) for p in heads.persistent]
            plain, before = len(keys), state.fast.weights
        q = F.normalize(F.silu(branch.asking(x[:, t])).view(1, 2, 1, 4), dim=-1)
        h = branch.told(rms(branch.memory.network(q, before)[:, :, 0], branch.heard_norm.weight).flatten())
        for z in (h, x[0, t]):
            keys.append(projected(heads, z, t % 4, 1))
            values.append(projected(heads, z, t % 4, 2))
        read = []
        for head in range(2):
            still, turned = (projected(heads, x[0, t], p, 0)[head] for p in (None, t % 4))
            logits = torch.stack([key[head] @ (still if i < plain else turned) for i, key in enumerate(keys)])
            read.append((logits / 2).softmax(0) @ torch.stack([value[head] for value in values]))
        y = branch.heads.out(torch.cat(read))
        m, state = branch.memory.step(y[None], state)
        wanted.append(branch.out(rms(y, branch.near_norm.weight) * rms(m[0], branch.far_norm.weight).sigmoid()))
    assert_close(branch(x, branch.init_state(1))[0][0], torch.stack(wanted), rtol=1e-9, atol=1e-11)


def test_memory_as_gate_is_the_window_gated_by_a_memory_that_has_read_the_persistent_tokens():
    branch = MAG(d_model=8, n_heads=2, window=3, n_persistent=3, memory=MEMORY).build().double()
    x, P = torch.randn(2, 10, 8, dtype=F64), branch.attention.heads.persistent
    m, _ = branch.memory(torch.cat([P.expand(2, -1, -1), x], dim=1), branch.memory.init_state(2))
    y, _ = branch.attention(x, branch.attention.init_state(2))
    wanted = branch.out(rms(y, branch.near_norm.weight) * rms(m[:, 3:], branch.far_norm.weight).sigmoid())
    assert_close(branch(x, branch.init_state(2))[0], wanted, rtol=1e-9, atol=1e-11)


def test_memory_as_layer_is_the_window_over_what_the_memory_says_of_persistent_tokens_and_stream():
    branch = MAL(d_model=8, n_persistent=3, memory=MEMORY, window=WINDOW).build().double()
    x = torch.randn(2, 10, 8, dtype=F64)
    y, _ = branch.memory(torch.cat([branch.persistent.expand(2, -1, -1), x], dim=1), branch.memory.init_state(2))
    wanted, _ = branch.attention(rms(y, branch.norm.weight), branch.attention.init_state(2))
    assert_close(branch(x, branch.init_state(2))[0], wanted[:, 3:], rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", MODELS)
def test_persistent_tokens_are_learned(name):
    model = MODELS[name].build().double()
    model(torch.randint(11, (1, 9)), model.init_state(1))[0].square().sum().backward()
    for parameter, value in model.named_parameters():
        if parameter.endswith("persistent"):
            assert float(value.grad.abs().min()) > 0


def test_parts_of_another_width_are_refused_in_words():
    narrow = TitansConfig(d_model=4, n_heads=2)
    for config in (MAC, MAG, MAL):
        own = {"window": WINDOW} if config is MAL else {"n_heads": 2, **({"window": 3} if config is MAG else {})}
        with pytest.raises(ConfigError, match="make them equal"):
            config(d_model=8, n_persistent=2, memory=narrow, **own)
        with pytest.raises(ConfigError, match="n_persistent must be at least 0"):
            config(d_model=8, n_persistent=-1, memory=MEMORY, **own)
