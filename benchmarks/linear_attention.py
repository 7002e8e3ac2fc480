"""The linear family beside transformers' own torch paths: speed, flatness in the length of the stream, and peak memory.

    python benchmarks/linear_attention.py --json benchmarks/results/linear_attention.json

1. beside    each pair computes the same function of the same float32 numbers (checked before timing), in one process, turn by turn:
             the gated delta rule by chunks and one token of it, Mamba-2's scan, a whole Mamba-2 mixer and a whole Gated DeltaNet
             layer with equal weights. transformers is timed with the chunk size it chooses, ours with its own default.
2. flat      processor time per token over streams of 1,024 to 262,144 tokens: in one call, forward and backward, where new memory must be
             had for every token (the kernel's time counts too); and forward in pieces, as a stream is read.
3. memory    peak bytes of all tensors alive in forward and backward of a layer per token, at several lengths; and of memory
             replay over more and more segments of one length.

Times are medians of processor seconds, one thread unless told. Needs `pip install 'memseq[hf]'`.
"""

import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from _command import begun, command, keep
from torch import Tensor
from torch.nn import functional as F
from transformers import Mamba2Config as HFMamba2Config
from transformers import Qwen3NextConfig
from transformers.models.mamba2.modeling_mamba2 import Mamba2Mixer, mamba2_chunk_scan
from transformers.models.qwen3_next.modeling_qwen3_next import (
    Qwen3NextGatedDeltaNet,
    torch_chunk_gated_delta_rule,
    torch_recurrent_gated_delta_rule,
)

from memseq.memories.gated_deltanet import GatedDeltaNetConfig
from memseq.models.stack import StackConfig
from memseq.ops.linear_attention import decay_chunkwise, delta_chunkwise
from memseq.recipes.machine import describe
from memseq.retrofit.linear_weights import from_mamba2_mixer, from_qwen3_next_layer
from memseq.training.cell import StreamCell
from memseq.training.lanes import Segment
from memseq.training.live_bytes import LiveBytes
from memseq.training.replay import replay_backward

Pair = tuple[Callable[[], Any], Callable[[], Any], tuple[Tensor, ...]]  # ours, theirs, what gradients are taken of
TARGETS = {
    "gated delta rule, forward": 2.0,
    "gated delta rule, forward and backward": 3.0,
    "gated delta rule, one token": 1.0,
    "Mamba-2 scan, forward": 2.0,
    "Mamba-2 scan, forward and backward": 2.0,
    "Mamba-2 mixer, forward": 2.0,
    "Mamba-2 mixer, forward and backward": 2.0,
}


def heads(B: int, T: int, H: int, size: int) -> Tensor:
    return torch.randn(B, T, H, size).requires_grad_()


def delta_pair(B: int, T: int, H: int, K: int) -> Pair:
    q, k, v = heads(B, T, H, K), F.normalize(heads(B, T, H, K), dim=-1).detach().requires_grad_(), heads(B, T, H, K)
    g, beta = (-0.3 * torch.rand(B, T, H)).requires_grad_(), torch.rand(B, T, H).requires_grad_()
    S = torch.randn(B, H, K, K).requires_grad_()
    theirs = torch_recurrent_gated_delta_rule if T == 1 else torch_chunk_gated_delta_rule

    def ours() -> tuple[Tensor, Tensor]:
        y, end = delta_chunkwise(*(z.transpose(1, 2) for z in (q * K**-0.5, k, v, beta, g)), S)
        return y.transpose(1, 2), end

    return ours, lambda: theirs(q, k, v, g, beta, initial_state=S, output_final_state=True), (q, k, v, g, beta, S)


def scan_pair(B: int, T: int, H: int, P: int, N: int) -> Pair:
    u, key, query, d = heads(B, T, H, P), heads(B, T, 1, N), heads(B, T, 1, N), (0.1 * torch.rand(B, T, H)).requires_grad_()
    rate, skip = (-torch.arange(1.0, H + 1)).requires_grad_(), torch.ones(H).requires_grad_()
    h = torch.zeros(B, H, N, P)

    def ours() -> tuple[Tensor, Tensor]:
        values, log_a = (u * d[..., None]).transpose(1, 2), (d * rate).transpose(1, 2)
        y, end = decay_chunkwise(query.transpose(1, 2), key.transpose(1, 2), values, log_a, h)
        return torch.addcmul(y.transpose(1, 2), u, skip[:, None]), end

    def theirs() -> tuple[Tensor, Tensor]:
        y, end = mamba2_chunk_scan(u, d, rate, key, query, chunk_size=256, D=skip, return_final_states=True)
        return y, end.transpose(-1, -2)

    return ours, theirs, (u, key, query, d, rate, skip)


def mixer_pair(B: int, T: int, D: int) -> Pair:
    shape = {"hidden_size": D, "num_heads": D // 32, "head_dim": 64, "state_size": 128, "n_groups": 1, "num_hidden_layers": 1}
    theirs = Mamba2Mixer(HFMamba2Config(**shape), layer_idx=0)
    ours = from_mamba2_mixer(theirs)
    x = torch.randn(B, T, D).requires_grad_()
    return lambda: (ours(x, ours.init_state(B))[0],), lambda: (theirs(x),), (x, *_weights(ours), *_weights(theirs))


def layer_pair(B: int, T: int, D: int) -> Pair:
    n = D // 64
    shape = {"linear_num_value_heads": n, "linear_num_key_heads": n, "linear_key_head_dim": 64, "linear_value_head_dim": 64}
    theirs = Qwen3NextGatedDeltaNet(Qwen3NextConfig(hidden_size=D, num_hidden_layers=1, layer_types=["linear_attention"], **shape), 0)
    ours = from_qwen3_next_layer(theirs)
    x = torch.randn(B, T, D).requires_grad_()
    return lambda: (ours(x, ours.init_state(B))[0],), lambda: (theirs(x),), (x, *_weights(ours), *_weights(theirs))


def _weights(module: Any) -> tuple[Tensor, ...]:
    return tuple(module.parameters())


def seconds(run: Callable[[], Any], at_least: float = 0.02) -> float:
    """Processor seconds of one call; short calls are repeated, because the clock is coarse."""
    calls, start = 0, time.process_time()
    while (spent := time.process_time() - start) < at_least:
        run()
        calls += 1
    return spent / calls


def beside(name: str, pair: Pair, n_tokens: int, rounds: int, *, backward: bool) -> dict[str, Any]:
    ours, theirs, leaves = pair

    def forward(side: Callable[[], Any]) -> None:
        with torch.no_grad():
            side()

    def both(side: Callable[[], Any]) -> None:
        for leaf in leaves:
            leaf.grad = None
        torch.autograd.backward([out.sum() for out in side()])

    run = both if backward else forward
    with torch.no_grad():
        difference = max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(ours(), theirs(), strict=True))
    times: dict[str, list[float]] = {"ours": [], "theirs": []}
    for turn in range(rounds + 1):
        for side, fn in (("ours", ours), ("theirs", theirs)):
            spent = seconds(lambda fn=fn: run(fn))
            if turn:  # the first turn warms up
                times[side].append(spent)
    mine, other = (statistics.median(times[side]) for side in ("ours", "theirs"))
    title = f"{name}{'' if n_tokens == 1 else ', forward and backward' if backward else ', forward'}"
    row: dict[str, Any] = {
        "what": title,
        "ours_ms": round(1000 * mine, 3),
        "transformers_ms": round(1000 * other, 3),
        "times_faster": round(other / mine, 2),
        "target": TARGETS.get(title),
        "relative_difference": float(f"{difference:.1e}"),
    }
    if n_tokens > 1:
        row["ours_tokens_per_second"] = round(n_tokens / mine)
    print(json.dumps(row), flush=True)
    return row


def flat(lengths: list[int], H: int, K: int, rounds: int) -> list[dict[str, Any]]:
    """Microseconds a token: forward and backward in one call over the whole length, and forward alone in pieces of 1,024; batch 1."""
    rows, (piece, _, _) = [], delta_pair(1, 1024, H, K)
    for T in lengths:
        ours, _, leaves = delta_pair(1, T, H, K)

        def run(ours=ours, leaves=leaves) -> None:
            for leaf in leaves:
                leaf.grad = None
            torch.autograd.backward([out.sum() for out in ours()])

        run()
        spent = statistics.median(seconds(run) for _ in range(max(1, min(rounds, 2**17 // T))))
        with torch.no_grad():
            piece()
            streamed = seconds(lambda T=T: [piece() for _ in range(T // 1024)])
        rows.append(
            {
                "tokens": T,
                "one_call_forward_and_backward_us_per_token": round(1e6 * spent / T, 2),
                "in_pieces_forward_us_per_token": round(1e6 * streamed / T, 2),
            }
        )
        print(json.dumps(rows[-1]), flush=True)
    return rows


def memory(lengths: list[int], segments: list[int], D: int) -> dict[str, Any]:
    """Peak bytes on top of the weights and the input."""
    layer = GatedDeltaNetConfig(d_model=D).build()
    whole = []
    for T in lengths:
        x, state = torch.randn(1, T, D), layer.init_state(1)
        with LiveBytes() as held:
            layer(x, state)[0].sum().backward()
        layer.zero_grad(set_to_none=True)
        whole.append({"tokens": T, "peak_bytes": held.peak, "bytes_per_token": round(held.peak / T)})
    model = StackConfig(vocab_size=256, d_model=D, layers=2 * (GatedDeltaNetConfig(d_model=D),)).build()
    cell, replayed = StreamCell(model), []
    for n in segments:
        tokens = torch.randint(256, (n, 1, 513))
        parts = [Segment(t[:, :-1].clone(), t[:, 1:].clone(), torch.zeros(1, dtype=torch.bool)) for t in tokens]
        with LiveBytes() as held:
            replay_backward(cell, parts, model.init_state(1))
        model.zero_grad(set_to_none=True)
        replayed.append({"segments_of_512": n, "peak_bytes": held.peak})
    return {"layer": {"d_model": D, "rows": whole}, "replay": {"d_model": D, "layers": 2, "rows": replayed}}


def main() -> None:
    parser = command(__doc__)
    parser.add_argument("--batch-size", type=int, default=4, help="streams (default 4)")
    parser.add_argument("--tokens", type=int, default=2048, help="tokens a stream (default 2048)")
    parser.add_argument("--heads", type=int, default=4, help="heads of the gated delta rule (default 4)")
    parser.add_argument("--size", type=int, default=64, help="features of a key and of a value (default 64)")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each side (default 5)")
    parser.add_argument("--longest", type=int, default=2**18, help="longest stream of the flatness row (default 262144)")
    a = begun(parser)
    B, T, H, K = a.batch_size, a.tokens, a.heads, a.size
    result: dict[str, Any] = {"machine": describe(), "dtype": "float32", "shape": {"B": B, "T": T, "H": H, "K": K, "V": K}}
    pairs = {
        "gated delta rule": delta_pair(B, T, H, K),
        "Mamba-2 scan": scan_pair(B, T, 8, 64, 128),
        "Mamba-2 mixer": mixer_pair(B, T, H * K),
        "Gated DeltaNet layer": layer_pair(B, T, H * K),
    }
    result["beside"] = [
        beside(name, pair, B * T, a.rounds, backward=backward) for name, pair in pairs.items() for backward in (False, True)
    ]
    result["beside"].append(beside("gated delta rule, one token", delta_pair(B, 1, H, K), 1, 2 * a.rounds, backward=False))
    result["flat"] = flat([n for n in (2**10, 2**12, 2**14, 2**16, 2**18) if n <= a.longest], H, K, a.rounds)
    result["memory"] = memory([512, 1024, 2048, 4096, 8192], [2, 8, 32], H * K)
    print(json.dumps(result["memory"]))
    result["reached"] = {row["what"]: row["times_faster"] >= row["target"] for row in result["beside"] if row["target"]}
    keep(result, a.json)


if __name__ == "__main__":
    main()
