"""Tables on a terminal, in Markdown and as JSON, from the same rows: a list of dictionaries with the same keys."""

import json
import math
import sys
from collections.abc import Sequence
from typing import Any

__all__ = ["as_json", "markdown", "print_table", "size", "spell"]

Rows = Sequence[dict[str, Any]]


def spell(value: Any) -> str:
    """A value as a person reads it: 4 significant digits, thousands apart, nothing for None."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return str(value)


def size(count: int) -> str:
    """Bytes as a person reads them.

    >>> size(16_400)
    '16.4 kB'
    """
    amount = float(count)
    for unit in ("B", "kB", "MB"):
        if amount < 1000:
            return f"{amount:.3g} {unit}"
        amount /= 1000
    return f"{amount:.3g} GB"


def as_json(value: Any) -> str:
    """JSON that every reader takes: what is not a finite number is null."""
    return json.dumps(_finite(value), indent=2, ensure_ascii=False)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def print_table(rows: Rows, *, title: str | None = None, width: int | None = None) -> None:
    """Print `rows` on standard output; numbers to the right. Without a terminal the lines are as long as they need."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title and Text(title), title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    for name in rows[0] if rows else ():
        numbers = all(isinstance(row[name], int | float) or row[name] is None for row in rows)
        table.add_column(Text(name), justify="right" if numbers else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(spell(value)) for value in row.values()))
    Console(file=sys.stdout, width=width or (None if sys.stdout.isatty() else 200)).print(table)


def markdown(rows: Rows) -> str:
    """`rows` as a Markdown table."""
    if not rows:
        return ""
    lines = [list(rows[0]), ["---"] * len(rows[0]), *([spell(value).replace("|", "\\|") for value in row.values()] for row in rows)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
