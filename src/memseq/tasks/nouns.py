"""Lists of nouns that are read, then something else, then a list again: the same, another order, or other nouns.

Source: Armeni, Honey & Linzen, arXiv:2210.13569.

    preface : w_1, w_2, ..., w_N.  something in between  cue : w'_1, w'_2, ..., w'_N.

    repeat     w' = w                          permute    the same nouns in another order
    control    the nouns of another list

`noun_lists` makes base lists of nouns that share none, each turned so that every noun stands at every place; shorter lists are the first
nouns of these. `read_nouns` and `read_scenes` read the published nouns and stories; without them there are some of our own.
"""

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple, get_args

from memseq.errors import ConfigError, InputError

__all__ = ["CONDITIONS", "NOUNS", "SCENE", "Scene", "Stimulus", "noun_lists", "read_nouns", "read_scenes", "stimulus"]

Condition = Literal["repeat", "permute", "control"]
CONDITIONS: tuple[Condition, ...] = get_args(Condition)

NOUNS = tuple(
    """anchor arrow basket beach belt bird blanket boat bottle bridge brush bucket button cabin candle carpet castle chain chair cheese
    circle clock cloud coat coin corner cup curtain desk dish door dress drum engine farm feather fence finger flag flower fork forest
    fruit garden gate glass glove grass hammer harbor hat hill honey horse hotel island jacket key kitchen kite knife ladder lake lamp
    leaf letter lion map meadow milk mirror moon mountain needle nest ocean orange oven page paint paper pencil piano pillow planet plate
    pocket pond queen rabbit rain ribbon ring river road rocket roof rope sail salt shadow sheep shell ship shirt shoe silver snow soap
    spoon star station stone storm street sugar table tail tent thread ticket tiger tower train tree valley village wagon wall water wheel
    whistle window winter wolf wool yard""".split()  # noqa: SIM905
)


class Scene(NamedTuple):
    """What stands around the lists; `between` from the shortest to the longest, each ending in the cue."""

    preface: str
    between: tuple[str, ...]


_WALK = (
    "Then she walked to the market.",
    "It was early and the streets were quiet. A man was sweeping the steps of the town hall, and two children ran past her.",
    (
        "At the corner she met a friend from school. They spoke about the summer, about the new teacher, and about a film that they both"
        " wanted to see. Neither of them was in a hurry."
    ),
    (
        "Later they sat down in the shade. The friend told a long story about her brother, who had moved to another town and did not like"
        " it there. He had found work, but the people were strangers to him, and he came back whenever he could. They laughed about it."
    ),
)
SCENE = Scene(
    "Before she left, Anna wrote down a list of words:",
    tuple(" ".join([*_WALK[:n], "When she came home, she read the list again:"]) for n in range(1, len(_WALK) + 1)),
)


@dataclass(frozen=True, kw_only=True)
class Stimulus:
    """A text, and where the nouns of its two lists stand in it, the space before each included."""

    text: str
    first: tuple[tuple[int, int], ...]  # characters from, to
    second: tuple[tuple[int, int], ...]
    condition: str
    size: int  # N


def noun_lists(nouns: Sequence[str] = NOUNS, *, n_base: int = 10, size: int = 10, seed: int = 0) -> list[list[tuple[str, ...]]]:
    """`n_base` lists of `size` nouns that share none, each in its `size` turns: [base][turn]."""
    if n_base < 2 or size < 2:
        raise ConfigError(f"n_base={n_base} lists of size={size} make no control; use at least 2 of 2")
    if n_base * size > len(set(nouns)):
        raise ConfigError(
            f"{n_base} lists of {size} need {n_base * size} nouns and there are {len(set(nouns))}; use fewer or shorter lists"
        )
    pool = random.Random(seed).sample(sorted(set(nouns)), n_base * size)
    bases = [tuple(pool[i * size : (i + 1) * size]) for i in range(n_base)]
    return [[base[turn:] + base[:turn] for turn in range(size)] for base in bases]


def stimulus(
    lists: Sequence[Sequence[tuple[str, ...]]],
    base: int,
    turn: int,
    condition: Condition,
    *,
    size: int,
    scene: Scene = SCENE,
    between: int = 0,
) -> Stimulus:
    """One text. The permuted order and the control's list are functions of `base` and `turn` alone."""
    longest = len(lists[base][turn])
    if not 2 <= size <= longest:
        raise ConfigError(f"size={size} must lie in 2 to {longest}, the nouns of a list")
    if not 0 <= between < len(scene.between):
        raise ConfigError(f"between={between} must lie in 0 to {len(scene.between) - 1}, the passages of the scene")
    first = lists[base][turn][:size]
    match condition:
        case "repeat":
            second = first
        case "permute":
            chance = random.Random(turn * 1009 + base)
            second = first
            while second == first:
                second = tuple(chance.sample(first, size))
        case "control":
            second = lists[(base + 1 + turn % (len(lists) - 1)) % len(lists)][turn][:size]
        case _:
            raise ConfigError(f"condition must be one of {', '.join(CONDITIONS)}, got {condition!r}")
    text, spans = scene.preface, []
    for words, after in ((first, f" {scene.between[between]}"), (second, "")):
        own = []
        for i, word in enumerate(words):
            own.append((len(text), len(text) + 1 + len(word)))
            text += f" {word}{'.' if i == size - 1 else ','}"
        spans.append(tuple(own))
        text += after
    return Stimulus(text=text, first=spans[0], second=spans[1], condition=condition, size=size)


def read_nouns(file: str | Path) -> tuple[str, ...]:
    """The nouns of a table whose first column is `word`, or of a file with one a line, in small letters."""
    try:
        lines = Path(file).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"the nouns of {file} cannot be read: {error}") from None
    words = [line.split("\t")[0].strip().lower() for line in lines if line.strip()]
    words = words[1:] if words[:1] == ["word"] else words
    if not words or not all(word.isalpha() for word in words):
        raise InputError(f"{file} is no list of nouns: one a line, or a table whose first column is `word`")
    return tuple(words)


def read_scenes(file: str | Path) -> dict[str, Scene]:
    """The published scenes by name: JSON of {name: {"prefix": ..., "prompts": {"1": ..., "2": ...}}}."""
    try:
        found = json.loads(Path(file).read_text(encoding="utf-8"))
        scenes = {name: (scene["prefix"], scene["prompts"]) for name, scene in found.items()}
        return {name: Scene(preface, tuple(parts[key] for key in sorted(parts, key=int))) for name, (preface, parts) in scenes.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{file} holds no scenes (prefix and prompts by name): {error}") from None
