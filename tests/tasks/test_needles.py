"""Needles and variables: what is hidden, where, and what counts as found."""

import re

import pytest
import torch

from memseq.errors import ConfigError, InputError
from memseq.tasks.needles import NeedleTask, VariableTask, found
from memseq.tasks.task import IGNORE


def texts(task, n=200):
    return task.prompts(n, 0, "test")


def test_a_needle_is_asked_for_by_its_key():
    for prompt in texts(NeedleTask(n_keys=4, haystack="text", n_chars=1500)):
        pairs = dict(re.findall(r"numbers for (\S+) is: (\d{7})\.", prompt.text))
        assert len(pairs) == 4
        key = re.search(r"numbers for (\S+)\? They are$", prompt.text).group(1)
        assert prompt.answers == (pairs[key],)


def test_needles_lie_at_every_depth():
    task = NeedleTask(n_chars=3000)
    places = torch.tensor([prompt.text.index("One of the special") / len(prompt.text) for prompt in texts(task, 600)])
    shares = torch.histc(places, 5, 0, 1) / 600
    assert float(shares.min()) > 0.12
    for prompt in texts(task, 50):
        place = (prompt.text.index("One of") - prompt.text.index("\n")) / 2800
        assert abs(100 * place - prompt.depth) < 9


def test_values_of_one_key_are_told_in_their_order_and_several_keys_in_the_questions():
    for prompt in texts(NeedleTask(n_values=3, haystack="text"), 50):
        assert prompt.answers == tuple(re.findall(r" is: (\d+)\.", prompt.text))
    for prompt in texts(NeedleTask(n_keys=3, n_asked=2), 50):
        pairs = dict(re.findall(r"numbers for (\S+) is: (\d{7})\.", prompt.text))
        first, second = re.search(r"numbers for (\S+) and (\S+)\?", prompt.text).groups()
        assert prompt.answers == (pairs[first], pairs[second])


def test_every_haystack_fills_its_room_and_says_nothing_of_the_answer():
    for task in (
        NeedleTask(n_chars=4096),
        NeedleTask(n_chars=4096, haystack="text"),
        NeedleTask(n_chars=4096, haystack="needles", value="uuid"),
    ):
        for prompt, row in zip(texts(task, 30), task.sample(30, 0, "test").inputs, strict=True):
            assert prompt.text.count(prompt.answers[0]) == 1
            assert bytes(row.tolist()).decode().startswith(prompt.text)
            assert len(prompt.text) + len(f" {prompt.answers[0]}.") == 4096


def test_chains_of_variables_are_followed():
    for prompt in texts(VariableTask(n_chains=3, n_hops=3, n_chars=2000), 100):
        value = re.search(r"Which variables are (\d+)\?", prompt.text).group(1)
        names = dict(re.findall(r"VAR ([A-Z]{3}) = (?:VAR )?(\w+)\.", prompt.text))

        def root(name, names=names):
            return root(names[name]) if name in names else name

        assert {name for name in names if root(name) == value} == set(prompt.answers)
        assert len(prompt.answers) == 4
        assert len(set(map(root, names))) == 3


def test_labels_are_the_answer_and_its_full_stop():
    task = NeedleTask()
    batch = task.sample(20, 3)
    for inputs, labels in zip(batch.inputs, batch.labels, strict=True):
        asked = labels != IGNORE
        said = bytes(labels[asked].tolist()).decode()
        assert re.fullmatch(r" \d{7}\.", said)
        assert bytes(inputs[asked].tolist()).decode()[1:] == said[:-1]  # the answer follows byte by byte


def test_the_share_of_answers_found():
    assert found("12, then 7", ("12", "7")) == 1
    assert found("Amber-Anchor", ("amber-anchor", "icy-saddle")) == 0.5
    assert found("", ("1",)) == 0


def test_guessing_a_number_scores_chance():
    task = NeedleTask()
    batch = task.sample(4000, 0)
    labels = batch.labels[batch.labels != IGNORE].view(4000, 9)
    right = sum(float((labels[:, i] == labels[:, i].mode().values).double().mean()) for i in range(9))
    assert abs(right / 9 - task.chance) < 0.02


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        (lambda: NeedleTask(n_chars=100).sample(1, 0), ConfigError, "n_chars=100 has no room for a haystack; use 2"),
        (lambda: NeedleTask(n_asked=2), ConfigError, "n_asked=2 of n_keys=1"),
        (lambda: NeedleTask(n_keys=50), ConfigError, "only 40 depths"),
        (lambda: VariableTask(n_chains=20), ConfigError, "100 assignments have only 40 depths"),
        (lambda: NeedleTask(value="uuid").chance, ConfigError, "value='number' alone"),
        (lambda: NeedleTask(haystack="text", file="/nowhere").sample(1, 0), InputError, "/nowhere cannot be read"),
    ],
)
def test_what_cannot_be_made_is_said(call, error, says):
    with pytest.raises(error, match=says):
        call()
