"""Layers of flash-linear-attention in its own names and layouts, its equations written out here, against ours with the weights read."""

import math

import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close

from memseq.errors import CheckpointError, ConfigError, StateError
from memseq.memories.deltanet import DeltaNetConfig
from memseq.memories.gated_deltanet import GatedDeltaNetConfig
from memseq.memories.gla import GLAConfig
from memseq.memories.gru import GRUConfig
from memseq.memories.hgrn2 import HGRN2Config
from memseq.memories.kda import KDAConfig
from memseq.memories.rwkv7 import RWKV7Config
from memseq.models.rwkv7 import RWKV7LMConfig
from memseq.retrofit.fla_weights import LAYERS, from_fla, state_from_fla, state_to_fla

F64 = torch.float64
D, H, K, V, RANK, WIDTH = 12, 2, 4, 6, 3, 4
CONFIGS = {
    "gla": GLAConfig(d_model=D, n_heads=H, key_size=K, value_size=V, gate_rank=RANK, chunk_size=4),
    "gla, convolved": GLAConfig(d_model=D, n_heads=H, key_size=K, value_size=V, gate_rank=RANK, conv_width=WIDTH, chunk_size=4),
    "hgrn2": HGRN2Config(d_model=D, n_heads=H, chunk_size=4),
    "deltanet": DeltaNetConfig(d_model=D, n_heads=H, key_size=K, value_size=V, norm_eps=1e-5, chunk_size=4),
    "gated_deltanet": GatedDeltaNetConfig(d_model=D, n_heads=H, key_size=K, value_size=V, norm_eps=1e-5, chunk_size=4),
    "kda": KDAConfig(d_model=D, n_heads=H, key_size=K, value_size=V, chunk_size=4),
    "rwkv7": RWKV7Config(d_model=D, n_heads=H, decay_rank=RANK, rate_rank=RANK, gate_rank=RANK, chunk_size=4),
}


def weights_of(name):
    """A state dict with the names and shapes of fla's layer."""

    def linears(**shapes):
        return {f"{n}.weight": torch.randn(*shape, dtype=F64) * shape[-1] ** -0.5 for n, shape in shapes.items()}

    def convs(**channels):
        return {f"{n}_conv1d.weight": torch.randn(c, 1, WIDTH, dtype=F64) / 2 for n, c in channels.items()}

    def bare(**shapes):
        return {n.replace("__", "."): 0.5 + 0.3 * torch.randn(*shape, dtype=F64) for n, shape in shapes.items()}

    keys, values = H * K, H * V
    qkv = linears(q_proj=(keys, D), k_proj=(keys, D), v_proj=(values, D), o_proj=(D, values))
    convolved = convs(q=keys, k=keys, v=values)
    if name.startswith("gla"):
        gate = linears(**{"g_proj": (values, D), "gk_proj.0": (RANK, D), "gk_proj.1": (keys, RANK)})
        return qkv | gate | bare(gk_proj__1__bias=(keys,), g_norm_swish_gate__weight=(V,)) | (convolved if "convolved" in name else {})
    if name == "hgrn2":
        return linears(q_proj=(D, D), f_proj=(D, D), i_proj=(D, D), o_proj=(D, D)) | bare(g_norm__weight=(D,))
    if name == "deltanet":
        return qkv | convolved | linears(b_proj=(H, D)) | bare(o_norm__weight=(V,))
    if name == "gated_deltanet":
        gates = linears(b_proj=(H, D), a_proj=(H, D), g_proj=(values, D))
        return qkv | convolved | gates | bare(A_log=(H,), dt_bias=(H,), o_norm__weight=(V,))
    if name == "kda":
        gates = linears(**{"b_proj": (H, D), "f_proj.0": (V, D), "f_proj.1": (keys, V), "g_proj.0": (V, D), "g_proj.1": (values, V)})
        return qkv | convolved | gates | bare(A_log=(H,), dt_bias=(keys,), g_proj__1__bias=(values,), o_norm__weight=(V,))
    made = linears(r_proj=(D, D), k_proj=(D, D), v_proj=(D, D), o_proj=(D, D))
    made |= linears(**{f"{n}_lora.lora.{i}": (RANK, D) if i == 0 else (D, RANK) for n in "wag" for i in (0, 2)})
    made |= bare(**{f"x_{n}": (1, 1, D) for n in "rwkvag"}, k_k=(D,), k_a=(D,), r_k=(H, D // H), g_norm__weight=(D,), g_norm__bias=(D,))
    return made | bare(w_lora__lora__2__bias=(D,), a_lora__lora__2__bias=(D,))


def heads(t):
    return t.unflatten(-1, (H, -1))


def rms(x, weight, eps=1e-5):
    return x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * weight


def unit(x):
    return x / (x.square().sum(-1, keepdim=True) + 1e-6).sqrt()


def as_fla_says(name, w, x):
    """What the layer of that name puts out, and its cache: `recurrent_state`, `conv_state`."""

    def proj(n):
        return x @ w[f"{n}.weight"].T

    cache = []

    def conv(n, t, squash=F.silu):
        taps = w.get(f"{n}_conv1d.weight")
        if taps is None:
            return t
        padded = F.pad(t, (0, 0, WIDTH, 0))
        cache.append(padded[:, -WIDTH:].mT)
        return squash(sum(padded[:, 1 + i : 1 + i + t.shape[1]] * taps[:, 0, i] for i in range(WIDTH)))

    def read(q, k, v, decay, beta=None, scale=True):
        """Token by token, the state values first."""
        B, T = x.shape[:2]
        S, y = torch.zeros(B, H, v.shape[-1], k.shape[-1], dtype=F64), []
        for t in range(T):
            S = S * decay[:, t, :, None]
            new = v[:, t] if beta is None else beta[:, t, :, None] * (v[:, t] - torch.einsum("bhvk,bhk->bhv", S, k[:, t]))
            S = S + torch.einsum("bhv,bhk->bhvk", new, k[:, t])
            y.append(torch.einsum("bhvk,bhk->bhv", S, q[:, t]) * (q.shape[-1] ** -0.5 if scale else 1.0))
        return torch.stack(y, dim=1), S

    if name == "hgrn2":
        q, f, i = (heads(proj(n)) for n in ("q_proj", "f_proj", "i_proj"))
        y, S = read(F.silu(q), 1 - f.sigmoid(), i, f.sigmoid())
        return rms(y.flatten(2), w["g_norm.weight"]) @ w["o_proj.weight"].T, S, None
    if name == "rwkv7":
        return rwkv7_as_fla_says(w, x)
    q, k, v = (heads(conv(n, proj(f"{n}_proj"))) for n in "qkv")
    conv_state = tuple(cache) or None
    if name.startswith("gla"):
        gk = F.logsigmoid(proj("gk_proj.0") @ w["gk_proj.1.weight"].T + w["gk_proj.1.bias"]) / 16
        y, S = read(q, k, v, heads(gk.exp()))
        return (rms(y, w["g_norm_swish_gate.weight"]) * F.silu(heads(proj("g_proj")))).flatten(2) @ w["o_proj.weight"].T, S, conv_state
    q, k, beta = unit(q), unit(k), proj("b_proj").sigmoid()
    if name == "deltanet":
        y, S = read(q, k, v, torch.ones_like(k), beta)
        return rms(y, w["o_norm.weight"]).flatten(2) @ w["o_proj.weight"].T, S.mT, conv_state
    if name == "gated_deltanet":
        g = -w["A_log"].exp() * F.softplus(proj("a_proj") + w["dt_bias"])
        y, S = read(q, k, v, g.exp()[..., None].expand_as(k), beta)
        return (rms(y, w["o_norm.weight"]) * F.silu(heads(proj("g_proj")))).flatten(2) @ w["o_proj.weight"].T, S, conv_state
    g = -w["A_log"].exp()[:, None] * F.softplus(heads(proj("f_proj.0") @ w["f_proj.1.weight"].T + w["dt_bias"]))
    y, S = read(q, k, v, g.exp(), beta)
    opened = heads(proj("g_proj.0") @ w["g_proj.1.weight"].T + w["g_proj.1.bias"]).sigmoid()
    return (rms(y, w["o_norm.weight"]) * opened).flatten(2) @ w["o_proj.weight"].T, S, conv_state


def rwkv7_as_fla_says(w, x, first=None):
    """Of a layer above the first with `first`, a list: the first layer's values, to be put there or read from there."""
    B, T, _ = x.shape
    delta = F.pad(x, (0, 0, 1, 0))[:, :-1] - x
    mixed = {n: x + delta * w[f"x_{n}"] for n in "rwkvag"}

    def lora(n, squash=lambda t: t, bias=0.0):
        return squash(mixed[n] @ w[f"{n}_lora.lora.0.weight"].T) @ w[f"{n}_lora.lora.2.weight"].T + bias

    r, k, v = (mixed[n] @ w[f"{n}_proj.weight"].T for n in "rkv")
    if first:
        v = torch.lerp(v, first[0], lora("v", bias=w["v_lora.lora.2.bias"]).sigmoid())
    elif first is not None:
        first.append(v)
    decay = torch.exp(-math.exp(-0.5) * lora("w", torch.tanh, w["w_lora.lora.2.bias"]).sigmoid())
    a, g = lora("a", bias=w["a_lora.lora.2.bias"]).sigmoid(), lora("g", torch.sigmoid)
    kk = F.normalize(heads(k * w["k_k"]), dim=-1)
    k = k * (1 + (a - 1) * w["k_a"])
    r, k, v, decay, a = (heads(t) for t in (r, k, v, decay, a))
    S, y = torch.zeros(B, H, D // H, D // H, dtype=F64), []  # keys first
    for t in range(T):
        removed = torch.einsum("bhk,bhkv->bhv", -kk[:, t], S)
        S = decay[:, t, ..., None] * S + (kk * a)[:, t, ..., None] * removed[:, :, None] + k[:, t, ..., None] * v[:, t, :, None]
        y.append(torch.einsum("bhk,bhkv->bhv", r[:, t], S))
    o = F.group_norm(torch.stack(y, dim=1).reshape(B * T, D), H, w["g_norm.weight"], w["g_norm.bias"], eps=1e-5 * (D // H)).view(B, T, D)
    o = o + ((r * k * w["r_k"]).sum(-1, keepdim=True) * v).flatten(2)
    return (o * g) @ w["o_proj.weight"].T, S, x[:, -1]


def rwkv7_model_of(n_layers, vocab_size, hidden):
    """A state dict with the names and shapes of fla's RWKV7ForCausalLM."""
    norms = ["model.norm", "model.layers.0.pre_norm"]
    weights = {"model.embeddings.weight": torch.randn(vocab_size, D, dtype=F64), "lm_head.weight": torch.randn(vocab_size, D, dtype=F64)}
    for i in range(n_layers):
        layer = f"model.layers.{i}"
        norms += [f"{layer}.attn_norm", f"{layer}.ffn_norm"]
        own = weights_of("rwkv7")
        if i:
            own |= {"v_lora.lora.0.weight": torch.randn(RANK, D, dtype=F64), "v_lora.lora.2.weight": torch.randn(D, RANK, dtype=F64)}
            own["v_lora.lora.2.bias"] = torch.randn(D, dtype=F64)
        weights |= {f"{layer}.attn.{n}": t for n, t in own.items()}
        weights |= {f"{layer}.ffn.key.weight": 0.3 * torch.randn(hidden, D, dtype=F64), f"{layer}.ffn.x_k": torch.rand(D, dtype=F64)}
        weights[f"{layer}.ffn.value.weight"] = 0.3 * torch.randn(D, hidden, dtype=F64)
    return weights | {f"{norm}.{part}": torch.randn(D, dtype=F64) for norm in norms for part in ("weight", "bias")}


def rwkv7_model_as_fla_says(w, tokens, n_layers):
    def norm(x, name):
        return F.layer_norm(x, (D,), w[f"{name}.weight"], w[f"{name}.bias"])

    x, first = norm(w["model.embeddings.weight"][tokens], "model.layers.0.pre_norm"), []
    for i in range(n_layers):
        layer = f"model.layers.{i}"
        own = {n.removeprefix(f"{layer}.attn."): t for n, t in w.items() if n.startswith(f"{layer}.attn.")}
        x = x + rwkv7_as_fla_says(own, norm(x, f"{layer}.attn_norm"), first)[0]
        u = norm(x, f"{layer}.ffn_norm")
        u = u + (F.pad(u, (0, 0, 1, 0))[:, :-1] - u) * w[f"{layer}.ffn.x_k"]
        x = x + (u @ w[f"{layer}.ffn.key.weight"].T).relu() ** 2 @ w[f"{layer}.ffn.value.weight"].T
    return norm(x, "model.norm") @ w["lm_head.weight"].T


def test_a_whole_rwkv7_of_fla_gives_the_same_logits():
    config = RWKV7LMConfig(vocab_size=17, layer=CONFIGS["rwkv7"], n_layers=3, value_rank=RANK, hidden_size=20)
    weights, tokens = rwkv7_model_of(3, 17, 20), torch.randint(17, (2, 11))
    model = from_fla(config, weights)
    logits, state = model(tokens[:, :6], model.init_state(2))
    rest, _ = model(tokens[:, 6:], state)
    wanted = rwkv7_model_as_fla_says(weights, tokens, 3)
    assert_close(torch.cat([logits, rest], dim=1), wanted, rtol=1e-9, atol=1e-9)
    with pytest.raises(CheckpointError, match=r"there is no weight model\.layers\.1\.attn\.v_lora\.lora\.0\.weight"):
        from_fla(config, {n: t for n, t in weights.items() if n != "model.layers.1.attn.v_lora.lora.0.weight"})


def pieces(conv):
    return () if conv is None else (conv,) if isinstance(conv, torch.Tensor) else conv


@pytest.mark.parametrize("name", CONFIGS)
def test_a_layer_of_fla_gives_the_same_outputs_and_cache(name):
    weights, x = weights_of(name), torch.randn(2, 11, D, dtype=F64)
    memory = from_fla(CONFIGS[name], {f"model.layers.3.attn.{n}": t for n, t in weights.items()}, prefix="model.layers.3.attn.")
    wanted, recurrent, conv = as_fla_says(name, weights, x)
    y, state = memory(x, memory.init_state(2))
    assert_close(y, wanted, rtol=1e-9, atol=1e-10)
    found, found_conv = state_to_fla(memory, state)
    assert_close(found, recurrent, rtol=1e-9, atol=1e-10)
    assert (found_conv is None) == (conv is None)
    for f, w in zip(pieces(found_conv), pieces(conv), strict=True):
        assert f.shape == w.shape
        assert_close(f[..., 1 - WIDTH :], w[..., 1 - WIDTH :], rtol=1e-10, atol=1e-12)  # the oldest of `width` inputs is never read


@pytest.mark.parametrize("name", CONFIGS)
def test_a_stream_goes_on_from_the_cache_of_a_layer(name):
    weights, x = weights_of(name), torch.randn(2, 14, D, dtype=F64)
    memory = from_fla(CONFIGS[name], weights)
    wanted, _, _ = as_fla_says(name, weights, x)
    _, recurrent, conv = as_fla_says(name, weights, x[:, :6])
    y, _ = memory(x[:, 6:], state_from_fla(memory, recurrent, conv))
    assert_close(y, wanted[:, 6:], rtol=1e-9, atol=1e-10)


def test_every_layer_that_is_read_is_tested():
    assert {type(config) for config in CONFIGS.values()} == set(LAYERS)


def test_what_does_not_fit_is_refused_in_words():
    weights, config = weights_of("kda"), CONFIGS["kda"]
    with pytest.raises(CheckpointError, match=r"there is no weight b_proj\.weight"):
        from_fla(config, {n: t for n, t in weights.items() if n != "b_proj.weight"})
    with pytest.raises(CheckpointError, match=r"the layer holds q_conv1d\.bias, which KDAConfig has no place for"):
        from_fla(config, weights | {"q_conv1d.bias": torch.zeros(8)})
    with pytest.raises(CheckpointError, match="in the layer and"):
        from_fla(KDAConfig(d_model=D, n_heads=H), weights)
    with pytest.raises(CheckpointError, match="v_lora"):
        from_fla(CONFIGS["rwkv7"], weights_of("rwkv7") | {"v_lora.lora.0.weight": torch.zeros(RANK, D)})
    with pytest.raises(ConfigError, match="no layer of GRUConfig"):
        from_fla(GRUConfig(d_model=D), weights)
    memory = from_fla(config, weights)
    with pytest.raises(StateError, match="S would be"):
        state_from_fla(memory, torch.zeros(2, H, V + 1, K), tuple(torch.zeros(2, c, WIDTH) for c in (8, 8, 12)))
    with pytest.raises(ConfigError, match="no layer of fla"):
        state_to_fla(GRUConfig(d_model=D).build(), ())
