"""Plots as SVG text: a heat map and lines. Colours are variables of the page, so that dark and light share a drawing.

Whatever carries a number has it in words under `data-tip`, which the page shows under the pointer, and in a `<title>` where
nothing runs.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

__all__ = ["Line", "heat", "lines", "short"]

Number = float | None
HEIGHT = 300
LEFT, RIGHT, TOP, BOTTOM = 58, 18, 14, 46


def short(value: float) -> str:
    """A number with few signs.

    >>> [short(x) for x in (0, 0.125, 3.14159, 4096, 131072, 2_500_000)]
    ['0', '0.125', '3.14', '4,096', '131k', '2.5M']
    """
    size = abs(value)
    if size >= 1e6:
        return f"{value / 1e6:.3g}M"
    if size >= 1e5:
        return f"{value / 1e3:.3g}k"
    if size >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def heat(
    down: Sequence[object],
    across: Sequence[object],
    values: Sequence[Sequence[Number]],
    *,
    down_label: str,
    across_label: str,
    low: float,
    high: float,
    tip: Callable[[Any, Any, float], str],
    spell: Callable[[float], str] = short,
    width: int = 640,
) -> str:
    """A map: a row for each of `down`, a column for each of `across`; colour from `low` (none) to `high` (full)."""
    left, bottom, top, row = 66, 44, 6, 34
    column = (width - left - 6) / max(1, len(across))
    height = top + row * len(down) + bottom
    parts = [_open(width, height, f"{down_label} down, {across_label} across")]
    for i, (name, cells) in enumerate(zip(down, values, strict=True)):
        y = top + row * i
        parts.append(_text(left - 10, y + row / 2 + 4, _spelled(name), "end"))
        for j, (other, value) in enumerate(zip(across, cells, strict=True)):
            x = left + column * j
            box = f'x="{x + 1:.1f}" y="{y + 1}" width="{column - 2:.1f}" height="{row - 2}" rx="3"'
            if value is None:
                parts.append(f'<rect {box} class="none"/>')
                continue
            share = 0.0 if high <= low else min(1.0, max(0.0, (value - low) / (high - low)))
            told = escape(tip(name, other, value), quote=True)
            strong = " on" if share > 0.55 else ""
            parts.append(f'<g class="cell" data-tip="{told}"><title>{told}</title><rect {box} class="back"/>')
            parts.append(f'<rect {box} class="fill" fill-opacity="{share:.3f}"/>')
            parts.append(_text(x + column / 2, y + row / 2 + 4, spell(value), "middle", f"value{strong}") + "</g>")
    for j, other in enumerate(across):
        parts.append(_text(left + column * (j + 0.5), height - bottom + 18, _spelled(other), "middle"))
    parts.append(_text(left + (width - left) / 2, height - 6, across_label, "middle", "label"))
    turn = f'transform="rotate(-90 14 {top + row * len(down) / 2:.0f})"'
    parts.append(_text(14, top + row * len(down) / 2, down_label, "middle", "label", turn))
    return "".join(parts) + "</svg>"


@dataclass(frozen=True, kw_only=True)
class Line:
    """One line: its points, its colour by number, and a word for what is at a point."""

    name: str
    x: Sequence[float]
    y: Sequence[Number]
    colour: int = 0
    dashed: bool = False
    unit: str = ""


def lines(
    drawn: Sequence[Line],
    *,
    x_label: str,
    y_label: str,
    low: float | None = None,
    high: float | None = None,
    log_y: bool = False,
    mark: tuple[float, str] | None = None,
    level: tuple[float, str] | None = None,
    x_word: str = "at",
    width: int = 640,
) -> str:
    """Lines over a logarithmic axis that has room for 0. `mark` is an upright line at an x, `level` a flat one at a y."""
    points = [(x, y) for line in drawn for x, y in zip(line.x, line.y, strict=True) if y is not None and (y > 0 or not log_y)]
    if not points:
        return '<p class="quiet">Nothing was measured here.</p>'
    ys = [y for _, y in points] + ([level[0]] if level else [])
    low = min(ys) if low is None else low
    high = max(ys) if high is None else max(high, *ys)
    to_y, y_ticks = _log_scale(low, high) if log_y else _scale(low, high)
    first, last = (math.log1p(x) for x in (min(x for x, _ in points), max(x for x, _ in points)))
    span = last - first or 1.0

    def px(x: float) -> float:
        return LEFT + (math.log1p(x) - first) / span * (width - LEFT - RIGHT)

    def py(y: float) -> float:
        return HEIGHT - BOTTOM - to_y(y) * (HEIGHT - TOP - BOTTOM)

    parts = [_open(width, HEIGHT, f"{y_label} by {x_label}")]
    for tick in y_ticks:
        parts.append(f'<line x1="{LEFT}" x2="{width - RIGHT}" y1="{py(tick):.1f}" y2="{py(tick):.1f}" class="grid"/>')
        parts.append(_text(LEFT - 8, py(tick) + 4, short(tick), "end"))
    at = -1e9
    for tick in sorted({x for x, _ in points}):
        if px(tick) - at >= 44:
            at = px(tick)
            parts.append(_text(at, HEIGHT - BOTTOM + 18, short(tick), "middle"))
    if level is not None:
        parts.append(f'<line x1="{LEFT}" x2="{width - RIGHT}" y1="{py(level[0]):.1f}" y2="{py(level[0]):.1f}" class="level"/>')
        parts.append(_text(width - RIGHT, py(level[0]) - 5, level[1], "end", "note"))
    if mark is not None and first < math.log1p(mark[0]) < last:
        parts.append(f'<line x1="{px(mark[0]):.1f}" x2="{px(mark[0]):.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}" class="level"/>')
        parts.append(_text(px(mark[0]) + 5, TOP + 10, mark[1], "start", "note"))
    for line in drawn:
        found = [(x, y) for x, y in zip(line.x, line.y, strict=True) if y is not None and (y > 0 or not log_y)]
        if not found:
            continue
        path = " ".join(f"{px(x):.1f},{py(y):.1f}" for x, y in found)
        parts.append(f'<polyline points="{path}" class="line c{line.colour % 6}{" dashed" if line.dashed else ""}"/>')
        for x, y in found:
            told = escape(f"{line.name}: {short(y)}{line.unit} {x_word} {short(x)}", quote=True)
            dot = f'<circle cx="{px(x):.1f}" cy="{py(y):.1f}" r="3" class="dot c{line.colour % 6}"/>'
            parts.append(
                f'<g data-tip="{told}"><title>{told}</title>{dot}<circle cx="{px(x):.1f}" cy="{py(y):.1f}" r="11" class="touch"/></g>'
            )
    parts.append(_text(LEFT + (width - LEFT - RIGHT) / 2, HEIGHT - 6, x_label, "middle", "label"))
    turn = f'transform="rotate(-90 13 {TOP + (HEIGHT - TOP - BOTTOM) / 2:.0f})"'
    parts.append(_text(13, TOP + (HEIGHT - TOP - BOTTOM) / 2, y_label, "middle", "label", turn))
    keys = "".join(
        f'<span class="key"><i class="c{line.colour % 6}{" dashed" if line.dashed else ""}"></i>{escape(line.name)}</span>'
        for line in drawn
    )
    return (f'<div class="keys">{keys}</div>' if len(drawn) > 1 else "") + "".join(parts) + "</svg>"


def _scale(low: float, high: float) -> tuple[Callable[[float], float], list[float]]:
    """A linear axis from `low` to a round number above `high`, and its ticks."""
    if high <= low:
        high = low + (abs(low) or 1.0)
    raw = (high - low) / 4
    step = next(n * 10 ** math.floor(math.log10(raw)) for n in (1, 2, 2.5, 5, 10) if n * 10 ** math.floor(math.log10(raw)) >= raw * 0.999)
    start, end = math.floor(low / step + 1e-9) * step, math.ceil(high / step - 1e-9) * step
    ticks = [start + step * i for i in range(round((end - start) / step) + 1)]
    return (lambda y: (y - start) / (end - start)), [0.0 if abs(t) < step * 1e-6 else t for t in ticks]


def _log_scale(low: float, high: float) -> tuple[Callable[[float], float], list[float]]:
    start, end = math.floor(math.log10(max(low, 1e-12))), math.ceil(math.log10(max(high, 1e-12)))
    end = end if end > start else start + 1
    return (lambda y: (math.log10(max(y, 1e-12)) - start) / (end - start)), [10.0**n for n in range(start, end + 1)]


def _open(width: float, height: float, label: str) -> str:
    return f'<svg viewBox="0 0 {width:.0f} {height:.0f}" role="img" aria-label="{escape(label, quote=True)}">'


def _text(x: float, y: float, text: str, anchor: str, kind: str = "tick", more: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" class="{kind}" {more}>{escape(text)}</text>'


def _spelled(value: object) -> str:
    return short(value) if isinstance(value, int | float) else str(value)
