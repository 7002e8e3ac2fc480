"""Questions about long papers and meetings: the official files of PubMedQA and QMSum, and their like made of stories at hand.

Sources: PubMedQA (Jin et al., arXiv:1909.06146); QMSum (Zhong et al., arXiv:2104.05938). HMT (arXiv:2405.06067) is measured on both.

    read_pubmedqa(file)     passages are the contexts; a decision (yes, no, maybe) and a long answer
    read_qmsum(file)        passages are the turns, "speaker: what was said"; `gold` are those that the file calls relevant
    chained(...)            contexts of other questions around those of one, as many as there is room for
    made_studies(...)       in PubMedQA's format: stories of bAbI, each of a town of its own; one bears on the question
    made_meeting(...)       in QMSum's format: speakers who say where things are, among sentences of any text

What is made is made as official files are written, and read by the same readers: who has the real sets, or others like them, uses those.
"""

import gzip
import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from memseq.errors import InputError
from memseq.tasks import babi

__all__ = ["Inquiry", "chained", "made_meeting", "made_studies", "parse_pubmedqa", "parse_qmsum", "read_pubmedqa", "read_qmsum"]

# fmt: off
TOWNS = (
    "Ashford", "Barton", "Carlow", "Denby", "Elstow", "Fenton", "Gosport", "Harwich",
    "Ilkley", "Jarrow", "Kendal", "Ludlow", "Matlock", "Newark", "Oakham", "Penrith",
    "Redcar", "Selby", "Thirsk", "Ulverston", "Ventnor", "Wetherby", "Yarm", "Ambleside",
    "Bakewell", "Corbridge", "Dunster", "Evesham", "Frome", "Grasmere", "Hexham", "Ivybridge",
)
# fmt: on
SPEAKERS = ("Professor", "Manager", "Designer", "Engineer", "Student", "Secretary")
THINGS = ("football", "apple", "milk", "lamp", "letter", "key")
SAID = ("is in", "was lost in", "was found in", "was left in")


class Inquiry(NamedTuple):
    passages: tuple[str, ...]  # in their order
    question: str
    answer: str
    decision: str = ""  # yes, no or maybe, where the set has one
    gold: tuple[int, ...] = ()  # the passages that decide the answer, where the set says so


def read_pubmedqa(file: str | Path) -> list[Inquiry]:
    """The questions of a PubMedQA file (.json, or .gz of it). Raises `InputError` where it is missing or of another format."""
    return _parsed(file, lambda text: parse_pubmedqa(json.loads(text)), "PubMedQA: {id: {QUESTION, CONTEXTS, final_decision, LONG_ANSWER}}")


def read_qmsum(file: str | Path) -> list[Inquiry]:
    """The specific queries of a QMSum file (.jsonl, or .gz of it), meeting by meeting. Raises `InputError` as above."""

    def parse(text: str) -> list[Inquiry]:
        return [found for line in text.splitlines() if line.strip() for found in parse_qmsum(json.loads(line))]

    return _parsed(file, parse, "QMSum: lines of {meeting_transcripts: [{speaker, content}], specific_query_list: [{query, answer, ...}]}")


def parse_pubmedqa(told: dict[str, Any]) -> list[Inquiry]:
    return [
        Inquiry(tuple(one["CONTEXTS"]), one["QUESTION"], one["LONG_ANSWER"], one["final_decision"], tuple(range(len(one["CONTEXTS"]))))
        for one in told.values()
    ]


def parse_qmsum(meeting: dict[str, Any]) -> list[Inquiry]:
    turns = tuple(f"{turn['speaker']}: {turn['content']}" for turn in meeting["meeting_transcripts"])
    found = []
    for asked in meeting["specific_query_list"]:
        spans = [(int(first), int(last)) for first, last in asked.get("relevant_text_span", [])]
        gold = sorted({place for first, last in spans for place in range(first, min(last + 1, len(turns)))})
        found.append(Inquiry(turns, asked["query"], asked["answer"], gold=tuple(gold)))
    return found


def _parsed(file: str | Path, parse: Callable[[str], list[Inquiry]], layout: str) -> list[Inquiry]:
    path = Path(file)
    try:
        text = (gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()).decode()
        found = parse(text)
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read: {error}") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path} is not in the format of {layout}; {type(error).__name__}: {error}") from None
    if not found:
        raise InputError(f"{path} holds no question; give a file in the format of {layout}")
    return found


def chained(asked: Inquiry, others: Sequence[Inquiry], room: int, size: Callable[[str], int], chance: random.Random) -> Inquiry:
    """`asked` with passages of `others` put before and behind its own while all sizes together fit into `room`; those of one stay together.

    What is too long by itself loses passages, any first that are not gold and then gold ones, until it fits or one is left.
    """
    sizes = [size(text) for text in asked.passages]
    total, left_out = sum(sizes), set()
    drawn = chance.sample(range(len(sizes)), len(sizes))
    for number in sorted(drawn, key=lambda number: number in asked.gold):
        if total <= room or len(left_out) == len(sizes) - 1:
            break
        left_out.add(number)
        total -= sizes[number]
    kept = [number for number in range(len(sizes)) if number not in left_out]
    texts, gold = [asked.passages[number] for number in kept], [at for at, number in enumerate(kept) if number in asked.gold]
    for other in others:
        total += sum(size(text) for text in other.passages)
        if total > room:
            break
        before = chance.random() < 0.5
        texts = [*other.passages, *texts] if before else [*texts, *other.passages]
        gold = [at + before * len(other.passages) for at in gold]
    return asked._replace(passages=tuple(texts), gold=tuple(gold))


def made_studies(stories: Sequence[babi.Question], chance: random.Random) -> dict[str, Any]:
    """A file of PubMedQA's format: of every town one story, with a question for it, and the deciding sentence as its long answer.

    `stories` are questions of bAbI that are answered by yes, no or maybe (tasks 6 and 10), at most as many as there are towns.
    """
    towns = chance.sample(TOWNS, len(stories))
    made = {}
    for number, (town, story) in enumerate(zip(towns, stories, strict=True)):
        told = " ".join((f"In {town}.", *story.facts))
        deciding = story.facts[story.support[-1]] if story.support else story.facts[-1]
        question = f"In {town}. {story.question}"
        made[str(number)] = {"QUESTION": question, "CONTEXTS": [told], "final_decision": story.answer, "LONG_ANSWER": deciding}
    return made


def made_meeting(n_said: int, n_turns: int, sentences: Sequence[str], chance: random.Random) -> dict[str, Any]:
    """A meeting of QMSum's format: `n_turns` turns, `n_said` of which say where a thing is; a query for each of these.

    No speaker speaks of a thing twice, and each thing may be spoken of by several, who may disagree.
    """
    said = chance.sample([(speaker, thing) for speaker in SPEAKERS for thing in THINGS], n_said)
    places = sorted(chance.sample(range(n_turns), n_said))
    transcript = [{"speaker": chance.choice(SPEAKERS), "content": chance.choice(sentences)} for _ in range(n_turns)]
    queries = []
    for place, (speaker, thing) in zip(places, said, strict=True):
        sentence = f"The {thing} {chance.choice(SAID)} the {chance.choice(babi.ROOMS)}."
        transcript[place] = {"speaker": speaker, "content": sentence}
        query = f"What did the {speaker} say about the {thing}?"
        queries.append({"query": query, "answer": sentence, "relevant_text_span": [[str(place), str(place)]]})
    return {"topic_list": [], "general_query_list": [], "specific_query_list": queries, "meeting_transcripts": transcript}
