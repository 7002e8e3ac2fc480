"""Prefix softmax and elementwise scans: milliseconds of every form, and of the memories that stand on them.

    python benchmarks/scans.py --json benchmarks/results/scans.json

Forward, and forward with backward, float32; the forms take turns and the median of several rounds counts. Prefix softmax (B 4, H 4, V 64)
stands beside causal attention by torch's `scaled_dot_product_attention`, which computes the same where its queries are one
vector repeated. The elementwise scan (B 4, m 64) stands beside its definition, token by token.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

from memseq.memories.aaren import AarenConfig
from memseq.memories.attention import AttentionConfig
from memseq.memories.stable_hadamard import StableHadamardConfig
from memseq.ops.attention import NOTHING
from memseq.ops.hadamard import hadamard_chunkwise, hadamard_recurrent
from memseq.ops.prefix_softmax import Sums, prefix_softmax_chunkwise, prefix_softmax_recurrent, prefix_softmax_scan
from memseq.recipes.machine import describe

Forms = dict[str, Callable[[], torch.Tensor]]


def prefix_softmax(T: int) -> Forms:
    B, H, V = 4, 4, 64
    s, v, q, k = (torch.randn(B, H, T, *n).requires_grad_() for n in ((), (V,), (V,), (V,)))
    past = Sums(torch.full((B, H), NOTHING), torch.zeros(B, H), torch.zeros(B, H, V))
    return {
        "chunkwise": lambda: prefix_softmax_chunkwise(s, v, past)[0],
        "scan": lambda: prefix_softmax_scan(s, v, past)[0],
        "recurrent": lambda: prefix_softmax_recurrent(s, v, past)[0],
        "causal attention": lambda: F.scaled_dot_product_attention(q, k, v, is_causal=True),
    }


def hadamard(T: int) -> Forms:
    B, m = 4, 64
    inputs = [torch.randn(B, T, m).mul_(0.3).requires_grad_() for _ in range(5)]
    M = torch.zeros(B, m, m)
    return {
        "chunkwise": lambda: hadamard_chunkwise(*inputs, M, limit=100.0)[0],
        "recurrent": lambda: hadamard_recurrent(*inputs, M, limit=100.0)[0],
    }


def memories(T: int) -> Forms:
    x = torch.randn(4, T, 256).requires_grad_()
    built = {
        "aaren": AarenConfig(d_model=256).build(),
        "attention": AttentionConfig(d_model=256).build(),
        "stable_hadamard, m = 64": StableHadamardConfig(d_model=256, memory_size=64).build(),
    }
    return {name: lambda memory=memory: memory(x, memory.init_state(4))[0] for name, memory in built.items()}


def measured(forms: Forms, rounds: int) -> dict[str, dict[str, float]]:
    times: dict[str, dict[str, list[float]]] = {name: {"forward": [], "with_backward": []} for name in forms}
    for turn in range(rounds + 1):
        for name, form in forms.items():
            with torch.no_grad():
                began = time.perf_counter()
                form()
                forward = time.perf_counter() - began
            began = time.perf_counter()
            form().sum().backward()
            if turn:  # the first call of anything is slow
                times[name]["forward"].append(1e3 * forward)
                times[name]["with_backward"].append(1e3 * (time.perf_counter() - began))
    return {name: {kind: round(statistics.median(values), 2) for kind, values in kinds.items()} for name, kinds in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="measurements of each form (default 5)")
    parser.add_argument("--json", help="write the result to this file")
    given = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for what, make, lengths in (
        ("prefix softmax", prefix_softmax, (256, 2048)),
        ("elementwise scan", hadamard, (256,)),
        ("memory", memories, (256, 2048)),
    ):
        for T in lengths:
            rows.append({"what": what, "T": T, "ms": measured(make(T), given.rounds)})
            print(json.dumps(rows[-1]), flush=True)
    if given.json:
        told = {"machine": describe(), "command": "python benchmarks/scans.py", "rows": rows}
        Path(given.json).write_text(json.dumps(told, indent=1) + "\n")


if __name__ == "__main__":
    main()
