"""One page that says what one or several models remember: a table first, then a section for each probe.

The page is one file: its style and its script are in it, its plots are drawn here as SVG, and nothing is fetched from anywhere.
The results it shows are in it as JSON, so that the page is also the data. Without a script all is there but the hovering.
"""

from collections.abc import Mapping, Sequence
from html import escape
from importlib import resources
from typing import Any

from memseq.report.answers import named, spoken
from memseq.report.sections import SECTIONS, other_section
from memseq.report.tables import as_json, size, spell

__all__ = ["page"]

Result = Mapping[str, Any]


def page(results: Sequence[Result]) -> str:
    """The page of what `memseq probe` found, one result a model."""
    names = named(results)
    found = list(dict.fromkeys(probe for result in results for probe in result["probes"]))
    order = [*(name for name in SECTIONS if name in found), *(name for name in found if name not in SECTIONS)]
    sections = [_section(probe, names, results) for probe in order]
    links = " ".join(f'<a href="#{_anchor(probe)}">{escape(_title(probe))}</a>' for probe in order)
    title = f"What {names[0]} remembers" if len(names) == 1 else "What they remember"
    data = as_json(list(results)).replace("</", "<\\/")  # so that no text in it can end the script
    return "\n".join(
        [
            '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{escape(title)}</title>\n<style>\n{_file('page.css')}</style>\n</head>\n<body>\n<main>",
            '<button class="theme" type="button">dark / light</button>',
            f"<h1>{escape(title)}</h1>",
            "".join(_facts(name, result, len(names) > 1) for name, result in zip(names, results, strict=True)),
            _table(names, results),
            f"<nav>{links}</nav>",
            *sections,
            _end(results),
            "</main>",
            f'<script type="application/json" id="probe-data">{data}</script>',
            f"<script>\n{_file('page.js')}</script>\n</body>\n</html>\n",
        ]
    )


def _file(name: str) -> str:
    return resources.files("memseq.report").joinpath(name).read_text(encoding="utf-8")


def _anchor(probe: str) -> str:
    return "probe-" + "".join(c if c.isalnum() else "-" for c in probe)


def _title(probe: str) -> str:
    return SECTIONS[probe][0] if probe in SECTIONS else f"Task: {probe.removeprefix('task:')}" if probe.startswith("task:") else probe


def _facts(name: str, result: Result, named: bool) -> str:
    """One line on a model."""
    m = result["model"]
    words = [m["system"], f"{m['parameters']:,} weights"]
    words += [f"trained on windows of {m['trained_length']:,} tokens"] if m.get("trained_length") else []
    words += [] if m["bounded"] else ["its state grows with the stream"]
    first = f"<strong>{escape(name)}</strong>: " if named else ""
    return f'<p class="facts">{first}{escape(", ".join(words))}.</p>'


def _table(names: Sequence[str], results: Sequence[Result]) -> str:
    """A row a question, a column a model."""
    rows = spoken(results)
    if not rows:
        return ""
    heads = [head for head in rows[0] if head != "question"]
    shown = names if len(names) > 1 else ["Answer"]
    top = "".join(f"<th>{escape(head)}</th>" for head in ("Question", *shown))
    body = []
    for row in rows:
        of = [f' data-of="{escape(name, quote=True)}"' if len(names) > 1 else "" for name in names]
        cells = "".join(f"<td{o}>{escape(row[head])}</td>" for o, head in zip(of, heads, strict=True))
        body.append(f'<tr><th scope="row">{escape(row["question"])}</th>{cells}</tr>')
    return f'<div class="scroll"><table><thead><tr>{top}</tr></thead><tbody>{"".join(body)}</tbody></table></div>'


def _section(probe: str, names: Sequence[str], results: Sequence[Result]) -> str:
    """Heading, what the probe does, its figures, and its numbers."""
    measured = [
        (i, name, result["probes"][probe]["result"])
        for i, (name, result) in enumerate(zip(names, results, strict=True))
        if probe in result["probes"]
    ]
    about = next(result["probes"][probe]["about"] for result in results if probe in result["probes"])
    draw = SECTIONS[probe][1] if probe in SECTIONS else other_section
    return "\n".join(
        [
            f'<section id="{_anchor(probe)}">\n<h2>{escape(_title(probe))}</h2>',
            f'<p class="quiet">{escape(about[:1].upper() + about[1:])}{"" if about.endswith("?") else "."}</p>',
            draw(measured),
            "</section>",
        ]
    )


def _end(results: Sequence[Result]) -> str:
    """What was left out, on which machine, and the data."""
    lines = [f"{escape(result['model']['name'])}: {escape(why)}." for result in results for why in result.get("skipped", {}).values()]
    machine = results[0].get("machine", {})
    where = f"{machine.get('cpu', 'unknown processor')}, {machine.get('cores', '?')} cores"
    where = f"{machine['gpu']}, {where}" if machine.get("gpu") else where
    held = ", ".join(f"{size(len(as_json(result)))} in {spell(float(result.get('seconds', 0.0)))} s" for result in results)
    left_out = f"<p>Left out. {' '.join(lines)}</p>" if lines else ""
    return (
        f"<footer>{left_out}<p>Measured by memseq on {escape(where)}; {escape(held)}."
        ' <a class="save" href="#">Save the numbers</a> as JSON.</p></footer>'
    )
