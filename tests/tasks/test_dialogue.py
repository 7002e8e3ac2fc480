"""A dialogue of many turns: what a turn tells and asks, found again token by token, and what a reader of few turns can know."""

import pytest

from memseq.errors import ConfigError
from memseq.tasks.dialogue import DialogueTask
from memseq.tasks.task import IGNORE

TASKS = [
    DialogueTask(),
    DialogueTask(n_turns=40, reach=4, n_keys=5, n_values=3, n_chatter=0),
    DialogueTask(n_turns=1, reach=1, n_keys=1, n_chatter=5, n_words=1),
    DialogueTask(reach=3, n_facts=3, n_keys=10, n_chatter=0),
    DialogueTask(reach=5, n_facts=2),
]


@pytest.mark.parametrize("task", TASKS, ids=str)
def test_every_turn_asks_for_what_was_last_told_of_a_key(task):
    batch = task.sample(40, 0)
    ages, u = batch.slices["age"], task.turn_length
    for inputs, labels, age in zip(batch.inputs.tolist(), batch.labels.tolist(), ages.tolist(), strict=True):
        told, when = {}, {}
        for t in range(task.n_turns):
            turn = inputs[t * u : (t + 1) * u]
            facts = [token for token in turn if token < task.questions]
            assert len(facts) == task.n_facts
            (asked,) = [token - task.questions for token in turn if task.questions <= token < task.values]
            assert sum(token >= task.values + task.n_values for token in turn) == task.n_chatter
            for key, value in (divmod(fact, task.n_values) for fact in facts):
                assert t - when.get(key, -task.reach) >= task.reach  # not told again while it may be asked
                told[key], when[key] = task.values + value, t
            assert labels[t * u : (t + 1) * u] == [*(u - 1) * [IGNORE], told[asked]]
            assert age[t * u : (t + 1) * u] == [*(u - 1) * [-1], t - when[asked]]
            assert t - when[asked] < task.reach


def test_keys_are_told_again_with_other_values():
    task = DialogueTask(n_turns=40)
    for row in task.sample(8, 1).inputs:
        facts = row[row < task.questions]
        assert len(facts.unique()) > len((facts // task.n_values).unique())


def test_facts_stand_anywhere_before_the_question():
    task = DialogueTask(n_chatter=3)
    turns = task.sample(50, 0).inputs.unflatten(1, (-1, task.turn_length)).flatten(0, 1)
    share = (turns < task.questions).float().mean(0)
    assert share[-1] == 0
    assert (share[:-1] - 1 / 4).abs().max() < 0.07


def test_all_facts_of_a_turn_are_asked():
    task = DialogueTask(reach=1, n_facts=3, n_chatter=1, n_turns=20)
    turns = task.sample(100, 0).inputs.unflatten(1, (-1, task.turn_length)).flatten(0, 1)
    facts = turns[:, :-1][turns[:, :-1] < task.questions].view(-1, 3) // task.n_values
    share = (facts == turns[:, -1:] - task.questions).float().mean(0)
    assert (share - 1 / 3).abs().max() < 0.05


def test_ages_are_asked_evenly():
    task = DialogueTask(n_turns=60)
    ages = task.sample(100, 0).slices["age"][:, 10 * task.turn_length :]
    counts = ages[ages >= 0].bincount(minlength=10)
    assert counts.min() > 0.9 * counts.sum() / 10


def test_who_sees_a_few_turns_knows_their_ages_alone():
    task = DialogueTask(n_turns=30)
    batch = task.sample(300, 0)
    scores = task.metric(task.reading(batch.inputs, 2), batch)
    for age in range(10):
        reached = scores[f"accuracy/age={age}"]
        assert reached == 1 if age < 2 else abs(reached - task.chance) < 0.04


def test_settings_that_cannot_be_are_refused():
    with pytest.raises(ConfigError, match="n_keys=4 cannot be distinct over reach=6 turns of n_facts=1"):
        DialogueTask(reach=6, n_keys=4)
    with pytest.raises(ConfigError, match="use n_keys=6 or more"):
        DialogueTask(reach=3, n_facts=2, n_keys=5)
    with pytest.raises(ConfigError, match="n_turns=0 is too small"):
        DialogueTask(n_turns=0)
