"""Memory replay against full back-propagation through time and against a chain of checkpoints: bytes held, and time.

    python benchmarks/replay.py --json benchmarks/results/replay.json

All compute the same gradients (checked here, before anything is measured) for a Memformer language model over a window of
S segments. Bytes are those of all tensors alive at once on top of the model: activations, kept states, gradients of the
activations and of the weights; on a CPU they are counted from the tensors, scratch inside a kernel excepted, on CUDA they
are what the allocator held at its peak. Times are medians, on a CPU of processor time, which does not run while other
programs hold the cores; the methods take turns in one process, so that what else the machine does meets all of them. The
large vocabulary shows what the first pass saves by leaving out the head.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from memseq.layers.slots import SlotsConfig
from memseq.memories.segment_attention import SegmentAttentionConfig
from memseq.models.memformer import MemformerLMConfig
from memseq.recipes.machine import describe, keep_freed_memory
from memseq.state import detach, state_bytes
from memseq.training import KeepAll, Offload, Revolve, Segment, Sqrt, StreamCell, checkpointed_loss, replay_backward
from memseq.training.live_bytes import LiveBytes


class WithHead(nn.Module):
    """A cell whose first pass is a full forward: what a model without `advance` would cost."""

    def __init__(self, cell: StreamCell) -> None:
        super().__init__()
        self.loss = cell.loss
        self.advance = lambda segment, state: cell.loss(segment, state)[1]


def bptt(cell: StreamCell, window: list[Segment], state: Any) -> None:
    total = 0.0
    for segment in window:
        loss, state = cell.loss(segment, state)
        total = total + loss
    total.backward()


def chain(cell: StreamCell, window: list[Segment], state: Any) -> None:
    checkpointed_loss(cell, window, state)[0].backward()


def replay(**options: Any) -> Callable[..., None]:
    def run(cell: StreamCell, window: list[Segment], state: Any) -> None:
        replay_backward(cell, window, state, **options)

    return run


def replay_with_head(cell: StreamCell, window: list[Segment], state: Any) -> None:
    replay_backward(WithHead(cell), window, state)


METHODS: dict[str, Callable[..., None]] = {
    "full BPTT": bptt,
    "checkpoints": chain,
    "replay": replay(schedule=KeepAll()),
    "replay, head in both passes": replay_with_head,
    "replay, sqrt": replay(schedule=Sqrt()),
    "replay, revolve 8": replay(schedule=Revolve(slots=8)),
    "replay, offload": replay(schedule=Offload()),
}


def make(a: argparse.Namespace, vocab_size: int) -> StreamCell:
    torch.manual_seed(0)
    layer = SegmentAttentionConfig(d_model=a.width, n_heads=a.width // 32, segment_length=a.segment_length)
    slots = SlotsConfig(d_model=a.width, segment_length=a.segment_length, n_slots=a.slots, n_heads=a.width // 32)
    model = MemformerLMConfig(vocab_size=vocab_size, d_model=a.width, layers=a.layers * (layer,), slots=slots).build()
    for read in model.reads:
        nn.init.normal_(read.out.weight, std=a.width**-0.5)  # it starts at zero, which would hide the memory's gradient
    return StreamCell(model).to(a.device)


def window_of(a: argparse.Namespace, n: int, vocab_size: int) -> list[Segment]:
    g = torch.Generator().manual_seed(n)
    tokens = torch.randint(vocab_size, (n, a.batch_size, a.segment_length + 1), generator=g).to(a.device)
    return [Segment(x[:, :-1], x[:, 1:], torch.full((a.batch_size,), t == 0)) for t, x in enumerate(tokens)]


def peak(cell: StreamCell, a: argparse.Namespace, run: Callable[..., None], n: int) -> int:
    """The most bytes held on top of the model."""
    cell.zero_grad()
    window, state = window_of(a, n, 256), detach(cell.model.init_state(a.batch_size))
    if a.device == "cpu":
        with LiveBytes() as held:
            run(cell, window, state)
        return held.peak
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run(cell, window, state)
    return torch.cuda.max_memory_allocated() - before


def measure_bytes(a: argparse.Namespace) -> list[dict[str, Any]]:
    cell, rows = make(a, 256), []
    print("\n" + f"{'peak MiB on top of the model':38}" + "".join(f"S={n}".rjust(10) for n in a.sizes))
    for name, run in METHODS.items():
        held = {n: peak(cell, a, run, n) for n in a.sizes if name != "full BPTT" or n <= a.bptt_up_to}
        rows += [{"method": name, "segments": n, "bytes": b} for n, b in held.items()]
        print(f"{name:38}" + "".join(f"{held[n] / 2**20:10.2f}" if n in held else " " * 10 for n in a.sizes))
    return rows


def measure_time(a: argparse.Namespace) -> list[dict[str, Any]]:
    rows, clock = [], time.process_time if a.device == "cpu" else time.perf_counter
    for vocab_size in a.vocabularies:
        cell = make(a, vocab_size)
        for n in a.timed:
            window, state = window_of(a, n, vocab_size), detach(cell.model.init_state(a.batch_size))
            times: dict[str, list[float]] = {name: [] for name in METHODS}
            for turn in range(a.rounds + 1):
                for name, run in METHODS.items():
                    cell.zero_grad()
                    start = clock()
                    run(cell, window, state)
                    if a.device != "cpu":
                        torch.cuda.synchronize()
                    if turn:  # the first turn warms up
                        times[name].append(clock() - start)
            median = {name: statistics.median(each) for name, each in times.items()}
            # each turn's ratio first: two methods in one turn meet the same machine
            ratio = {name: statistics.median(x / y for x, y in zip(each, times["full BPTT"], strict=True)) for name, each in times.items()}
            print(f"\nV = {vocab_size}, S = {n}                          ms a window    x full BPTT")
            for name in METHODS:
                print(f"{name:38}{median[name] * 1e3:12.1f}{ratio[name]:15.2f}")
                rows.append({"vocabulary": vocab_size, "segments": n, "method": name, "seconds": median[name], "ratio": ratio[name]})
    return rows


def check_equal(a: argparse.Namespace) -> float:
    """The largest relative difference of any method's gradients from those of full BPTT, in float64."""
    cell, worst = make(a, 256).double(), 0.0
    window, state = window_of(a, 5, 256), detach(cell.model.init_state(a.batch_size))
    gradients = {}
    for name, run in METHODS.items():
        cell.zero_grad()
        run(cell, window, state)
        gradients[name] = torch.cat([p.grad.flatten() for p in cell.parameters()])
        worst = max(worst, float((gradients[name] - gradients["full BPTT"]).norm() / gradients["full BPTT"].norm()))
    if not worst < 1e-9:
        raise SystemExit(f"the methods do not compute the same gradients: relative difference {worst:.3g}")
    return worst


def main() -> None:
    numbers = lambda text: [int(n) for n in text.split(",")]  # noqa: E731
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--json", type=Path, metavar="FILE", help="where the measurements go (default: nowhere)")
    p.add_argument("--layers", type=int, default=4, metavar="N")
    p.add_argument("--width", type=int, default=128, metavar="D", help="features of a token, a multiple of 32 (default 128)")
    p.add_argument("--slots", type=int, default=16, metavar="N", help="slots of the memory (default 16)")
    p.add_argument("--segment-length", type=int, default=32, metavar="L", help="tokens of a segment (default 32)")
    p.add_argument("--batch-size", type=int, default=8, metavar="B", help="streams read side by side (default 8)")
    p.add_argument("--sizes", type=numbers, default=[4, 8, 16, 32, 64, 128, 256], metavar="S,S,...", help="windows whose bytes are counted")
    p.add_argument("--bptt-up-to", type=int, default=64, metavar="S", help="the longest window given to full BPTT (default 64)")
    p.add_argument("--timed", type=numbers, default=[2, 8, 32], metavar="S,S,...", help="windows that are timed (default 2,8,32)")
    p.add_argument("--vocabularies", type=numbers, default=[256, 8192], metavar="V,V", help="sizes of the head (default 256,8192)")
    p.add_argument("--rounds", type=int, default=7, metavar="N", help="turns of each method, after one to warm up (default 7)")
    p.add_argument("--threads", type=int, default=1, metavar="N", help="CPU threads (default 1)")
    p.add_argument("--device", default="cpu", metavar="NAME", help="cpu or cuda (default cpu)")
    a = p.parse_args()
    torch.set_num_threads(a.threads)
    keep_freed_memory()
    machine = describe()
    print(f"{machine['gpu'] if a.device != 'cpu' else machine['cpu']}, torch {machine['torch']}, {a.threads} threads")
    worst = check_equal(a)
    print(f"all methods agree on the gradients: relative difference {worst:.1e} in float64")
    cell = make(a, 256)
    state = state_bytes(detach(cell.advance(window_of(a, 1, 256)[0], cell.model.init_state(a.batch_size))))
    print(f"one state: {state / 2**20:.3f} MiB; gradients of the weights: {sum(p.numel() * 4 for p in cell.parameters()) / 2**20:.2f} MiB")
    shape = {name: getattr(a, name) for name in ("layers", "width", "slots", "segment_length", "batch_size")}
    result = {
        "machine": machine,
        "device": a.device,
        "model": {"type": "memformer_lm", **shape},
        "state_bytes": state,
        "gradient_difference": worst,
        "bytes": measure_bytes(a),
        "time": measure_time(a),
    }
    if a.json:
        a.json.parent.mkdir(parents=True, exist_ok=True)
        a.json.write_text(json.dumps(result, indent=1) + "\n")
        print(f"\nwritten to {a.json}")


if __name__ == "__main__":
    main()
