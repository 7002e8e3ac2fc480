"""Draw docs/figures/aaren.svg from measured results: what a stream costs with Aaren, and with keys and values kept.

    python docs/figures/aaren.py

Reads benchmarks/results/aaren.json.
"""

import json
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt

HERE = Path(__file__).parent
RESULTS = HERE.parents[1] / "benchmarks" / "results"
NAMES = {"aaren": ("Aaren", "#2563eb"), "attention": ("Transformer with a cache", "#ea580c")}


def main() -> None:
    mpl.rcParams.update({"svg.hashsalt": "memseq", "font.family": "sans-serif", "font.size": 10, "svg.fonttype": "none"})
    rows = {row["name"]: row for row in json.loads((RESULTS / "aaren.json").read_text())["rows"] if row["part"] == "stream"}
    figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3.2), constrained_layout=True)
    for name, (label, colour) in NAMES.items():
        for axes, key, unit in ((left, "cumulative_seconds", 1), (right, "bytes", 1024)):
            points = [(int(tokens), value / unit) for tokens, value in rows[name][key].items()]
            axes.plot(*zip(*points, strict=True), marker="o", color=colour, label=label)
    left.set(xlabel="tokens read, one by one", ylabel="processor seconds so far", title="What a stream takes", ylim=(0, None))
    right.set(xlabel="tokens read", ylabel="held by the stream, KiB", title="What it holds", yscale="log")
    left.legend(fontsize=8, frameon=False)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(HERE / "aaren.svg", metadata={"Date": None})


if __name__ == "__main__":
    main()
