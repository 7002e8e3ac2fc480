"""Titans' memory against the `NeuralMemory` of the package titans-pytorch, against its own scan form, and against a stream's length.

    pip install titans-pytorch
    python benchmarks/titans.py --json benchmarks/results/titans_speed.json

The peer is measured in the ways in which it can be asked for segments of 64 tokens:

    chunk 64, batch 64       gates by chunk, gradients at each chunk's first weights: `steps="segment"` here, one function without the norm
                             (`agreement` says how far the outputs of the two are apart, in float64)
    chunk 64                 gates by chunk, all gradients at the sequence's first weights: no recurrence of gradients at all
    chunk 1, batch 64        gates by token, gradients at each chunk's first weights: the paper's function, `steps="token"` here

and beside Gated DeltaNet and the other memories that learn while they read, ATLAS' family and Miras' three (`--only family`): one layer of
width 256 at its defaults, but with heads so small that their features are few.

Forward and backward, float32, one thread. The contenders take turns in one process, after a turn to warm up; times are medians of
processor seconds. Bytes are those of all tensors alive at once on top of the weights.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from memseq.memories.atlas import AtlasConfig, DeepTransformersConfig, DotConfig, OmegaNetConfig
from memseq.memories.gated_deltanet import GatedDeltaNetConfig
from memseq.memories.miras import MemoraConfig, MonetaConfig, YaadConfig
from memseq.memories.titans import TitansConfig
from memseq.ops.fast_network import mlp
from memseq.ops.titans import FastState, Gates, titans_chunkwise, titans_scan
from memseq.ops.titans_segments import GatheredState, SegmentGates, segments_chunkwise
from memseq.recipes.machine import describe
from memseq.state import state_bytes
from memseq.training.live_bytes import LiveBytes

B, T, D, H, L = 4, 1024, 256, 4, 64
SHORT = 128  # tokens at which the peer's gates by token are measured: at depth 2 a thousand do not fit into 24 GiB


def ours(depth: int, n_tokens: int = T, **options: Any) -> Callable[[], None]:
    memory, x = (
        TitansConfig(d_model=D, n_heads=H, segment_length=L, depth=depth, **options).build(),
        torch.randn(B, n_tokens, D, requires_grad=True),
    )
    return lambda: memory(x, memory.init_state(B))[0].sum().backward()


def agreement(depth: int) -> float | None:
    """The largest difference between the peer's outputs and those of `ops/titans_segments.py` at the peer's projections and gates."""
    try:
        from titans_pytorch.neural_memory import NeuralMemory
    except ImportError:
        return None
    b, n, d, heads, chunk = 2, 200, 32, 4, 16
    options = {"chunk_size": chunk, "batch_size": chunk, "mem_model_norm_add_residual": False, "init_adaptive_step_bias": -4.0}
    memory = NeuralMemory(
        dim=d, heads=heads, dim_head=d // heads, default_model_kwargs={"depth": depth, "expansion_factor": 4.0}, **options
    ).double()
    x = torch.randn(b, n, d, dtype=torch.float64)
    with torch.no_grad():
        stored, asked = memory.store_norm(x), memory.retrieve_norm(x)
        q, k, v = (
            z.unflatten(-1, (heads, -1)).transpose(1, 2)
            for z in (memory.to_queries(asked), memory.to_keys(stored), memory.to_values(stored))
        )
        forget, momentum, step = (
            gate[0](stored).transpose(1, 2) for gate in (memory.to_decay_factor, memory.to_momentum, memory.to_adaptive_step)
        )
        gates = SegmentGates(forget, momentum, step.sigmoid() * 2 / k.shape[-1])  # its loss is a mean of squares, ours half their sum
        weights = tuple(W.expand(b, *W.shape) for W in memory.memory_model_parameters)
        nothing = tuple(torch.zeros_like(W) for W in weights)
        state = GatheredState(weights, nothing, nothing, torch.zeros(b, heads, 2, dtype=torch.float64), torch.zeros(b, dtype=torch.int64))
        network = mlp((k.shape[-1], *[4 * k.shape[-1]] * (depth - 1), k.shape[-1]))
        said = segments_chunkwise(network, q, k, v, gates, state, segment_length=chunk)[0]
        y = memory.combine_heads((said * memory.retrieve_gate(asked)).transpose(1, 2).flatten(2))
        return float((y - memory(x)[0]).abs().max())


def peer(depth: int, n_tokens: int = T, **options: Any) -> Callable[[], None] | None:
    try:
        from titans_pytorch.neural_memory import NeuralMemory
    except ImportError:
        return None
    model = {"depth": depth, "expansion_factor": 4.0}
    memory, x = (
        NeuralMemory(dim=D, heads=H, dim_head=D // H, default_model_kwargs=model, **options),
        torch.randn(B, n_tokens, D, requires_grad=True),
    )
    return lambda: memory(x)[0].sum().backward()


def form(read: Callable, depth: int) -> Callable[[], None]:
    """One form of the op alone, on four of the streams' heads."""
    K, n = D // H, 256
    network = mlp((K, *[4 * K] * (depth - 1), K))
    weights = tuple((torch.randn(1, H, *layer.shape) * 0.1).requires_grad_() for layer in network.fast)
    q, k, v = (torch.nn.functional.normalize(torch.randn(1, H, n, K), dim=-1).requires_grad_() for _ in range(3))
    gates = Gates(torch.full((1, H, n), -0.01), torch.full((1, H, n), -0.5), torch.full((1, H, n), 0.1))
    state = FastState(weights, tuple(torch.zeros_like(W) for W in weights), weights, torch.zeros(1, dtype=torch.int64))
    return lambda: read(network, q, k, v, gates, state, segment_length=L, limit=4.0)[0].sum().backward()


def family() -> dict[str, Any]:
    """A layer of width 256 of each memory that learns while it reads, and of Gated DeltaNet."""
    four: dict[str, Any] = {"d_model": D, "n_heads": H}
    return {
        "gated_deltanet": GatedDeltaNetConfig(**four),
        "titans, a matrix": TitansConfig(**four, depth=1),
        "titans": TitansConfig(**four),
        "omeganet": OmegaNetConfig(d_model=D, n_heads=16),
        "dot": DotConfig(d_model=D, n_heads=32),
        "deep_transformers": DeepTransformersConfig(d_model=D, n_heads=32),
        "yaad": YaadConfig(**four),
        "moneta": MonetaConfig(**four),
        "memora": MemoraConfig(**four),
        "atlas": AtlasConfig(d_model=D, n_heads=16),
    }


def layer(config: Any, n_tokens: int) -> Callable[[], None]:
    memory, x = config.build(), torch.randn(1, n_tokens, D, requires_grad=True)
    return lambda: memory(x, memory.init_state(1))[0].sum().backward()


def bytes_kept(config: Any) -> int:
    """Of one stream, between two segments."""
    memory = config.build()
    with torch.no_grad():
        return state_bytes(memory.advance(torch.randn(1, 64, D), memory.init_state(1)))


def in_turns(contenders: dict[str, Callable[[], None]], rounds: int, seconds: float = 20.0) -> dict[str, dict[str, float]]:
    """Median processor seconds, and peak bytes. What takes longer than `seconds` runs once."""
    spent: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds + 1):
        for name, run in contenders.items():
            if sum(spent[name]) > seconds:
                continue
            began = time.process_time()
            run()
            spent[name].append(time.process_time() - began)
    found = {}
    for name, run in contenders.items():
        with LiveBytes() as held:
            run()
        found[name] = {"seconds": statistics.median(spent[name][1:] or spent[name]), "bytes": held.peak}
    return found


def speeds(title: str, contenders: dict[str, Any], n_tokens: int, rounds: int) -> dict[str, dict[str, float]]:
    """Those that are there, in turns, in tokens a second and against the first."""
    rows = in_turns({name: run for name, run in contenders.items() if run}, rounds)
    for name, row in rows.items():
        row |= {"tokens_per_second": round(B * n_tokens / row["seconds"]), "speed of memseq": row["seconds"] / rows["memseq"]["seconds"]}
        times = f"{row['tokens_per_second']:8} tokens/s, {row['bytes'] / 1e6:5.0f} MB, x {row['speed of memseq']:.2f}"
        print(f"{title}  {name:45} {times}", flush=True)
    return rows


def latency(upto: int, options: dict[str, Any]) -> list[dict[str, float]]:
    """Milliseconds of a step after more and more tokens of one stream; the tokens between are read in pieces."""
    memory, rows, seen = TitansConfig(**options).build(), [], 0
    width, marks = options["d_model"], [n for n in (1_000, 10_000, 100_000, 1_000_000) if n <= upto]
    with torch.no_grad():
        state = memory.init_state(1)
        for mark in marks:
            while seen < mark:
                n = min(4_000, mark - seen)
                state, seen = memory.advance(torch.randn(1, n, width), state), seen + n
            spent = []
            for _ in range(2 * options["segment_length"]):
                x, began = torch.randn(1, width), time.process_time()
                y, state = memory.step(x, state)
                spent.append(time.process_time() - began)
            seen += len(spent)
            finite = all(bool(W.isfinite().all()) for W in (y, *state.fast.weights, *state.fast.momentum))
            rows.append({"tokens": mark, "milliseconds": 1e3 * statistics.median(spent), "finite": finite})
            print(rows[-1], flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE", help="where the measurements go (default: nowhere)")
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="turns of each contender (default 5)")
    parser.add_argument(
        "--only", choices=("speed", "forms", "latency", "family"), help="measure this alone, and keep what the file has of the rest"
    )
    parser.add_argument(
        "--peer-path", metavar="DIR", nargs="+", default=[], help="where titans-pytorch and what it needs were installed with pip --target"
    )
    parser.add_argument("--slow", action="store_true", help=f"the peer with gates by token too, on {SHORT} tokens")
    a = parser.parse_args()
    torch.set_num_threads(1)
    sys.path += a.peer_path
    result: dict[str, Any] = json.loads(a.json.read_text()) if a.json and a.only and a.json.exists() else {}
    result |= {"machine": describe(), "shape": {"B": B, "T": T, "D": D, "heads": H, "segment": L}}
    if a.only in (None, "speed"):
        for depth in (1, 2):
            # steps of one over the segment's length, as 64 of them are taken at once: weights that explode are slow to compute with
            same: dict[str, Any] = {"steps": "segment", "conv_width": 1, "gradient_limit": None, "step": 1 / L}
            calm: dict[str, Any] = {"chunk_size": L, "batch_size": L, "init_adaptive_step_bias": -4.0}
            contenders: dict[str, Any] = {
                "memseq": ours(depth),
                "memseq, normed as the peer": ours(depth, form="normed", step=0.01),
                "memseq, by segment": ours(depth, steps="segment"),
                "memseq, by segment, as the peer without norm": ours(depth, **same),
                "memseq, by segment, normed as the peer": ours(depth, **same, form="normed"),
                "peer, chunk 64": peer(depth, chunk_size=L),
                "peer, chunk 64, batch 64": peer(depth, **calm),
                "peer, chunk 64, batch 64, without norm": peer(depth, **calm, mem_model_norm_add_residual=False),
            }
            result[f"depth {depth}"] = speeds(f"depth {depth}", contenders, T, a.rounds)
            if a.slow:
                name = f"depth {depth}, {SHORT} tokens"
                by_token = {"memseq": ours(depth, SHORT), "peer, chunk 1, batch 64": peer(depth, SHORT, chunk_size=1, batch_size=L)}
                result[name] = speeds(name, by_token, SHORT, a.rounds)
            result[f"agreement, depth {depth}"] = agreement(depth)
            save(result, a.json)
    if a.only in (None, "forms"):
        for depth in (1, 2):
            rows = in_turns({"dual": form(titans_chunkwise, depth), "scan": form(titans_scan, depth)}, a.rounds)
            rows["ratio"] = {key: rows["scan"][key] / rows["dual"][key] for key in ("seconds", "bytes")}
            print(
                f"depth {depth}  scan / dual: {rows['ratio']['seconds']:.1f} x the time, {rows['ratio']['bytes']:.1f} x the bytes",
                flush=True,
            )
            result[f"forms, depth {depth}"] = rows
            save(result, a.json)
    if a.only in (None, "family"):
        configs = family()
        rows = in_turns({name: layer(config, 256) for name, config in configs.items()}, a.rounds, seconds=8.0)
        for name, row in rows.items():
            row |= {"tokens_per_second": round(256 / row["seconds"]), "state_bytes": bytes_kept(configs[name])}
            print(f"{name:20} {row['tokens_per_second']:8} tokens/s, state {row['state_bytes']:10,}", flush=True)
        result["family"] = rows
        save(result, a.json)
    if a.only in (None, "latency"):
        result["latency"] = latency(100_000, {"d_model": 64, "n_heads": 2, "segment_length": 16})
        result["latency, small"] = latency(1_000_000, {"d_model": 16, "n_heads": 1, "segment_length": 64, "depth": 1})
        save(result, a.json)


def save(result: dict[str, Any], path: Path | None) -> None:
    if path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
