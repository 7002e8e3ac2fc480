"""Inference: bytes held and time per token, against the length of the stream and against a Transformer with a KV cache.

    python benchmarks/inference.py --json benchmarks/results/inference.json

1. flat       one Memformer at token 1,000 and at token 1,000,000: the stream is read up to each position, then one segment
              of tokens is stepped from it, again and again from the same kept state; positions take turns.
   walk       a smaller Memformer steps through a whole stream, token by token, and is timed all the way.
2. kv_cache   the same model against transformers' LlamaForCausalLM of equal depth, width and parameters, at several lengths
              of context; both sides take turns in one run. The Llama is timed with the cache `generate` uses
              (DynamicCache, which copies itself at every token) and with the fastest it has (StaticCache, which does not).
              Caches are filled with random keys and values: the time does not depend on what they hold, and shape, dtype
              and bytes are checked against those of a real prefill.

Times are medians over single tokens in milliseconds of processor time, which does not run while other programs hold the cores; batch 1.
Needs `pip install 'memseq[hf]'`.
"""

import json
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from _command import begun, command, keep
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM, StaticCache

from memseq.models import preset
from memseq.recipes.machine import describe
from memseq.state import state_bytes

VOCAB = 256
HEADLINE = {"fewer_state_bytes": 8.1, "faster_per_token": 3.2}  # arXiv:2010.06891, abstract; here asked at 8,192 tokens


def tokens(n: int, seed: int) -> torch.Tensor:
    return torch.randint(VOCAB, (1, n), generator=torch.Generator().manual_seed(seed))


def memformer(depth: int, width: int, segment: int, window: int, slots: int) -> Any:
    config = preset(
        "memformer",
        d_model=width,
        n_layers=depth,
        n_heads=width // 64,
        segment_length=segment,
        window=window,
        n_slots=slots,
        vocab_size=VOCAB,
    )
    return config.build().eval()


def read(model: Any, state: Any, n: int, seed: int, piece: int = 4096) -> Any:
    """The state n tokens later."""
    for start in range(0, n, piece):
        state = model.advance(tokens(min(piece, n - start), seed + start), state)
    return state


def timed(step: Callable[[torch.Tensor], Any], n: int) -> Iterator[float]:
    """Milliseconds of each of n steps."""
    for token in tokens(n, seed=1)[0].split(1):
        start = time.process_time()
        step(token)
        yield 1000 * (time.process_time() - start)


class MemformerSide:
    """Steps on from a kept state, which is never written to: every round reads the same place of the stream."""

    def __init__(self, model: Any, start: Any) -> None:
        self.model, self.start, self.now = model, start, start

    def rewind(self) -> None:
        self.now = self.start

    def __call__(self, token: torch.Tensor) -> None:
        _, self.now = self.model.step(token, self.now)


class LlamaSide:
    """Steps on from a filled cache, which it extends; the few tokens of a measurement do not change its size noticeably."""

    def __init__(self, model: LlamaForCausalLM, cache: Any) -> None:
        self.model, self.cache = model, cache

    def rewind(self) -> None:
        pass

    def __call__(self, token: torch.Tensor) -> None:
        self.model(input_ids=token[None], past_key_values=self.cache, use_cache=True)


def median(times: list[float]) -> float:
    return round(statistics.median(times), 4)


def measure(sides: dict[str, Any], rounds: int, steps: int) -> dict[str, list[float]]:
    """Single-token times of every side; the sides take turns, and which begins changes from round to round."""
    times: dict[str, list[float]] = {name: [] for name in sides}
    for side in sides.values():  # the first calls allocate
        side.rewind()
        list(timed(side, min(2, steps)))
    for turn in range(rounds):
        order = list(sides)[turn % len(sides) :] + list(sides)[: turn % len(sides)]
        for name in order:
            sides[name].rewind()
            times[name] += timed(sides[name], steps)
    return times


def flat(model: Any, positions: list[int], rounds: int) -> dict[str, Any]:
    L = model.segment_length
    places = [-(-p // L) * L for p in positions]  # whole segments: every position is measured over the same phases
    states, state, at = [], model.init_state(1), 0
    read_seconds = 0.0
    for place in places:
        start = time.process_time()
        state = read(model, state, place - at, seed=at)
        read_seconds += time.process_time() - start
        at = place
        states.append(state)
    held = []
    for start in states:
        state, sizes = start, [state_bytes(start)]
        for token in tokens(L, seed=1)[0].split(1):
            _, state = model.step(token, state)
            sizes.append(state_bytes(state))
        held.append(sizes)
    times = measure({str(p): MemformerSide(model, s) for p, s in zip(places, states, strict=True)}, rounds, L)
    rows = [
        {
            "tokens_read": p,
            "ms_per_token": median(times[str(p)]),
            "state_bytes_between_segments": sizes[0],
            "state_bytes_at_most": max(sizes),
        }
        for p, sizes in zip(places, held, strict=True)
    ]
    first, last = rows[0], rows[-1]
    return {
        "rows": rows,
        "tokens_per_second_reading": round(places[-1] / read_seconds),
        "ms_per_token_last_over_first": round(last["ms_per_token"] / first["ms_per_token"], 4),
        "state_bytes_equal_at_every_phase": all(sizes == held[0] for sizes in held),
    }


def walk(model: Any, n: int) -> dict[str, Any]:
    """Every token of a stream by `step`; medians of its tenths."""
    side = MemformerSide(model, model.init_state(1))
    times, tenth = list(timed(side, n)), n // 10
    medians = [median(times[i * tenth : (i + 1) * tenth]) for i in range(10)]
    return {"tokens": n, "ms_per_token_by_tenth": medians, "last_over_first": round(medians[-1] / medians[0], 4)}


def llama_like(model: Any) -> LlamaForCausalLM:
    """A Llama of the same depth, width and heads, with the feedforward that brings it nearest to as many parameters."""
    c = model.config
    depth, width = len(c.layers), c.d_model
    wanted = sum(p.numel() for p in model.parameters())
    per_hidden = 3 * width * depth
    others = VOCAB * width + depth * (4 * width**2 + 2 * width) + width
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=width,
        intermediate_size=round((wanted - others) / per_hidden),
        num_hidden_layers=depth,
        num_attention_heads=width // 64,
        num_key_value_heads=width // 64,
        max_position_embeddings=1 << 20,
        tie_word_embeddings=True,
        attn_implementation="sdpa",
    )
    return LlamaForCausalLM(config).eval()


def filled(cache: Any, config: LlamaConfig, n: int) -> Any:
    """The cache with n tokens of random keys and values in every layer."""
    shape = (1, config.num_key_value_heads, n, config.head_dim)
    generator = torch.Generator().manual_seed(0)
    for layer in range(config.num_hidden_layers):
        cache.update(torch.randn(shape, generator=generator), torch.randn(shape, generator=generator), layer)
    return cache


def cache_bytes(cache: Any) -> int:
    return sum(t.nbytes for layer in cache.layers for t in (layer.keys, layer.values))


def check_fill(model: LlamaForCausalLM, n: int = 48) -> None:
    """A filled cache is what a prefill of as many tokens leaves: shape, dtype, bytes, and what the model takes for its length."""
    real = model(input_ids=tokens(n, 0), past_key_values=DynamicCache(config=model.config), use_cache=True).past_key_values
    random = filled(DynamicCache(config=model.config), model.config, n)
    for a, b in zip(real.layers, random.layers, strict=True):
        if (a.keys.shape, a.values.shape, a.keys.dtype) != (b.keys.shape, b.values.shape, b.keys.dtype):
            raise SystemExit(f"a filled cache is not like a real one: {a.keys.shape} {a.keys.dtype} against {b.keys.shape} {b.keys.dtype}")
    if cache_bytes(real) != cache_bytes(random) or real.get_seq_length() != random.get_seq_length():
        raise SystemExit("a filled cache does not weigh what a real one weighs")


def against_kv_cache(model: Any, contexts: list[int], rounds: int, steps: int) -> dict[str, Any]:
    llama = llama_like(model)
    check_fill(llama)
    rows, state, at = [], model.init_state(1), 0
    for n in contexts:
        state, at = read(model, state, n - at, seed=at), n
        row: dict[str, Any] = {"context": n}
        for name, cache in (
            ("dynamic", DynamicCache(config=llama.config)),
            ("static", StaticCache(config=llama.config, max_cache_len=n + (rounds + 1) * steps + 2)),
        ):
            cache = filled(cache, llama.config, n)
            if name == "dynamic":
                row["llama_state_bytes"] = cache_bytes(cache)
            side = MemformerSide(model, state)
            times = measure({"memformer": side, "llama": LlamaSide(llama, cache)}, rounds, steps)
            row |= {f"memformer_ms_beside_{name}": median(times["memformer"]), f"llama_{name}_ms": median(times["llama"])}
            row[f"faster_than_{name}"] = round(row[f"llama_{name}_ms"] / row[f"memformer_ms_beside_{name}"], 2)
            del cache
        row["memformer_state_bytes"] = state_bytes(side.now)  # in the middle of a segment, where it holds most
        row["fewer_state_bytes"] = round(row["llama_state_bytes"] / row["memformer_state_bytes"], 1)
        rows.append(row)
        print(json.dumps(row), flush=True)
    return {
        "parameters": {"memformer": sum(p.numel() for p in model.parameters()), "llama": sum(p.numel() for p in llama.parameters())},
        "llama_intermediate_size": llama.config.intermediate_size,
        "rows": rows,
    }


@torch.no_grad()
def main() -> None:
    parser = command(__doc__)
    parser.add_argument("--depth", type=int, default=8, help="layers (default 8)")
    parser.add_argument("--width", type=int, default=256, help="d_model, a multiple of 64 (default 256)")
    parser.add_argument("--segment-length", type=int, default=128, help="tokens between two writes of the memory (default 128)")
    parser.add_argument("--window", type=int, default=128, help="tokens the near attention sees (default 128)")
    parser.add_argument("--slots", type=int, default=32, help="vectors of memory (default 32)")
    parser.add_argument("--positions", type=int, nargs="+", default=[1_000, 10_000, 100_000, 1_000_000], help="tokens read before timing")
    parser.add_argument("--contexts", type=int, nargs="+", default=[8_192, 32_768, 131_072], help="tokens of context beside the KV cache")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each side (default 5)")
    parser.add_argument("--steps", type=int, default=16, help="tokens a turn beside the KV cache (default 16)")
    parser.add_argument("--walk", type=int, default=20_000, help="tokens the smaller model steps through; 0: none (default 20,000)")
    a = begun(parser)
    if 0 < a.walk < 10:
        parser.error(f"--walk {a.walk} has no tenths to compare; give 0, or 10 tokens and more")
    model = memformer(a.depth, a.width, a.segment_length, a.window, a.slots)
    shape = {k: getattr(a, k) for k in ("depth", "width", "segment_length", "window", "slots")} | {"vocabulary": VOCAB}
    result: dict[str, Any] = {"machine": describe(), "threads": a.threads, "dtype": "float32", "memformer": shape}
    result["flat"] = flat(model, sorted(a.positions), a.rounds)
    print(json.dumps(result["flat"], indent=1), flush=True)
    if a.walk:
        small = memformer(2, 64, min(32, a.segment_length), min(32, a.window), 8)
        result["walk"] = walk(small, a.walk)
        print(json.dumps(result["walk"]), flush=True)
    result["kv_cache"] = against_kv_cache(model, sorted(a.contexts), a.rounds, a.steps)
    asked = next((row for row in result["kv_cache"]["rows"] if row["context"] == 8_192), None)
    result["reached"] = {
        "flat: ms per token, last over first at most 1.05": result["flat"]["ms_per_token_last_over_first"] <= 1.05,
        "flat: state bytes equal": result["flat"]["state_bytes_equal_at_every_phase"],
    }
    if asked is not None:
        result["reached"] |= {
            "8,192 tokens: fewer state bytes, at least 8.1": asked["fewer_state_bytes"] >= HEADLINE["fewer_state_bytes"],
            "8,192 tokens: faster per token than DynamicCache, at least 3.2": asked["faster_than_dynamic"] >= HEADLINE["faster_per_token"],
            "8,192 tokens: faster per token than StaticCache, at least 3.2": asked["faster_than_static"] >= HEADLINE["faster_per_token"],
        }
    keep(result, a.json)


if __name__ == "__main__":
    main()
