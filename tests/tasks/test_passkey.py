"""Pass keys: the published texts to the letter, the answers at the bytes that tell them."""

import re
from collections import Counter

import pytest
import torch

from memseq.tasks.passkey import FILLER, NEEDLE, QUESTION, TASK, WORDS, PasskeyDepthTask, PasskeyTask, PasskeyWordsTask, is_right
from memseq.tasks.task import IGNORE


def test_texts_are_the_published_lines():
    task = PasskeyTask(n_filler=500)
    endless = FILLER * 20
    for prompt in task.prompts(60, 0):
        head, before, needle, after, question = prompt.text.split("\n")
        assert head == TASK
        assert needle == f"The pass key is {prompt.answer}. Remember it. {prompt.answer} is the pass key."
        assert question == QUESTION
        assert len(before) + len(after) == 500
        assert endless.startswith(before)
        assert endless.startswith(after)
        assert prompt.depth == 10 * (10 * len(before) // 501)
        assert 1 <= prompt.answer <= 50000


def test_blocks_stay_whole_and_depths_lie_on_the_grid():
    task = PasskeyDepthTask(n_blocks=10)
    seen = set()
    for prompt in task.prompts(400, 0):
        before, after = (part.count(FILLER) for part in re.split(r"The pass key is \d{5}\. Remember", prompt.text)[:2])
        assert before + after == 10
        assert before == prompt.depth * 9 // 100
        seen.add((prompt.depth, before))
    assert sorted(seen) == [(10 * i, 10 * i * 9 // 100) for i in range(11)]


def test_a_text_in_words_is_the_published_one_read_by_words():
    task = PasskeyWordsTask(n_words=120)
    batch, filler = task.sample(200, 0), re.findall(r"\w+|[.]", FILLER)
    depths = set()
    for inputs, labels in zip(batch.inputs.tolist(), batch.labels.tolist(), strict=True):
        key = "".join(WORDS[label] for label in labels[-5:])
        text = [WORDS[token] for token in inputs] + [key[-1]]
        needle = re.findall(r"\w+|[.]", NEEDLE.format(key=" ".join(key)))
        question = re.findall(r"\w+|[?]", f"{QUESTION} {' '.join(key)}")
        assert len(needle) == 23
        n_filler = 121 - len(needle) - len(question)
        before = next(i for i in range(n_filler + 1) if text[i : i + 4] == needle[:4])
        depths.add(before)
        after = filler * 5
        assert text == (filler * 5)[:before] + needle + after[: n_filler - before] + question
        assert labels[:-5] == [IGNORE] * 115
    assert {0, n_filler} < depths
    assert len(depths) > 60


@pytest.mark.parametrize("task", [PasskeyTask(), PasskeyTask(n_filler=0), PasskeyDepthTask()])
def test_labels_are_the_next_bytes_of_the_answer(task):
    batch = task.sample(300, 0)
    digits = set()
    for inputs, labels in zip(batch.inputs.tolist(), batch.labels.tolist(), strict=True):
        text = bytes(inputs).decode()
        key = re.search(r"The pass key is (\d+)\. Remember it\. (\d+) is the pass key\.", text)
        assert key[1] == key[2]
        digits.add(len(key[1]))
        asked = [i for i, label in enumerate(labels) if label != IGNORE]
        assert bytes(labels[i] for i in asked).decode() == f"{key[1]}."
        assert asked == list(range(len(labels) - len(asked), len(labels)))
        assert text[: asked[0] + 1].endswith(f"{QUESTION} ")
        assert inputs[asked[0] + 1 :] == [labels[i] for i in asked[:-1]]
    assert len(digits) > 1 or isinstance(task, PasskeyDepthTask)


@pytest.mark.parametrize(
    ("task", "keys"),
    [
        (PasskeyTask(n_filler=0), [f"{key}." for key in range(1, 50001)]),
        (PasskeyDepthTask(n_blocks=1), [f"{key:05}." for key in range(100_000)]),
    ],
)
def test_chance_is_what_the_answers_beginning_tells(task, keys):
    """The player that knows every key, sees how the answer begins, and remembers nothing of the text."""
    children: dict[str, Counter] = {}
    for key in keys:
        for i, character in enumerate(key):
            children.setdefault(key[:i], Counter())[character] += 1
    best = {beginning: table.most_common(1)[0][0] for beginning, table in children.items()}
    expected = sum(children[beginning][best[beginning]] for beginning in children) / sum(len(key) for key in keys)
    assert abs(task.chance - expected) < 1e-12

    right = total = 0
    for labels in task.sample(20_000, 0).labels[:, -6:].tolist():
        answer = "".join(chr(label) for label in labels if label != IGNORE)
        right += sum(best[answer[:i]] == character for i, character in enumerate(answer))
        total += len(answer)
    assert abs(right / total - task.chance) < 0.005


def test_sizes_do_not_depend_on_the_key():
    short = [p for p in PasskeyTask().prompts(4000, 0) if p.answer < 100]
    assert short, "no short key was drawn: the test shows nothing"
    assert PasskeyTask().sample(4000, 0).inputs.shape == (4000, PasskeyTask().length)


def test_depths_are_all_drawn():
    depths = PasskeyDepthTask().sample(1000, 0).slices["depth"].unique().tolist()
    assert depths == list(range(0, 101, 10))
    assert torch.equal(PasskeyTask().sample(1000, 0).slices["depth"].unique(), torch.arange(0, 100, 10))


@pytest.mark.parametrize(
    ("said", "right"),
    [(" 123.", True), ("123", True), (" 00123, I think", True), (" 1234", False), (" 12 3", False), ("no", False), (" 9. 123", False)],
)
def test_the_first_integer_decides(said, right):
    assert is_right(said, 123) is right
