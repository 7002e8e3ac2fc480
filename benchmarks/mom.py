"""Mixture of memories against its backend: what E memories cost of which a token uses k, and one that all share.

    python benchmarks/mom.py --json benchmarks/results/mom_cost.json

Layers of Gated DeltaNet and of MoM around the same rule, one width, heads and sizes of keys and values. k memories and the shared one do
(k + 1) times the backend's work, less what all share (queries, gate, norm, output), and the sorting: to stay below (k + 1) x 1.2.
Times are medians; the layers take turns in one process, and each turn's ratio is taken first, so that what else the machine does
meets all of them.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from memseq.memories.gated_deltanet import GatedDeltaNetConfig
from memseq.memories.mom import MoMConfig
from memseq.recipes.machine import describe
from memseq.state import state_bytes

ALLOWED = 1.2


def layers(a: argparse.Namespace) -> dict[str, Any]:
    size = {"d_model": a.width, "n_heads": a.heads, "key_size": a.key_size, "value_size": a.key_size, "chunk_size": a.chunk_size}
    mom = {**size, "n_memories": a.memories, "n_active": a.active}
    configs = {
        "backend": GatedDeltaNetConfig(**size),
        "mom, sorted": MoMConfig(**mom),
        "mom, dense": MoMConfig(**mom, form="dense"),
        "mom, sorted, nothing shared": MoMConfig(**mom, shared=False),
    }
    torch.manual_seed(0)
    return {name: config.build().to(a.device) for name, config in configs.items()}


def forward(memory: Any, x: torch.Tensor) -> None:
    with torch.no_grad():
        memory(x, memory.init_state(len(x)))


def train(memory: Any, x: torch.Tensor) -> None:
    memory.zero_grad()
    y, _ = memory(x.requires_grad_(), memory.init_state(len(x)))
    y.sum().backward()


def step(memory: Any, x: torch.Tensor) -> None:
    with torch.no_grad():
        state = memory.init_state(len(x))
        for t in range(64):
            _, state = memory.step(x[:, t], state)


def measure(a: argparse.Namespace, name: str, run: Callable[..., None], batch_size: int, tokens: int) -> list[dict[str, Any]]:
    memories = layers(a)
    x = torch.randn(batch_size, tokens, a.width, device=a.device)
    times: dict[str, list[float]] = {layer: [] for layer in memories}
    for turn in range(a.rounds + 1):
        for layer, memory in memories.items():
            start = time.perf_counter()
            run(memory, x)
            if a.device != "cpu":
                torch.cuda.synchronize()
            if turn:  # the first turn warms up
                times[layer].append(time.perf_counter() - start)
    rows = []
    print(f"\n{name}, B {batch_size}, T {tokens}".ljust(44) + "ms".rjust(9) + "x backend".rjust(12))
    for layer, each in times.items():
        ratio = statistics.median(x / y for x, y in zip(each, times["backend"], strict=True))
        seconds = statistics.median(each)
        state = state_bytes(memories[layer].init_state(1))
        print(f"{layer:44}{seconds * 1e3:9.1f}{ratio:12.2f}")
        rows.append(
            {
                "what": name,
                "layer": layer,
                "batch_size": batch_size,
                "tokens": tokens,
                "seconds": seconds,
                "ratio": ratio,
                "state_bytes": state,
            }
        )
    return rows


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--json", type=Path, metavar="FILE", help="where the measurements go (default: nowhere)")
    p.add_argument("--width", type=int, default=256, metavar="D")
    p.add_argument("--heads", type=int, default=4, metavar="H")
    p.add_argument("--key-size", type=int, default=64, metavar="K", help="of keys and values of a head (default 64)")
    p.add_argument("--memories", type=int, default=4, metavar="E")
    p.add_argument("--active", type=int, default=2, metavar="k")
    p.add_argument("--batch-size", type=int, default=4, metavar="B")
    p.add_argument("--tokens", type=int, default=2048, metavar="T")
    p.add_argument("--chunk-size", type=int, default=32, metavar="L")
    p.add_argument("--rounds", type=int, default=7, metavar="N", help="turns of each layer, after one to warm up (default 7)")
    p.add_argument("--threads", type=int, default=1, metavar="N", help="CPU threads (default 1)")
    p.add_argument("--device", default="cpu", metavar="NAME", help="cpu or cuda (default cpu)")
    a = p.parse_args()
    torch.set_num_threads(a.threads)
    machine = describe()
    print(f"{machine['gpu'] if a.device != 'cpu' else machine['cpu']}, torch {machine['torch']}, {a.threads} threads")
    rows = measure(a, "forward", forward, a.batch_size, a.tokens)
    rows += measure(a, "forward and backward", train, a.batch_size, a.tokens)
    rows += measure(a, "64 steps", step, 1, 64)
    bound = (a.active + 1) * ALLOWED
    worst = max(row["ratio"] for row in rows if row["layer"] == "mom, sorted" and row["what"] != "64 steps")
    print(f"\nallowed {bound:.2f} x the backend, reached {worst:.2f}")
    shape = {name: getattr(a, name) for name in ("width", "heads", "key_size", "memories", "active", "chunk_size", "device")}
    if a.json:
        a.json.parent.mkdir(parents=True, exist_ok=True)
        claim = {"target": bound, "reached": worst, "ok": worst <= bound}
        result = {"machine": machine, "command": "python benchmarks/mom.py", "shape": shape, "rows": rows, "claim": claim}
        a.json.write_text(json.dumps(result, indent=1) + "\n")
        print(f"written to {a.json}")


if __name__ == "__main__":
    main()
