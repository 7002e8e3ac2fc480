"""Everything that wants a GPU, in one run: the law on the device, replay at the paper's size, decoding, and text.

    python benchmarks/gpu.py --out results [--books FOLDER] [--minutes 3] [--parts law,replay,decode,text,horizons,slots,kernels]

    law       check_memory on the device, for Memformer and the memories beside it
    replay    12 layers, width 512, segments of 512, 128 slots, 4 to 64 segments: MiB and tokens/s of one graph, of a chain of
              checkpoints and of replay (the paper's table: 16,177 / 9,885 / 7,229 MB, speed 1.00 / 0.48 / 0.90)
    decode    latency of one token with 1,000 and 100,000 tokens read
    text      the small preset beside models of equal size without slots, at equal time
    horizons  the same Memformer with gradients through 1, 2, 4, ... 32 segments, at equal tokens
    slots     with 1, 2, 8, 32, 128 slots, at equal tokens
    kernels   the ops of the linear family by each kernel there is (torch, Triton, fla-core), on streams of 4,096 to 65,536 tokens: tokens/s
              forward and with gradients, peak MiB, beside fla's, and the error of 300 tokens against the definition in float64

Each part writes `PART.json` into `--out` as soon as it is done, so that a run that is cut short keeps what it measured.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from memseq.contract import check_memory
from memseq.errors import ConfigError, MemseqError
from memseq.models.presets import preset
from memseq.ops import channel_decay, hadamard
from memseq.ops.kernels import OPS, chosen, use
from memseq.ops.linear_attention import decay_chunkwise, decay_recurrent, delta_chunkwise, delta_recurrent
from memseq.recipes.machine import describe
from memseq.recipes.memformer_text import TextComparison, contenders, opened, run
from memseq.training.cell import StreamCell
from memseq.training.lanes import Segment
from memseq.training.replay import checkpointed_loss, replay_backward

SMALL = TextComparison(
    d_model=384, n_layers=6, n_heads=6, segment_length=128, window=128, n_slots=32, batch_size=64, horizon=8, lr=1e-3, scored=1 << 20
)


def law() -> list[dict[str, Any]]:
    systems = ("memformer", "memformer_encdec", "sliding_window", "segment_attention", "transformer_xl", "attention", "lstm", "gru")
    shape = {"d_model": 32, "n_layers": 2, "n_heads": 2, "segment_length": 6, "window": 5, "n_slots": 3}
    return [
        {"system": s}
        | check_memory(preset(s, "tiny", vocab_size=32, **shape), device="cuda", laws=("splits", "causality", "replay")).to_dict()
        for s in systems
    ]


def replay() -> list[dict[str, Any]]:
    shape = {"d_model": 512, "n_layers": 12, "n_heads": 8, "segment_length": 512, "n_slots": 128, "window": 512}
    model = preset("memformer", "base", vocab_size=32768, **shape).build().cuda()
    cell, B, L, rows = StreamCell(model), 4, 512, []

    def window(segments: int) -> list[Segment]:
        tokens = torch.randint(32768, (segments, B, L), device="cuda")
        reset = torch.zeros(B, dtype=torch.bool)
        return [Segment(t, t, reset) for t in tokens]

    def one_graph(segments: list[Segment]) -> None:
        state, total = model.init_state(B), 0.0
        for segment in segments:
            loss, state = cell.loss(segment, state)
            total = total + loss
        total.backward()

    ways: dict[str, Callable[[list[Segment]], Any]] = {
        "one graph": one_graph,
        "checkpoints": lambda segments: checkpointed_loss(cell, segments, model.init_state(B))[0].backward(),
        "replay": lambda segments: replay_backward(cell, segments, model.init_state(B)),
    }
    for S in (4, 16, 64):
        segments = window(S)
        for name, way in ways.items():
            try:
                rows.append({"segments": S, "way": name} | _measured(way, segments, model, B * L * S))
            except torch.OutOfMemoryError:
                rows.append({"segments": S, "way": name, "mib": None, "tokens_per_second": None})
                torch.cuda.empty_cache()
            print(json.dumps(rows[-1]), flush=True)
    return rows


def _measured(way: Callable[[list[Segment]], Any], segments: list[Segment], model: Any, tokens: int) -> dict[str, Any]:
    times = []
    for attempt in range(4):
        model.zero_grad(set_to_none=False)
        torch.cuda.reset_peak_memory_stats()
        torch.cuda.synchronize()
        held, began = torch.cuda.memory_allocated(), time.perf_counter()
        with torch.autocast("cuda", torch.bfloat16):
            way(segments)
        torch.cuda.synchronize()
        if attempt:
            times.append(time.perf_counter() - began)
    peak = torch.cuda.max_memory_allocated() - held
    return {"mib": round(peak / 2**20), "tokens_per_second": round(tokens / statistics.median(times))}


@torch.no_grad()
def decode() -> list[dict[str, Any]]:
    model = preset("memformer", "small").build().cuda().eval()
    state, rows, read = model.init_state(1), [], 0
    for position in (1_000, 100_000):
        state = model.advance(torch.randint(256, (1, position - read), device="cuda"), state)
        times, token = [], torch.zeros(1, dtype=torch.int64, device="cuda")
        for _ in range(256):
            began = time.perf_counter()
            _, state = model.step(token, state)
            torch.cuda.synchronize()
            times.append(time.perf_counter() - began)
        read = position + 256
        rows.append({"position": position, "milliseconds": round(1e3 * statistics.median(times), 3)})
    return rows


FORMS = {
    "decay": (decay_recurrent, decay_chunkwise),
    "delta_rule": (delta_recurrent, delta_chunkwise),
    **{
        op: (getattr(channel_decay, f"{op}_recurrent"), getattr(channel_decay, f"{op}_chunkwise"))
        for op in ("gla", "rwkv6", "kda", "channel")
    },
    "hadamard": (hadamard.hadamard_recurrent, hadamard.hadamard_chunkwise),
}


def kernels(
    lengths: tuple[int, ...] = (4096, 8192, 16384, 32768, 65536),
    *,
    tokens: int = 65536,
    heads: int = 8,
    size: int = 128,
    device: str = "cuda",
) -> list[dict[str, Any]]:
    """As many tokens a row, so that a longer stream has fewer beside it; inputs of bfloat16, states of float32."""
    rows: list[dict[str, Any]] = []
    for op, (definition, form) in FORMS.items():
        dtype = torch.float32 if op == "hadamard" else torch.bfloat16  # its products are never rounded
        there = []
        for kernel in ("torch", *reversed(OPS[op])):
            with use(kernel):
                try:
                    chosen(op, device=device, dtype=dtype, key_size=size)
                except ConfigError as error:
                    rows.append({"op": op, "kernel": kernel, "left_out": str(error)})
                    continue
                there.append(kernel)
                given = _inputs(op, 1, 2, 300, size, dtype, device)
                exact, found = definition(*(z.double() for z in given))[0], form(*given)[0]
                error = float((found.double() - exact).norm() / exact.norm())
                rows.append({"op": op, "kernel": kernel, "tokens": 300, "relative_error": float(f"{error:.1e}")})
                print(json.dumps(rows[-1]), flush=True)
        for T in lengths:
            given = [z.requires_grad_() for z in _inputs(op, max(1, tokens // T), heads, T, size, dtype, device)]
            at_length = []
            for kernel in there:
                with use(kernel):
                    at_length.append({"op": op, "kernel": kernel, "tokens": T} | _timed(form, given, max(1, tokens // T) * T))
            theirs = next((row for row in at_length if row["kernel"] == "fla"), None)
            for row in at_length:
                if theirs is not None:
                    row["times_fla"] = {way: _ratio(row[way], theirs[way]) for way in ("forward", "forward_and_backward")}
                print(json.dumps(row), flush=True)
            rows += at_length
    return rows


def _inputs(op: str, B: int, H: int, T: int, K: int, dtype: torch.dtype, device: str) -> list[Tensor]:
    """Of one call of `op`, with decays of a trained memory's size."""

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, device=device)

    if op == "hadamard":  # one matrix a stream
        return [*(0.1 * draw(B, T, K) for _ in range(5)), draw(B, K, K)]
    q, k, v, S = draw(B, H, T, K) * K**-0.5, F.normalize(draw(B, H, T, K), dim=-1), draw(B, H, T, K), draw(B, H, K, K)
    beta, log_a, log_w, rate = (
        draw(B, H, T).sigmoid(),
        0.1 * F.logsigmoid(draw(B, H, T)),
        0.1 * F.logsigmoid(draw(B, H, T, K)),
        draw(B, H, T, K),
    )
    own = {
        "decay": [log_a],
        "delta_rule": [beta, log_a],
        "gla": [log_w],
        "rwkv6": [draw(H, K), log_w],
        "kda": [beta, log_w],
        "channel": [-k.to(dtype), (k * rate.sigmoid()).to(dtype), log_w],
    }
    return [*(z.to(dtype) for z in (q, k, v)), *own[op], S]


def _timed(form: Callable[..., Any], given: list[Tensor], tokens: int) -> dict[str, Any]:
    """Tokens a second, and the most that was held beside the inputs; None where the memory did not suffice."""

    def forward() -> None:
        with torch.no_grad():
            form(*given)

    def both() -> None:
        y, S = form(*given)
        torch.autograd.grad(y.float().sum() + S.sum(), given)

    found: dict[str, Any] = {}
    for way, call in (("forward", forward), ("forward_and_backward", both)):
        try:
            times = []
            for attempt in range(7):
                _synchronised()
                began = time.perf_counter()
                call()
                _synchronised()
                if attempt > 1:  # the first ones compile and choose tiles
                    times.append(time.perf_counter() - began)
            found[way] = round(tokens / statistics.median(times))
        except torch.OutOfMemoryError:
            found[way] = None
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        held = torch.cuda.memory_allocated()
        if found["forward_and_backward"] is not None:
            both()
            found["mib"] = round((torch.cuda.max_memory_allocated() - held) / 2**20)
        torch.cuda.empty_cache()
    return found


def _synchronised() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _ratio(ours: int | None, theirs: int | None) -> float | None:
    return None if ours is None or not theirs else round(ours / theirs, 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default="results", help="folder of the results")
    parser.add_argument("--books", default="stdlib", help="a folder of books with a books.csv; default the standard library's text")
    parser.add_argument("--minutes", type=float, default=3.0, help="of training for each contender on text (default 3)")
    parser.add_argument("--steps", type=int, default=300, help="of training for each horizon and number of slots (default 300)")
    parser.add_argument("--parts", default="law,replay,decode,text,horizons,slots,kernels", help="what to run, in this order")
    given = parser.parse_args()
    if not torch.cuda.is_available():
        parser.exit(2, "there is no CUDA device here; the CPU's benchmarks are the other files of this folder\n")
    torch.set_float32_matmul_precision("high")

    def text() -> list[dict[str, Any]]:
        corpus = opened(given.books)
        return [{"name": name} | run(config, corpus, SMALL, minutes=given.minutes) for name, config in contenders(SMALL).items()]

    def horizons() -> list[dict[str, Any]]:
        corpus, config = opened(given.books), contenders(SMALL)["memformer"]
        steps = {n: given.steps * 8 // n for n in (1, 2, 4, 8, 16, 32)}  # as many tokens each: a shorter window takes more steps
        return [{"horizon": n} | run(config, corpus, replace(SMALL, horizon=n), steps=count) for n, count in steps.items()]

    def slots() -> list[dict[str, Any]]:
        corpus = opened(given.books)
        sizes = [replace(SMALL, n_slots=n) for n in (1, 2, 8, 32, 128)]
        return [{"slots": s.n_slots} | run(contenders(s)["memformer"], corpus, s, steps=given.steps) for s in sizes]

    parts = {"law": law, "replay": replay, "decode": decode, "text": text, "horizons": horizons, "slots": slots, "kernels": kernels}
    Path(given.out).mkdir(parents=True, exist_ok=True)
    for name in given.parts.split(","):
        if name not in parts:
            parser.error(f"there is no part {name!r}; choose from {', '.join(parts)}")
        began = time.perf_counter()
        try:
            rows: Any = parts[name]()
        except (MemseqError, RuntimeError) as error:  # one part that fails must not lose the others
            rows = {"failed": f"{type(error).__name__}: {error}"}
        told = {"machine": describe(), "part": name, "seconds": round(time.perf_counter() - began, 1), "rows": rows}
        (Path(given.out) / f"gpu_{name}.json").write_text(json.dumps(told, indent=1) + "\n")
        print(json.dumps(told), flush=True)


if __name__ == "__main__":
    main()
