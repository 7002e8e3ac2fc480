"""bAbI: the story is followed as the official files follow it, and BABILong hides its facts without touching them."""

import gzip
import random
import re
from collections import Counter

import pytest
import torch

from memseq.errors import ConfigError, InputError
from memseq.tasks.babi import ROOMS, BabiTask, Question, is_right, read_babi, simulate, solve

SENTENCE = re.compile(r"\b(?:Mary|John|Daniel|Sandra|bathroom|hallway|garden|office|bedroom|kitchen|football|apple|milk)\b")


def shape(sentence):
    return SENTENCE.sub("_", sentence)


@pytest.mark.parametrize("qa", [1, 2, 3])
def test_following_a_story_answers_every_official_question(data_dir, qa):
    files = sorted((data_dir / "babi" / "en").glob(f"qa{qa}_*.gz"))
    questions = [question for file in files for question in read_babi(file)]
    assert len(questions) >= 1500
    assert all(solve(q.facts, q.question) == q.answer for q in questions)


@pytest.mark.parametrize("qa", [1, 2, 3])
def test_the_simulator_speaks_as_the_official_files_do(data_dir, qa):
    """The same sentences and questions, but for names; and no answer much likelier than in the files."""
    file = next((data_dir / "babi" / "en").glob(f"qa{qa}_*_train.txt.gz"))
    official = {shape(s) for q in read_babi(file) for s in (*q.facts, q.question)}
    chance = random.Random(0)
    stories = [simulate(qa, chance) for _ in range(600)]
    assert {shape(s) for q in stories for s in (*q.facts, q.question)} == official
    counts = Counter(q.answer for q in stories)
    assert set(counts) == set(ROOMS)
    assert max(counts.values()) < 0.24 * len(stories)


def test_all_twenty_tasks_are_read(data_dir):
    files = sorted((data_dir / "babi" / "en").glob("*.gz"))
    assert len(files) == 40
    for file in files:
        questions = read_babi(file)
        assert len(questions) >= 500
        for q in questions[:50]:
            assert q.answer
            assert q.question.endswith("?") or "qa17" in file.name or "qa18" in file.name or "qa20" in file.name
            assert q.support
            assert all(0 <= i < len(q.facts) for i in q.support)


def test_a_story_by_hand():
    facts = (
        "Mary moved to the office.",
        "Mary got the milk there.",
        "Mary went to the garden.",
        "Mary dropped the milk.",
        "Mary went to the hall.",
    )
    assert solve(facts[:4], "Where is Mary?") == "garden"
    assert solve(facts, "Where is the milk?") == "garden"
    assert solve(facts, "Where was the milk before the garden?") == "office"
    assert solve(facts[:1], "Where is the milk?") == ""
    with pytest.raises(InputError, match="of no task from 1 to 3"):
        solve(facts, "Who has the milk?")


def test_facts_keep_their_words_and_order_in_the_long_text():
    task = BabiTask(qa=2, n_chars=3000)
    for prompt in task.prompts(50, 0):
        facts = [m[0] for m in re.finditer(r"(?:Mary|John|Daniel|Sandra) [a-z ]+\.", prompt.text)]
        assert len(facts) == prompt.n_facts
        assert solve(tuple(facts), prompt.question) == prompt.answer
        assert len(prompt.text) + len(prompt.answer) + 2 == 3000


def test_facts_are_spread_over_the_whole_text():
    places = []
    for prompt in BabiTask(qa=1, n_chars=4000).prompts(200, 0):
        places += [
            m.start() / len(prompt.text)
            for m in re.finditer(r"(?:Mary|John|Daniel|Sandra) (?:moved|went|journeyed|travelled)", prompt.text)
        ]
    shares = torch.histc(torch.tensor(places), 4, 0, 1) / len(places)
    assert float(shares.min()) > 0.2


def test_the_facts_may_stand_alone_or_between_the_sentences_of_a_file(tmp_path):
    own = tmp_path / "text.txt"
    own.write_text("It rained. " * 50)
    prompt = BabiTask(qa=1, n_chars=2000, file=str(own)).prompts(1, 0)[0]
    assert "It rained." in prompt.text
    with pytest.raises(ConfigError, match=r"n_chars=60 has no room for a story of \d+ facts; use \d+ or more"):
        BabiTask(qa=1, n_chars=60).prompts(20, 0)
    assert max(p.n_facts for p in BabiTask(qa=1, n_chars=400, n_facts=4).prompts(50, 0)) == 4


def test_what_counts_as_said():
    asked = Question((), "Where was the milk before the garden?", "office")
    assert is_right("The office", asked)
    assert is_right("office, not the garden. Or the kitchen", asked)
    assert not is_right("office or kitchen", asked)
    assert not is_right("", asked)


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        (lambda p: BabiTask(qa=4), ConfigError, "qa=4 has no simulator"),
        (lambda p: BabiTask(qa=3, n_facts=3), ConfigError, "use 10 or more"),
        (lambda p: read_babi(p / "none"), InputError, "cannot be read as a bAbI file"),
        (lambda p: read_babi(p / "bad"), InputError, "line 1 of .* is no bAbI line"),
        (lambda p: read_babi(p / "empty"), InputError, "holds no question"),
        (lambda p: read_babi(p / "torn.gz"), InputError, "cannot be read as a bAbI file"),
        (lambda p: BabiTask(file=str(p / "empty")).sample(1, 0), InputError, "no plain sentence"),
    ],
)
def test_bad_input_is_told(tmp_path, call, error, says):
    (tmp_path / "bad").write_text("Mary moved.\n")
    (tmp_path / "empty").write_text("")
    (tmp_path / "torn.gz").write_bytes(gzip.compress(b"1 Mary moved.\n")[:-9])
    with pytest.raises(error, match=says):
        call(tmp_path)
