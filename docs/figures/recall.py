"""From measured results: docs/figures/recall.svg, a small map of recall for each system, and the table of docs/recall.md.

    python docs/figures/recall.py

Reads benchmarks/results/recall.json. The colours are cividis, which is ordered by lightness and alike for all kinds of eyes.
"""

import json
import math
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt

from memseq.recipes.recall_table import chosen
from memseq.systems import families

HERE = Path(__file__).parent
RESULTS = HERE.parents[1] / "benchmarks" / "results"
ACROSS = 9
MARK = "<!-- table -->"


def packed(groups: dict[str, list[str]]) -> list[list[tuple[str, str]]]:
    """Lines of (family, stem), the family named at its first; each goes where it has room, and is broken where none has."""
    lines: list[list[tuple[str, str]]] = []
    for family, stems in groups.items():
        for first in range(0, len(stems), ACROSS):
            part = [(family if i == first else "", stems[i]) for i in range(first, min(first + ACROSS, len(stems)))]
            line = next((line for line in lines if len(line) + len(part) <= ACROSS), None)
            if line is None:
                lines.append(line := [])
            line += part
    return lines


def table(rows: dict[str, Any], groups: dict[str, list[str]], loads: list[int], distances: list[int]) -> str:
    """The rows by family, in per cent."""

    def cell(stem: str, load: int, distance: int) -> str:
        share = rows[stem]["recall"][loads.index(load)][distances.index(distance)]
        return "-" if share is None else f"{100 * share:.0f}"

    names = "system | weights | bytes | steps | rate | training, tokens/s | decoding, tokens/s | trained | 8, 64 | 8, 512 | 16, 0 | 16, 512"
    lines = [f"| {names} |", "|---" * (names.count("|") + 1) + "|"]
    for family, stems in groups.items():
        lines.append(f"| *{family}* |" + " |" * names.count("|"))
        for stem in stems:
            row = rows[stem]
            numbers = [f"{row['parameters']:,}", f"{row['state_bytes']:,}", str(row["steps"]), f"{row['lr']:g}"]
            numbers += [f"{row[f'{what}_tokens_per_second']:,}" for what in ("training", "decoding")]
            asked = [cell(stem, 8, 64), cell(stem, 8, 512), cell(stem, 16, 0), cell(stem, 16, 512)]
            name = f"[{stem}](systems/{stem}.md)" if (HERE.parent / "systems" / f"{stem}.md").is_file() else stem
            told = [name, *numbers, f"{100 * row['chosen_by']:.0f}", *asked]
            lines.append(f"| {' | '.join(told)} |")
    return "\n".join(lines)


def main() -> None:
    mpl.rcParams.update({"svg.hashsalt": "memseq", "font.family": "sans-serif", "font.size": 8, "svg.fonttype": "none"})
    told = json.loads((RESULTS / "recall.json").read_text())
    rows = chosen(told["rows"])
    groups = {family: [system.stem for system in systems if system.stem in rows] for family, systems in families().items()}
    groups = {family: stems for family, stems in groups.items() if stems}
    groups["two in a block"] = [name for name in rows if not any(name in stems for stems in groups.values())]
    groups = {family: stems for family, stems in groups.items() if stems}
    lines = packed(groups)
    figure = plt.figure(figsize=(12, 1.5 * len(lines) + 0.8))
    grid = figure.add_gridspec(len(lines), ACROSS, hspace=0.85, wspace=0.16, top=0.96, bottom=0.09, left=0.03, right=0.99)
    loads, distances = told["loads"], told["distances"]
    trained = loads.index(told["trained"][0]) + 1, distances.index(told["trained"][1]) + 1
    for y, line in enumerate(lines):
        for x, (family, stem) in enumerate(line):
            axes = figure.add_subplot(grid[y, x])
            values = [[math.nan if cell is None else cell for cell in cells] for cells in rows[stem]["recall"]]
            drawn = axes.pcolormesh(values, cmap="cividis", vmin=told["chance"], vmax=1, edgecolors="white", linewidth=0.4)
            axes.plot([0, trained[1], trained[1]], [trained[0], trained[0], 0], color="#d62728", linewidth=1.2, clip_on=False)
            axes.set_title(stem.replace("sliding_window + ", "window + "), fontsize=7.5, pad=3)
            axes.set_xticks([i + 0.5 for i in range(len(distances))], distances if (y, x) == (0, 0) else [], fontsize=6, rotation=90)
            axes.set_yticks([i + 0.5 for i in range(len(loads))], loads if x == 0 else [], fontsize=6)
            axes.tick_params(length=0)
            for side in axes.spines.values():
                side.set_visible(False)
            if family:
                axes.annotate(
                    family, (0, 1), (0, 15), xycoords="axes fraction", textcoords="offset points", fontsize=8.5, fontweight="bold"
                )
    scale = figure.add_axes((0.66, 0.04, 0.3, 0.012))
    figure.colorbar(drawn, cax=scale, orientation="horizontal", label="share of right answers, from chance to all")
    words = "Upwards: facts read (1 to 16). To the right: tokens of noise since (0 to 512). Inside the red line: sizes of training."
    figure.text(0.03, 0.035, words, fontsize=8)
    figure.savefig(HERE / "recall.svg", metadata={"Date": None}, bbox_inches="tight")
    page = HERE.parent / "recall.md"
    before, found, after = page.read_text().partition(MARK)
    _, end, after = after.partition(MARK)
    page.write_text(f"{before}{found}\n\n{table(rows, groups, loads, distances)}\n\n{end}{after}")


if __name__ == "__main__":
    main()
