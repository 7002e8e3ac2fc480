"""Memories with a decay per channel: by chunks against token by token, and against the plain torch forms of flash-linear-attention.

    python benchmarks/channel_decay.py --json benchmarks/results/channel_decay.json
    python benchmarks/channel_decay.py --fla FOLDER ...       where `fla` and `triton` can be imported from, for the peers

Forward, and forward and backward with a random cotangent; float32; medians of rounds in which all forms take turns, so that what
else the machine does meets all of them. Bytes are those of all tensors alive at once on top of the inputs, counted from the tensors.
Every form's outputs are compared with the recurrence in float64 before anything is measured.
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
from torch import Tensor
from torch.nn import functional as F

from memseq.ops import channel_decay as ops
from memseq.recipes.machine import describe
from memseq.training.live_bytes import LiveBytes

Form = Callable[..., tuple[Tensor, Tensor]]
INPUTS = {"gla": "q k v log_w S", "rwkv6": "q k v u log_w S", "kda": "q k v beta log_w S", "channel": "q k v a b log_w S"}


def inputs(a: argparse.Namespace, tokens: int) -> dict[str, Tensor]:
    """As the layers make them: [B, T, H, ...] in memory, keys of length one, decays from e^-0.6 to 1."""
    g = torch.Generator().manual_seed(0)

    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g)

    B, H, K, V = a.batch_size, a.heads, a.key_size, a.value_size
    made = {"q": randn(B, tokens, H, K) * K**-0.5, "k": F.normalize(randn(B, tokens, H, K), dim=-1), "v": randn(B, tokens, H, V)}
    made |= {"a": -F.normalize(randn(B, tokens, H, K), dim=-1), "log_w": -0.6 * torch.rand(B, tokens, H, K, generator=g)}
    made["b"] = -made["a"] * torch.rand(B, tokens, H, K, generator=g)
    made = {name: t.transpose(1, 2) for name, t in made.items()}
    return made | {"beta": torch.rand(B, H, tokens, generator=g), "u": randn(H, K), "S": torch.zeros(B, H, K, V)}


def forms(system: str, a: argparse.Namespace) -> dict[str, Form]:
    """What is measured of one system; a peer is the plain torch form of fla, where that can be imported."""
    chunkwise, found = getattr(ops, f"{system}_chunkwise"), {"recurrent": getattr(ops, f"{system}_recurrent")}
    for size in a.chunk_sizes:
        found[f"chunkwise {size}"] = lambda *given, size=size: chunkwise(*given, chunk_size=size)
    return found | peers(system, a)


def peers(system: str, a: argparse.Namespace) -> dict[str, Form]:
    if a.fla is None:
        return {}
    sys.path.insert(0, a.fla)
    from fla.ops.generalized_delta_rule.dplr.naive import dplr_chunkwise
    from fla.ops.gla.naive import naive_recurrent_gla
    from fla.ops.kda.naive import naive_chunk_kda

    def by_token(t: Tensor) -> Tensor:
        return t.transpose(1, 2)

    def gla(q: Tensor, k: Tensor, v: Tensor, log_w: Tensor, S: Tensor) -> tuple[Tensor, Tensor]:
        given = (by_token(t) for t in (q * q.shape[-1] ** 0.5, k, v, log_w))  # it scales q itself
        y, end = naive_recurrent_gla(*given, initial_state=S, output_final_state=True)
        return by_token(y), end

    def kda(q: Tensor, k: Tensor, v: Tensor, beta: Tensor, log_w: Tensor, S: Tensor) -> tuple[Tensor, Tensor]:
        given = (by_token(t) for t in (q, k, v, log_w, beta))
        y, end = naive_chunk_kda(*given, scale=1.0, initial_state=S, output_final_state=True)
        return by_token(y), end

    def channel(q: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor, log_w: Tensor, S: Tensor) -> tuple[Tensor, Tensor]:
        return dplr_chunkwise(q * q.shape[-1] ** 0.5, k, v, a, b, log_w, initial_state=S, output_final_state=True)

    known: dict[str, tuple[str, Form]] = {
        "gla": ("fla naive_recurrent_gla", gla),
        "kda": ("fla naive_chunk_kda", kda),
        "channel": ("fla dplr_chunkwise", channel),
    }
    return dict([known[system]]) if system in known else {}


def read(form: Form, system: str, given: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    return form(*(given[name] for name in INPUTS[system].split()))


def error(form: Form, system: str, given: dict[str, Tensor]) -> float:
    """The relative difference from the recurrence in float64, on the inputs measured with."""
    with torch.no_grad():
        exact = read(getattr(ops, f"{system}_recurrent"), system, {name: t.double() for name, t in given.items()})[0]
        return float((read(form, system, given)[0] - exact).norm() / exact.norm())


def forward(form: Form, system: str, given: dict[str, Tensor], _: Any) -> None:
    with torch.no_grad():
        read(form, system, given)


def forward_backward(form: Form, system: str, given: dict[str, Tensor], cotangent: tuple[Tensor, Tensor]) -> None:
    leaves = {name: t.detach().requires_grad_() for name, t in given.items()}
    torch.autograd.backward(read(form, system, leaves), cotangent)


def peak(run: Callable[..., None], *given: Any) -> int:
    with LiveBytes() as held:
        run(*given)
    return held.peak


def measure(a: argparse.Namespace, system: str) -> list[dict[str, Any]]:
    given = inputs(a, a.tokens)
    out = (torch.randn(a.batch_size, a.heads, a.tokens, a.value_size), torch.randn(given["S"].shape))
    each = forms(system, a)
    errors = {}
    for name in list(each):
        try:
            errors[name] = error(each[name], system, given)
        except (RuntimeError, TypeError, ValueError, AssertionError, NotImplementedError) as problem:
            print(f"{system}, {name}: left out, it does not run here ({type(problem).__name__}: {problem})")
            del each[name]
    rows = []
    for what, run in (("forward", forward), ("forward and backward", forward_backward)):
        times: dict[str, list[float]] = {name: [] for name in each}
        for turn in range(a.rounds + 1):
            for name, form in each.items():
                start = time.perf_counter()
                run(form, system, given, out)
                if turn:  # the first turn warms up
                    times[name].append(time.perf_counter() - start)
        for name, form in each.items():
            ratio = statistics.median(x / y for x, y in zip(times["recurrent"], times[name], strict=True))
            rows.append(
                {
                    "system": system,
                    "form": name,
                    "what": what,
                    "seconds": statistics.median(times[name]),
                    "tokens_per_second": round(a.batch_size * a.tokens / statistics.median(times[name])),
                    "times_recurrent": round(ratio, 2),
                    "bytes": peak(run, form, system, given, out),
                    "error": errors[name],
                }
            )
            r = rows[-1]
            shown = f"{r['seconds'] * 1e3:9.1f} ms {ratio:7.1f}x {r['bytes'] / 2**20:8.1f} MiB  error {r['error']:.1e}"
            print(f"{system:8}{name:26}{what:22}{shown}", flush=True)
    return rows


def main() -> None:
    numbers = lambda text: [int(n) for n in text.split(",")]  # noqa: E731
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--json", type=Path, metavar="FILE", help="where the measurements go (default: nowhere)")
    p.add_argument("--batch-size", type=int, default=4, metavar="B", help="streams (default 4)")
    p.add_argument("--tokens", type=int, default=1024, metavar="T", help="tokens of each (default 1024)")
    p.add_argument("--heads", type=int, default=4, metavar="H", help="heads (default 4)")
    p.add_argument("--key-size", type=int, default=64, metavar="K", help="channels of a key (default 64)")
    p.add_argument("--value-size", type=int, default=64, metavar="V", help="channels of a value (default 64)")
    p.add_argument("--chunk-sizes", type=numbers, default=[32, 64], metavar="L,L,...", help="tokens of a chunk (default 32,64)")
    p.add_argument("--systems", default="gla,rwkv6,kda,channel", help="ops to measure (default: all)")
    p.add_argument("--rounds", type=int, default=3, metavar="N", help="turns of each form, after one to warm up (default 3)")
    p.add_argument("--fla", metavar="FOLDER", help="where fla and triton can be imported from (default: no peers)")
    a = p.parse_args()
    torch.set_num_threads(1)
    result: dict[str, Any] = {
        "machine": describe(),
        "shape": {n: getattr(a, n) for n in ("batch_size", "tokens", "heads", "key_size", "value_size")},
    }
    result["rows"] = []
    for system in a.systems.split(","):
        result["rows"] += measure(a, system)
        if a.json:  # what is measured is kept
            a.json.parent.mkdir(parents=True, exist_ok=True)
            a.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
