"""The sections of the page: for each probe its title and what draws its figures.

A section is given (number of the model on the page, its name, the probe's result) of every model that has one.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from html import escape
from typing import Any

from memseq.report.plots import Line, heat, lines, short
from memseq.report.tables import as_json, size

__all__ = ["SECTIONS", "other_section"]

Measured = Sequence[tuple[int, str, dict[str, Any]]]
NARROW = 460  # of a figure that stands beside another


def figure(drawn: str, caption: str, *, title: str = "", more: str = "") -> str:
    head = f"<h3>{escape(title)}</h3>" if title else ""
    return f"<figure{more}>{head}{drawn}<figcaption>{caption}</figcaption></figure>"


def beside(figures: Sequence[str]) -> str:
    """Figures in a row where there is room."""
    return figures[0] if len(figures) == 1 else f'<div class="pair">{"".join(figures)}</div>'


def title_of(measured: Measured, name: str) -> str:
    return name if len(measured) > 1 else ""


def share(value: float) -> str:
    return f"{value:.0%}"


def recall(measured: Measured) -> str:
    drawn = []
    for _, name, found in measured:
        chance = found["chance"]
        plot = heat(
            found["loads"],
            found["distances"],
            found["accuracy"],
            down_label="pairs shown",
            across_label="tokens read in between",
            low=chance,
            high=1.0,
            spell=share,
            width=640 if len(measured) == 1 else NARROW,
            tip=lambda n, d, a: f"{short(n)} pairs, {short(d)} tokens later: {a:.1%} right",
        )
        luck = [(chance * (1 - chance) / n) ** 0.5 for n in found["asked"]]
        caption = f"Share of right answers. Guessing gives {chance:.1%}, which has no colour, give or take {luck[0]:.0%} in the first row"
        caption += f" ({found['asked'][0]} questions a number) and {luck[-1]:.0%} in the last ({found['asked'][-1]})."
        drawn.append(figure(plot, caption, title=title_of(measured, name)))
    return beside(drawn)


def capacity(measured: Measured) -> str:
    series = [
        Line(name=name, x=[r["load"] for r in found["rows"]], y=[r["items"] for r in found["rows"]], colour=i, unit=" pairs")
        for i, name, found in measured
    ]
    loads = [row["load"] for row in max((found["rows"] for _, _, found in measured), key=len)]
    perfect = Line(name="a perfect memory", x=loads, y=loads, colour=3, dashed=True, unit=" pairs")
    plot = lines([*series, perfect], x_label="pairs shown", y_label="pairs recalled", low=0, x_word="of")
    return figure(plot, "Pairs recalled at once, less what guessing gives. The bytes that held them are in the table above.")


def retention(measured: Measured) -> str:
    def over(what: str, y_label: str, caption: str, **more: Any) -> str:
        series = [
            Line(name=name, x=[r["distance"] for r in found["rows"]], y=[r.get(what) for r in found["rows"]], colour=i)
            for i, name, found in measured
        ]
        return figure(lines(series, x_label="tokens read since", y_label=y_label, x_word="after", width=NARROW, **more), caption)

    chance = measured[0][2]["chance"]
    figures = [
        over("share", "trace left", "How much the states of two streams still differ that saw different things.", low=0, high=1),
        over("recall", "recall", f"What can be asked for: share of right answers; guessing gives {chance:.1%}.", low=0, high=1),
        over("norm", "norm of the state", "The size of the state meanwhile.", low=0),
    ]
    if len(measured) == 1:
        figures.append(_traces(measured[0][2]["rows"]))
    return beside(figures)


def _traces(rows: Sequence[dict[str, Any]]) -> str:
    """The trace in the parts of the state that keep most of it in the end."""
    names = sorted(rows[0].get("leaves", {}), key=lambda name: -rows[-1]["leaves"][name])[:5]
    series = [Line(name=n, x=[r["distance"] for r in rows], y=[r["leaves"][n] for r in rows], colour=i) for i, n in enumerate(names)]
    plot = lines(series, x_label="tokens read since", y_label="difference", low=0, x_word="after", width=NARROW)
    return figure(plot, "The parts of the state that differ most in the end.")


def copying(measured: Measured) -> str:
    drawn = []
    words = {"text": "a passage of text", "random": "random tokens"}
    for kind, what in words.items():
        for _, name, result in measured:
            if kind not in result:
                continue
            found = result[kind]
            most = max((g for row in found["unseen"] for g in row if g is not None), default=1.0)
            plot = heat(
                found["lengths"],
                found["distances"],
                found["gain"],
                down_label="tokens of it",
                across_label="tokens read in between",
                low=0.0,
                high=most,
                spell=lambda g: f"{g:.2f}",
                width=NARROW,
                tip=lambda m, d, g: f"{short(m)} tokens, read again {short(d)} tokens later: {g:.2f} bits a token saved",
            )
            title = what[:1].upper() + what[1:] + (f", {name}" if len(measured) > 1 else "")
            drawn.append(
                figure(plot, f"Bits a token saved by having read it; full colour is {most:.1f}, all of its surprise.", title=title)
            )
    return beside(drawn)


def text(measured: Measured) -> str:
    series = []
    for i, name, found in measured:
        places = [b["first"] for b in found["bins"]]
        series.append(Line(name=name, x=places, y=[b["bits_per_byte"] for b in found["bins"]], colour=i, unit=" bits a byte"))
        cleared = f"{name}, memory cleared" if len(measured) > 1 else "memory cleared"
        series.append(Line(name=cleared, x=places, y=[b["cleared"] for b in found["bins"]], colour=i, dashed=True, unit=" bits a byte"))
    if len(measured) == 1:
        series[0] = replace(series[0], name="memory carried")
    every = ", ".join(sorted({f"{found['cleared_every']:,}" for _, _, found in measured}))
    plot = lines(series, x_label="tokens of the document read before", y_label="bits per byte")
    return figure(plot, f"Fewer is better. Cleared: the memory is emptied every {every} tokens, and near context stays.")


def collapse(measured: Measured) -> str:
    figures = []
    for kind, what in (("text", "reading text"), ("one token", "reading one token over and over")):
        series = []
        for i, name, found in measured:
            stream = found["streams"][kind]
            for number, leaf in enumerate(
                sorted(stream["leaves"], key=lambda leaf: -(leaf["growth"] or 1e30))[: 5 if len(measured) == 1 else 1]
            ):
                if max(leaf["rms"]) > 0:
                    label = leaf["name"] if len(measured) == 1 else f"{name}: {leaf['name']}"
                    series.append(Line(name=label, x=stream["places"], y=leaf["rms"], colour=number if len(measured) == 1 else i))
        trained = measured[0][2]["trained_length"]
        plot = lines(
            series, x_label="tokens read", y_label="rms", log_y=True, mark=(trained, "trained to here"), x_word="after", width=NARROW
        )
        figures.append(figure(plot, f"The parts of the state that grew the most, {what}.", title=f"State, {what}"))
    series = [
        Line(name=name, x=found["streams"]["text"]["places"], y=found["streams"]["text"]["bits"], colour=i, unit=" bits a token")
        for i, name, found in measured
    ]
    plot = lines(series, x_label="tokens read", y_label="bits per token", mark=(measured[0][2]["trained_length"], "trained to here"))
    return beside(figures) + figure(plot, "Surprisal of one long text, interval by interval.", title="Loss, reading text")


def slots(measured: Measured) -> str:
    drawn = []
    for i, name, found in measured:
        length = found["segment_length"]
        lives = [life * length if life is not None else None for life in found["half_life"]]
        buttons = "".join(
            f'<button type="button" aria-pressed="false">slot {n + 1} <small>{_life(life)}</small></button>' for n, life in enumerate(lives)
        )
        words = []
        for number, held in enumerate(found["maps"]):
            most = max((max(row) for row in held["write"]), default=1.0) or 1.0
            for at, word in enumerate(held["text"]):
                weight = max(row[at] for row in held["write"]) / most
                start = " seg" if at == 0 and number else ""
                place = f'class="t{start}" data-map="{number}" data-at="{at}" data-tip=""'
                words.append(f'<span {place} style="--w:{weight:.3f}">{_visible(word)}</span>')
        choice = '<div class="choice"><button type="button" value="write" aria-pressed="true">written from</button>'
        choice += '<button type="button" value="read" aria-pressed="false">read by</button></div>'
        caption = (
            "Colour: how much of a slot comes from a token (or how much of a token's read is of a slot). Point at a slot or at a token;"
        )
        caption += f" beside each slot, the tokens after which half of it is rewritten. A bar marks a segment of {length} tokens."
        body = f'{choice}<div class="slots">{buttons}</div><div class="tokens">{"".join(words)}</div>'
        drawn.append(figure(body, caption, title=title_of(measured, name), more=f' data-slots="{i}"'))
    return "".join(drawn)


def _life(tokens: float | None) -> str:
    return "keeps" if tokens is None else short(round(tokens))


def _visible(word: str) -> str:
    """A token on the page: what cannot be seen is shown by a sign."""
    shown = word.replace("\n", "⏎\n").replace("\t", "⇥")
    return escape(shown.replace("\r", "␍") if shown else "∅")


def timescales(measured: Measured) -> str:
    series = []
    for i, name, found in measured:
        for number, (kind, fitted) in enumerate(_slowest(found["kinds"], 5 if len(measured) == 1 else 1)):
            label = kind if len(measured) == 1 else f"{name}: {kind}"
            label += f" (median {short(fitted['median'])})" if "median" in fitted else ""
            y = fitted["autocorrelation"]
            series.append(Line(name=label, x=list(range(len(y))), y=y, colour=number if len(measured) == 1 else i))
    plot = lines(series, x_label="tokens later", y_label="autocorrelation", high=1, low=0, x_word="after")
    return figure(plot, "How alike single numbers stay to themselves: the mean over units, for the slowest parts.")


def _slowest(kinds: dict[str, Any], count: int) -> list[tuple[str, Any]]:
    return sorted(((k, f) for k, f in kinds.items() if f), key=lambda item: -(item[1].get("median") or 0.0))[:count]


def fidelity(measured: Measured) -> str:
    series = []
    for i, name, found in measured:
        label = f"{name}" if len(measured) > 1 else "tokens it read"
        series.append(Line(name=label, x=[e["lag"] for e in found["etmf"]], y=[e["fidelity"] for e in found["etmf"]], colour=i))
    floor = measured[0][2]["floor"]
    etmf = lines(series, x_label="tokens back", y_label="cosine (ETMF)", level=(floor, "tokens it never saw"), width=NARROW)
    series = []
    for i, name, found in measured:
        gaps = [e["gap"] for e in found["eclmf"]]
        series.append(Line(name=f"{name}, of |Y|", x=gaps, y=[e["eclmf_r"] for e in found["eclmf"]], colour=i))
        series.append(Line(name=f"{name}, of |X|", x=gaps, y=[e["eclmf"] for e in found["eclmf"]], colour=i, dashed=True))
    eclmf = lines(series, x_label="layers above", y_label="ECLMF", width=NARROW)
    return beside(
        [
            figure(etmf, "Cosine between a token and what is predicted so many tokens later.", title="Along the text"),
            figure(eclmf, "What share of a layer is linear in the layer below it.", title="Along the layers"),
        ]
    )


def retrieval_heads(measured: Measured) -> str:
    drawn = []
    for _, name, found in measured:
        layers = sorted({head["layer"] for head in found["heads"]})
        heads = sorted({head["head"] for head in found["heads"]})
        at = {(head["layer"], head["head"]): head["score"] for head in found["heads"]}
        plot = heat(
            [layer + 1 for layer in layers],
            [head + 1 for head in heads],
            [[at.get((layer, head)) for head in heads] for layer in layers],
            down_label="layer",
            across_label="head",
            low=0.0,
            high=1.0,
            spell=share,
            width=640 if len(measured) == 1 else NARROW,
            tip=lambda layer, head, s: f"layer {layer}, head {head}: looks most at the answer in {s:.1%} of the trials",
        )
        drawn.append(
            figure(plot, "Share of right answers for which a head looks most at the place of the answer.", title=title_of(measured, name))
        )
    return beside(drawn)


def cost(measured: Measured) -> str:
    held = [
        Line(name=name, x=[r["length"] for r in found["rows"]], y=[r["state_bytes"] for r in found["rows"]], colour=i, unit=" bytes")
        for i, name, found in measured
    ]
    spent = [
        Line(name=name, x=[r["length"] for r in found["rows"]], y=[r["step_ms"] for r in found["rows"]], colour=i, unit=" ms")
        for i, name, found in measured
    ]
    most = max(row["state_bytes"] for _, _, found in measured for row in found["rows"])
    return beside(
        [
            figure(
                lines(held, x_label="tokens read", y_label="bytes", log_y=True, x_word="after", width=NARROW),
                f"One stream; {size(most)} at most.",
            ),
            figure(lines(spent, x_label="tokens read", y_label="ms", low=0, x_word="after", width=NARROW), "The time of one more token."),
        ]
    )


def other_section(measured: Measured) -> str:
    """A probe without a drawing of its own: a map of two swept settings, a line of one, and its numbers."""
    drawn = []
    for _, name, found in measured:
        axes = found.get("axes", {})
        if len(axes) == 2 and "accuracy" in found:
            (down, rows), (across, columns) = axes.items()
            plot = heat(
                rows,
                columns,
                found["accuracy"],
                down_label=down,
                across_label=across,
                low=found["chance"],
                high=1.0,
                spell=share,
                width=640 if len(measured) == 1 else NARROW,
                tip=lambda a, b, v, down=down, across=across: f"{down} {a}, {across} {b}: {v:.1%} right",
            )
            drawn.append(figure(plot, f"Share of right answers. Guessing gives {found['chance']:.1%}.", title=title_of(measured, name)))
    lists = [(i, name, found) for i, name, found in measured if len(found.get("axes", {})) == 1 and found.get("rows")]
    if lists:
        axis = next(iter(lists[0][2]["axes"]))
        series = [
            Line(name=name, x=[r["settings"][axis] for r in f["rows"]], y=[r["scores"]["accuracy"] for r in f["rows"]], colour=i)
            for i, name, f in lists
        ]
        level = (lists[0][2]["chance"], "guessing")
        plot = lines(series, x_label=axis, y_label="accuracy", low=0, high=1, level=level)
        drawn.append(figure(plot, "Share of right answers."))
    numbers = json.loads(as_json({name: {k: v for k, v in found.items() if k != "says"} for _, name, found in measured}))
    return beside(drawn or [""]) + f"<details><summary>The numbers</summary><pre>{escape(json.dumps(numbers, indent=1))}</pre></details>"


SECTIONS: dict[str, tuple[str, Callable[[Measured], str]]] = {
    "recall": ("Recall by distance and load", recall),
    "capacity": ("Capacity", capacity),
    "retention": ("Retention", retention),
    "copying": ("Copying", copying),
    "text": ("Text, by position", text),
    "collapse": ("State over time", collapse),
    "slots": ("What the slots hold", slots),
    "timescales": ("Timescales", timescales),
    "fidelity": ("Fidelity", fidelity),
    "retrieval_heads": ("Retrieval heads", retrieval_heads),
    "cost": ("Cost of a stream", cost),
}
