"""Draw docs/figures/capacity.svg from measured results: pairs that a state of a size holds, and how recall falls beyond.

    python docs/figures/capacity.py

Reads benchmarks/results/capacity.json.
"""

import json
from pathlib import Path
from statistics import mean

import matplotlib as mpl
import matplotlib.pyplot as plt
from matplotlib.ticker import ScalarFormatter

HERE = Path(__file__).parent
RESULTS = HERE.parents[1] / "benchmarks" / "results"
KINDS = {"deltanet": ("DeltaNet", "#2563eb"), "mamba2, slow gates": ("Mamba-2, slow gates", "#16a34a")}
KINDS |= {"mamba2, usual gates": ("Mamba-2, usual gates", "#ea580c")}


def main() -> None:
    mpl.rcParams.update({"svg.hashsalt": "memseq", "font.family": "sans-serif", "font.size": 10, "svg.fonttype": "none"})
    told = json.loads((RESULTS / "capacity.json").read_text())
    rows = [row for row in told["rows"] if row["part"] == "pairs"]
    sizes = sorted({row["state_size"] for row in rows})
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), constrained_layout=True)
    for kind, (label, colour) in KINDS.items():
        points = [(row["state_size"], row["held"]) for row in rows if row["kind"] == kind]
        a, b = (told["laws"][kind]["power"][name] for name in "ab")
        left.scatter(*zip(*points, strict=True), color=colour, s=16)
        left.plot([sizes[0], sizes[-1]], [2**a * n**b for n in (sizes[0], sizes[-1])], color=colour, label=f"{label}: {2**a:.2f} N^{b:.2f}")
    left.set(
        xscale="log",
        yscale="log",
        ylim=(0.9, 100),
        xlabel="N, rows of the matrix",
        ylabel="pairs, 95 % of them right",
        title="What a state holds",
    )
    left.set_xticks(sizes, [str(n) for n in sizes])
    left.minorticks_off()
    left.set_yticks([1, 2, 4, 8, 16, 32, 64])
    left.yaxis.set_major_formatter(ScalarFormatter())
    left.legend(fontsize=8, frameon=False)
    kind = "mamba2, slow gates"
    for i, n in enumerate(sizes):
        found = [row["accuracy"] for row in rows if row["kind"] == kind and row["state_size"] == n]
        asked = [int(pairs) for pairs in found[0]]
        shade = mpl.colormaps["viridis"](0.85 - 0.28 * i)
        right.plot(
            asked, [mean(seed[str(pairs)] for seed in found) for pairs in asked], color=shade, marker="o", markersize=3, label=f"N = {n}"
        )
    right.axhline(0.95, color="#9ca3af", linewidth=0.8, linestyle="--")
    right.set(xscale="log", xlabel="pairs in the stream", ylabel="share right", title=KINDS[kind][0], ylim=(0, 1.02))
    right.set_xticks([1, 2, 4, 8, 16, 32, 64], ["1", "2", "4", "8", "16", "32", "64"])
    right.minorticks_off()
    right.legend(fontsize=8, frameon=False)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(HERE / "capacity.svg", metadata={"Date": None})


if __name__ == "__main__":
    main()
