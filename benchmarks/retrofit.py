"""A pretrained model with a memory around it, against the same model with its KV cache: time per token and bytes held.

    python benchmarks/retrofit.py --json benchmarks/results/retrofit.json

One LlamaForCausalLM is all sides' backbone: alone with the cache `generate` uses (DynamicCache) and with the fastest it has
(StaticCache), inside RMT, and inside ARMT.

1. flat       RMT and ARMT at token 1,000, 10,000 and 100,000: the stream is read up to each, then a whole segment is stepped, again and
              again from the same kept state, its first token (which reads the memory) and its last (which writes it) included.
2. kv_cache   beside the backbone's own cache at several lengths of context, filled as in `inference.py`; sides take turns.

Times are of single tokens in milliseconds of processor time (other programs may use the cores), batch 1: the median, and for RMT and
ARMT the mean over a segment too, since its last token costs more. Ratios are of the mean. The weights are random: time and bytes do
not depend on them. Needs `pip install 'memseq[hf]'`.
"""

import json
import statistics
import time
from typing import Any

import torch
from _command import begun, command, keep
from inference import VOCAB, LlamaSide, MemformerSide, cache_bytes, check_fill, filled, read, tokens
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM, StaticCache

from memseq.recipes.machine import describe
from memseq.retrofit import with_memory
from memseq.state import state_bytes

HEADLINE = {"fewer_state_bytes": 8.1, "faster_per_token": 3.2}  # asked at 32,768 tokens


def backbone(depth: int, width: int) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=width,
        intermediate_size=8 * width // 3,
        num_hidden_layers=depth,
        num_attention_heads=width // 64,
        num_key_value_heads=width // 64,
        max_position_embeddings=1 << 20,
        tie_word_embeddings=True,
        attn_implementation="sdpa",
    )
    return LlamaForCausalLM(config).eval()


def measure(sides: dict[str, Any], rounds: int, steps: int) -> dict[str, list[float]]:
    """Milliseconds of single tokens; the sides take turns, and which begins changes from round to round."""
    times: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(-1, rounds):  # the first turn is not counted: it allocates
        order = list(sides)[turn % len(sides) :] + list(sides)[: turn % len(sides)]
        for name in order:
            sides[name].rewind()
            for token in tokens(2 if turn < 0 else steps, seed=1)[0].split(1):
                start = time.process_time()
                sides[name](token)
                times[name] += [1000 * (time.process_time() - start)] * (turn >= 0)
    return times


def told(times: list[float]) -> dict[str, float]:
    return {"ms_mean": round(statistics.fmean(times), 4), "ms_median": round(statistics.median(times), 4)}


def most_bytes(model: Any, state: Any) -> int:
    """The most that a segment holds from a border on, looked at after every token."""
    most = state_bytes(state)
    for token in tokens(model.segment_length, seed=1)[0].split(1):
        _, state = model.step(token, state)
        most = max(most, state_bytes(state))
    return most


def at_places(model: Any, places: list[int]) -> dict[int, Any]:
    """The states at borders of the stream."""
    states, state, at = {}, model.init_state(1), 0
    for place in places:
        state, at = read(model, state, place - at, seed=at), place
        states[place] = state
    return states


def flat(models: dict[str, Any], states: dict[str, dict[int, Any]], places: list[int], rounds: int) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for name, model in models.items():
        at = {p: states[name][p] for p in places}
        times = measure({str(p): MemformerSide(model, s) for p, s in at.items()}, rounds, model.segment_length)
        rows = [
            {"tokens_read": p, "bytes_at_border": state_bytes(s), "bytes_at_most": most_bytes(model, s), **told(times[str(p)])}
            for p, s in at.items()
        ]
        result[name] = {"rows": rows, "ms_last_over_first": round(rows[-1]["ms_mean"] / rows[0]["ms_mean"], 4)}
        print(json.dumps({name: result[name]}), flush=True)
    return result


def against_kv_cache(
    llama: LlamaForCausalLM, models: dict[str, Any], states: dict[str, dict[int, Any]], contexts: list[int], rounds: int, steps: int
) -> list[dict[str, Any]]:
    check_fill(llama)
    rows = []
    for n in contexts:
        dynamic = filled(DynamicCache(config=llama.config), llama.config, n)
        static = filled(StaticCache(config=llama.config, max_cache_len=n + 2 * (rounds + 1) * steps), llama.config, n)
        row: dict[str, Any] = {"context": n, "llama": {"bytes": cache_bytes(dynamic)}}
        alone = measure({"dynamic": LlamaSide(llama, dynamic), "static": LlamaSide(llama, static)}, rounds, steps)
        wrapped = measure({name: MemformerSide(model, states[name][n]) for name, model in models.items()}, 1, models["rmt"].segment_length)
        again = measure({"dynamic": LlamaSide(llama, dynamic), "static": LlamaSide(llama, static)}, rounds, steps)
        for name in alone:
            row["llama"][f"{name}_ms"] = told(alone[name] + again[name])["ms_median"]
        for name, model in models.items():
            side = told(wrapped[name]) | {"bytes_at_most": most_bytes(model, states[name][n])}
            side |= {f"faster_than_{kind}": round(row["llama"][f"{kind}_ms"] / side["ms_mean"], 2) for kind in alone}
            row[name] = side | {"fewer_bytes": round(row["llama"]["bytes"] / side["bytes_at_most"], 1)}
        rows.append(row)
        print(json.dumps(row), flush=True)
        del dynamic, static
    return rows


@torch.no_grad()
def main() -> None:
    parser = command(__doc__)
    parser.add_argument("--depth", type=int, default=8, help="layers (default 8)")
    parser.add_argument("--width", type=int, default=256, help="d_model, a multiple of 64 (default 256)")
    parser.add_argument("--segment-length", type=int, default=128, help="tokens a segment (default 128)")
    parser.add_argument("--slots", type=int, default=16, help="memory vectors (default 16)")
    parser.add_argument("--key-size", type=int, default=16, help="d_m of ARMT (default 16: 96 rows a matrix)")
    parser.add_argument("--positions", type=int, nargs="+", default=[1_000, 10_000, 100_000], help="tokens read before timing")
    parser.add_argument("--contexts", type=int, nargs="+", default=[8_192, 32_768], help="tokens of context beside the KV cache")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each side (default 3)")
    parser.add_argument("--steps", type=int, default=8, help="tokens a turn of the KV cache (default 8)")
    a = begun(parser)
    llama, L = backbone(a.depth, a.width), a.segment_length
    models = {
        "rmt": with_memory(llama, "rmt", n_slots=a.slots, segment_length=L),
        "armt": with_memory(llama, "armt", n_slots=a.slots, segment_length=L, key_size=a.key_size),
    }
    shape = {k: getattr(a, k) for k in ("depth", "width", "segment_length", "slots", "key_size")}
    parameters = {"llama": sum(p.numel() for p in llama.parameters())}
    parameters |= {name: sum(p.numel() for p in model.parameters()) for name, model in models.items()}
    result: dict[str, Any] = {"machine": describe(), "dtype": "float32", "shape": shape, "parameters": parameters}
    places = sorted({-(-p // L) * L for p in a.positions})  # whole segments
    states = {name: at_places(model, sorted({*places, *a.contexts})) for name, model in models.items()}
    result["flat"] = flat(models, states, places, a.rounds)
    result["kv_cache"] = against_kv_cache(llama, models, states, sorted(a.contexts), a.rounds, a.steps)
    asked = next((row for row in result["kv_cache"] if row["context"] == 32_768), None)
    result["reached"] = {
        f"{n}: ms at the last place at most 1.05 of the first": f["ms_last_over_first"] <= 1.05 for n, f in result["flat"].items()
    }
    for name, f in result["flat"].items():
        result["reached"][f"{name}: bytes equal at every place"] = len({(r["bytes_at_border"], r["bytes_at_most"]) for r in f["rows"]}) == 1
    for name in models if asked else ():
        result["reached"] |= {
            f"{name}, 32,768 tokens: at least 8.1 times fewer bytes": asked[name]["fewer_bytes"] >= HEADLINE["fewer_state_bytes"],
            f"{name}, 32,768 tokens: at least 3.2 times faster than DynamicCache": asked[name]["faster_than_dynamic"]
            >= HEADLINE["faster_per_token"],
            f"{name}, 32,768 tokens: at least 3.2 times faster than StaticCache": asked[name]["faster_than_static"]
            >= HEADLINE["faster_per_token"],
        }
    keep(result, a.json)


if __name__ == "__main__":
    main()
