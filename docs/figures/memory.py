"""Draw docs/figures/memory.svg from measured results: what a memory of constant size keeps, and what it holds.

    python docs/figures/memory.py

Reads benchmarks/results/memformer_recall.json and inference.json.
"""

import json
from collections import defaultdict
from pathlib import Path
from statistics import mean

import matplotlib as mpl
import matplotlib.pyplot as plt

HERE = Path(__file__).parent
RESULTS = HERE.parents[1] / "benchmarks" / "results"
CURVES = {  # row of the recipe -> how it is named and drawn
    "length, norm": ("Memformer", "#2563eb", "-"),
    "length, bmn, |v|/R = 0.01": ("Memformer, slow forgetting", "#7c3aed", "-"),
    "length, bmn, |v|/R = 0.125": ("Memformer, fast forgetting", "#db2777", "-"),
}
FLAT = {
    "gradient through 1 segment, S=4": ("gradient cut at each segment", "#6b7280", "o"),
    "transformer_xl, reach 2 x 12 < 35, S=4": ("Transformer-XL, cache of a segment", "#ea580c", "s"),
}


def accuracy(rows: list[dict]) -> dict[str, dict[int, float]]:
    """Mean over seeds, by row and number of segments."""
    found: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        for segments, value in row["accuracy"].items():
            found[row["name"]][int(segments)].append(value)
    return {name: {n: mean(values) for n, values in by.items()} for name, by in found.items()}


def main() -> None:
    mpl.rcParams.update({"svg.hashsalt": "memseq", "font.family": "sans-serif", "font.size": 10, "svg.fonttype": "none"})
    recall = json.loads((RESULTS / "memformer_recall.json").read_text())
    costs = json.loads((RESULTS / "inference.json").read_text())
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 4), constrained_layout=True)
    measured = accuracy(recall["rows"])
    for name, (label, colour, line) in CURVES.items():
        points = sorted(measured[name].items())
        left.plot([n for n, _ in points], [100 * a for _, a in points], line, marker="o", color=colour, label=label)
    for name, (label, colour, mark) in FLAT.items():
        points = sorted(measured[name].items())
        left.plot([n for n, _ in points], [100 * a for _, a in points], mark, color=colour, label=label)
    left.axhline(100 * recall["chance"], color="#9ca3af", linewidth=1, linestyle=":")
    left.axvspan(2, 8, color="#eff6ff", zorder=0)
    left.text(4, 50, "trained\nhere", ha="center", color="#6b7280")
    left.set_xscale("log", base=2)
    left.set(xlabel="segments of the stream, symbols in the first, question in the last", ylabel="recalled, %", title="What it keeps")
    left.set_xticks([2, 4, 8, 16, 32, 64, 128], ["2", "4", "8", "16", "32", "64", "128"])
    left.legend(fontsize=7.5, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=2)
    contexts = costs["kv_cache"]["rows"]
    lengths = [row["context"] for row in contexts]
    for key, label, colour in (
        ("llama_state_bytes", "Transformer with a cache", "#ea580c"),
        ("memformer_state_bytes", "Memformer", "#2563eb"),
    ):
        right.plot(lengths, [row[key] / 2**20 for row in contexts], marker="o", color=colour, label=label)
    right.set_xscale("log", base=2)
    right.set_yscale("log")
    right.set_xticks(lengths, [f"{n // 1024}k" for n in lengths])
    right.set(xlabel="tokens read", ylabel="held by one stream, MiB", title="What it holds (8 layers of width 256)")
    right.legend(fontsize=8, frameon=False)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(HERE / "memory.svg", metadata={"Date": None})


if __name__ == "__main__":
    main()
