"""Training speed of the encoder-decoder Memformer beside the PyPI package `memformer`, at equal shape.

Both read S segments of L tokens, predict each next segment from the last, and back-propagate through all S:

    theirs  Memformer(dim, enc_depth, dec_depth, ...) of the package; one graph over the segments (its replay scores the
            last segment only, so it is shown apart)
    ours    MemformerEncDec: one graph over the segments, and memory replay; in float32 and under bfloat16 autocast

Rounds alternate between the contenders in one process; the figure is the median of the rounds, in processor time, which does
not run while other programs hold the cores. Both sides run on the same torch;
ours picks its library for float32 products (`memseq/ops/linear.py`), the package takes torch's default, and the rates of both
libraries are measured in this run. Model FLOPs are counted on the one-graph step by torch's counter; utilisation is against the
faster product of the same dtype.

    pip install 'memseq[oracle]' && python benchmarks/training.py --json benchmarks/results/training.json
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from memseq.layers.slots import SlotsConfig
from memseq.models.memformer_encdec import MemformerEncDecConfig
from memseq.ops.linear import linear
from memseq.recipes.machine import describe, keep_freed_memory
from memseq.training.cell import StreamCell
from memseq.training.lanes import Segment
from memseq.training.replay import replay_backward


class Ours:
    """One training step without the optimiser, which both sides would share."""

    def __init__(self, shape: argparse.Namespace, *, replay: bool, narrow: bool) -> None:
        torch.manual_seed(0)
        slots = SlotsConfig(d_model=shape.width, n_heads=shape.heads, n_slots=shape.slots, segment_length=shape.length)
        depth = {"n_encoder_layers": shape.encoder, "n_decoder_layers": shape.decoder, "n_heads": shape.heads}
        self.model = MemformerEncDecConfig(vocab_size=shape.vocabulary, d_model=shape.width, slots=slots, **depth).build()
        self.cell, self.replay, self.narrow, self.shape = StreamCell(self.model), replay, narrow, shape
        data = torch.randint(shape.vocabulary, (shape.batch, shape.segments * shape.length + 1))
        fresh = torch.zeros(shape.batch, dtype=torch.bool)
        pieces = (t.split(shape.length, dim=1) for t in (data[:, :-1], data[:, 1:]))
        self.segments = [Segment(tokens, targets, fresh) for tokens, targets in zip(*pieces, strict=True)]

    def __call__(self) -> None:
        self.model.zero_grad()
        state, scale = self.model.init_state(self.shape.batch), 1 / (self.shape.batch * self.shape.segments * self.shape.length)
        with torch.autocast("cpu", torch.bfloat16, enabled=self.narrow):
            if self.replay:
                replay_backward(self.cell, self.segments, state, scale=scale)
                return
            total: Any = 0.0
            for segment in self.segments:
                loss, state = self.cell.loss(segment, state)
                total = total + loss
        (total * scale).backward()


class Theirs:
    """The package's own loss on (segment, next segment); its decoder drops one token of each target."""

    def __init__(self, shape: argparse.Namespace, *, replay: bool) -> None:
        from memformer import Memformer
        from memformer.mrbp import memory_replay_backprop

        torch.manual_seed(0)
        encoder = {
            "enc_num_tokens": shape.vocabulary,
            "enc_depth": shape.encoder,
            "enc_heads": shape.heads,
            "enc_max_seq_len": shape.length,
        }
        decoder = {
            "dec_num_tokens": shape.vocabulary,
            "dec_depth": shape.decoder,
            "dec_heads": shape.heads,
            "dec_max_seq_len": shape.length,
        }
        self.model = Memformer(dim=shape.width, num_memory_slots=shape.slots, **encoder, **decoder)
        self.replay, self.shape, self.package_replay = replay, shape, memory_replay_backprop
        self.data = torch.randint(shape.vocabulary, (shape.batch, (shape.segments + 1) * shape.length))

    def __call__(self) -> None:
        self.model.zero_grad()
        segments, memory, total = self.data.split(self.shape.length, dim=1), None, 0.0
        if self.replay:
            self.package_replay(self.model, torch.cat(segments[:-1], dim=1), segments[-1])
            return
        for source, target in pairwise(segments):
            _, memory, loss = self.model(src=source, tgt=target, mems=memory)
            total = total + loss
        (total / self.shape.segments).backward()


def product_rate(dtype: torch.dtype, product: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> float:
    """FLOP/s of a 1024-cubed product, the best of eight."""
    a = torch.randn(1024, 1024).to(dtype)
    best = float("inf")
    for _ in range(8):
        began = time.process_time()
        product(a, a)
        best = min(best, time.process_time() - began)
    return 2 * 1024**3 / best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sizes = {"encoder": 4, "decoder": 4, "width": 256, "heads": 8, "length": 128, "slots": 32, "segments": 8, "batch": 8, "vocabulary": 256}
    for name, value in sizes.items():
        parser.add_argument(f"--{name}", type=int, default=value, help=f"default {value}")
    parser.add_argument("--rounds", type=int, default=5, help="timed steps of each contender (default 5)")
    parser.add_argument("--json", help="write the result to this file")
    shape = parser.parse_args()
    keep_freed_memory()
    contenders: dict[str, Any] = {
        "memformer package, BPTT": Theirs(shape, replay=False),
        "memformer package, its replay (last segment's loss only)": Theirs(shape, replay=True),
        "memseq, BPTT": Ours(shape, replay=False, narrow=False),
        "memseq, replay": Ours(shape, replay=True, narrow=False),
        "memseq, BPTT, bfloat16": Ours(shape, replay=False, narrow=True),
        "memseq, replay, bfloat16": Ours(shape, replay=True, narrow=True),
    }
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for attempt in range(shape.rounds + 1):  # the first is a warm-up
        for name, step in contenders.items():
            began = time.process_time()
            step()
            if attempt:
                seconds[name].append(time.process_time() - began)
    counter = FlopCounterMode(display=False)
    with counter:
        contenders["memseq, BPTT"]()
    flops, tokens = counter.get_total_flops(), shape.batch * shape.segments * shape.length
    rates = {
        "float32": product_rate(torch.float32, linear),
        "float32, torch's default": product_rate(torch.float32, torch.matmul),
        "bfloat16": product_rate(torch.bfloat16, torch.matmul),
    }
    base, rows = statistics.median(seconds["memformer package, BPTT"]), []
    for name, times in seconds.items():
        middle, dtype = statistics.median(times), "bfloat16" if "bfloat16" in name else "float32"
        row = {"name": name, "tokens_per_second": round(tokens / middle), "times_the_package": round(base / middle, 2)}
        row |= {"seconds": [round(t, 3) for t in times], "parameters": sum(p.numel() for p in contenders[name].model.parameters())}
        if name.startswith("memseq"):
            row["model_flops_utilisation"] = round(flops / middle / rates[dtype], 3)
        rows.append(row)
        speed, used = f"{row['tokens_per_second']:>8,} tokens/s {row['times_the_package']:>6.2f}x", row.get("model_flops_utilisation")
        print(f"{name:58} {speed}" + (f"  MFU {used}" if used else ""))
    shape_told = {name: getattr(shape, name) for name in sizes}
    result = {
        "machine": describe(),
        "command": " ".join(["python", *sys.argv]),
        "shape": shape_told,
        "model_flops": flops,
        "product_gflops": {name: round(rate / 1e9) for name, rate in rates.items()},
        "rows": rows,
        "claims": {"BPTT in float32, times the package": {"target": 1.5, "reached": rows[2]["times_the_package"]}},
    }
    if shape.json:
        Path(shape.json).write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
