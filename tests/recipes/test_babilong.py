"""BABILong in small: what its texts hold, what its labels say, and that every row trains and is asked."""

import gzip
import json
import random

import pytest
import torch

from memseq.recipes import babilong
from memseq.tasks import babi

PROSE = "The sea was grey that day. A small boat lay in the harbour. No one spoke of the storm. The old man took his pipe and sat down."


@pytest.fixture(scope="module")
def background():
    return babilong.novels(PROSE, PROSE.replace("sea", "sky"))


def told(background, words):
    """A row of numbers as text."""
    names = {number: word for word, number in background.numbers.items()} | {0: "_"}
    return " ".join(names[word] for word in words.tolist())


@pytest.mark.parametrize("qa", [1, 2, 3])
@pytest.mark.parametrize("split", ["train", "test"])
def test_every_label_is_what_the_text_before_it_says(background, qa, split):
    task = babilong.StoryTask(background=background, qa=qa, n_segments=12)
    batch = task.sample(20, seed=3, split=split)
    assert batch.inputs.shape == (20, 12 * babilong.L)
    for words, labels in zip(batch.inputs, batch.labels, strict=True):
        places = (labels != -100).nonzero()[:, 0].tolist()
        assert places[-1] == task.length - 1
        assert len(places) == 1 or split == "train"
        for place in places:
            text = told(background, words[: place + 1])
            facts = [sentence.strip().capitalize() + "." for sentence in text.replace("?", ".").split(".")]
            known = tuple(fact for fact in facts if babi.FACT.fullmatch(fact.replace(" .", ".")))
            asked = text[text.rindex("where") : -2].capitalize() + "?"
            for person in babi.PEOPLE:
                asked = asked.replace(person.lower(), person)
            assert told(background, labels[place : place + 1]) == babi.solve(known, asked)


def test_official_questions_are_asked_in_their_order_among_test_sentences(background):
    chance = random.Random(0)
    questions = [babi.simulate(1, chance) for _ in range(12)]
    task = babilong.StoryTask(background=background, n_segments=4)
    batch = task.official(questions, seed=0)
    assert len(batch.inputs) == len(questions)
    for words, labels, question in zip(batch.inputs, batch.labels, questions, strict=True):
        text, at = told(background, words), 0
        for fact in question.facts:
            at = text.index(" ".join(babilong.words_of(fact)), at)
        assert text.endswith(" ".join(babilong.words_of(question.question)))
        assert told(background, labels[-1:]) == question.answer
        assert "the sea was" not in text  # the background of training
    short = babilong.StoryTask(background=background, n_segments=1).official(questions, seed=0)
    assert len(short.inputs) == sum(len(babilong.words_of(" ".join((*q.facts, q.question)))) <= babilong.L for q in questions)


def test_every_row_trains_is_asked_and_kept(tmp_path):
    (tmp_path / "books").mkdir()
    (tmp_path / "babi" / "en").mkdir(parents=True)
    for split in ("train", "test"):
        (tmp_path / "books" / f"{split}.txt").write_text(PROSE)
    (tmp_path / "books" / "books.csv").write_text("file,split\ntrain.txt,train\ntest.txt,test\n")
    lines = "1 Mary moved to the garden.\n2 John went to the office.\n3 Where is Mary? \tgarden\t1\n"
    (tmp_path / "babi" / "en" / "qa1_single_test.txt.gz").write_bytes(gzip.compress(lines.encode()))
    file = tmp_path / "rows.json"
    arguments = [str(tmp_path), "--seconds", "0.1", "--json", str(file)]
    torch.manual_seed(0)
    babilong.main(arguments)
    result = json.loads(file.read_text())
    assert [row["name"] for row in result["rows"]] == [what.name for what in babilong.contenders(1, 0.1)]
    for row in result["rows"]:
        assert set(row["accuracy"]) == {str(n) for n in babilong.ASKED}
        assert set(row["questions"].values()) == {1}
        assert None not in row["accuracy"].values()
    babilong.main(arguments)  # all rows are there: nothing is run again
    assert json.loads(file.read_text())["rows"] == result["rows"]


def test_a_length_that_no_question_fits_into_is_said_and_not_asked(tmp_path, monkeypatch):
    (tmp_path / "books").mkdir()
    (tmp_path / "babi" / "en").mkdir(parents=True)
    for split in ("train", "test"):
        (tmp_path / "books" / f"{split}.txt").write_text(PROSE)
    (tmp_path / "books" / "books.csv").write_text("file,split\ntrain.txt,train\ntest.txt,test\n")
    story = ["Mary moved to the garden.", "Mary got the milk there.", *["John went to the office.", "John went to the garden."] * 3]
    lines = [*story, "Mary went to the kitchen.", "Where was the milk before the kitchen? \tgarden\t1"]
    text = "".join(f"{number} {line}\n" for number, line in enumerate(lines, start=1))
    (tmp_path / "babi" / "en" / "qa3_three_test.txt.gz").write_bytes(gzip.compress(text.encode()))
    monkeypatch.setattr(babilong, "ASKED", (1, 4))
    file = tmp_path / "rows.json"
    babilong.main([str(tmp_path), "--qa", "3", "--seconds", "0.1", "--only", "no memory", "--json", str(file)])
    (row,) = json.loads(file.read_text())["rows"]
    assert row["questions"] == {"1": 0, "4": 1}
    assert row["accuracy"]["1"] is None
    assert row["accuracy"]["4"] in (0.0, 1.0)
