"""Every memory that is a matrix, side by side: bytes of state, speed of training, latency of one token.

    python benchmarks/matrix_memories.py --json benchmarks/results/matrix_memories.json

One layer of width 256 at its defaults (four heads where it has heads), float32, and attention, whose state grows, beside them. In every
round all layers take their turn, so that what else the machine does meets all of them; medians of rounds, processor seconds, one thread.

    training   forward and backward of 4 streams of 512 tokens, gradients of the input and of all weights
    step       one token of one stream, after 512 tokens have been read
    state      bytes of one stream after those tokens, convolutions and shifts included
"""

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch

from memseq.recipes.machine import describe
from memseq.state import state_bytes
from memseq.systems import config_class

D, STREAMS, TOKENS, STEPS = 256, 4, 512, 50
STEMS = (
    *("linear_attention", "retnet", "mamba2", "gla", "hgrn2", "rwkv6", "deltanet", "gated_deltanet", "kda", "rwkv7"),
    *("mom", "based", "stable_hadamard", "attention"),
)


class Layer:
    """One layer at work."""

    def __init__(self, stem: str) -> None:
        torch.manual_seed(0)
        self.stem, self.memory = stem, config_class(stem)(d_model=D).build()
        self.x, self.token = torch.randn(STREAMS, TOKENS, D, requires_grad=True), torch.randn(1, D)
        with torch.no_grad():
            self.read = self.memory(torch.randn(1, TOKENS, D), self.memory.init_state(1))[1]

    def train(self) -> float:
        """Processor seconds of forward and backward."""
        start = time.process_time()
        y, _ = self.memory(self.x, self.memory.init_state(STREAMS))
        torch.autograd.grad(y.square().mean(), [self.x, *self.memory.parameters()], allow_unused=True)
        return time.process_time() - start

    @torch.no_grad()
    def steps(self) -> float:
        """Processor seconds of one token, the mean of a few."""
        state, start = self.read, time.process_time()
        for _ in range(STEPS):
            _, state = self.memory.step(self.token, state)
        return (time.process_time() - start) / STEPS


def main() -> None:
    parser = argparse.ArgumentParser(description="Memories that are matrices, side by side.")
    parser.add_argument("--rounds", type=int, default=5, help="turns of every layer (default 5)")
    parser.add_argument("--json", help="write the result to this file")
    given = parser.parse_args()
    torch.set_num_threads(1)
    layers = [Layer(stem) for stem in STEMS]
    for layer in layers:  # caches and first calls
        layer.train(), layer.steps()
    seconds = [[(layer.train(), layer.steps()) for layer in layers] for _ in range(given.rounds)]
    rows: list[dict[str, Any]] = []
    for n, layer in enumerate(layers):
        train, step = ([turn[n][which] for turn in seconds] for which in (0, 1))
        rows.append(
            {
                "name": layer.stem,
                "parameters": sum(p.numel() for p in layer.memory.parameters()),
                "state_bytes": state_bytes(layer.read),
                "train_tokens_per_second": round(STREAMS * TOKENS / statistics.median(train)),
                "train_tokens_per_second_range": [round(STREAMS * TOKENS / t) for t in (max(train), min(train))],
                "step_microseconds": round(1e6 * statistics.median(step)),
                "step_microseconds_range": [round(1e6 * t) for t in (min(step), max(step))],
            }
        )
        print(json.dumps(rows[-1]), flush=True)
    result = {"machine": describe(), "command": "python benchmarks/matrix_memories.py", "rounds": given.rounds, "rows": rows}
    if given.json:
        Path(given.json).write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
