"""Topics that take turns: what is told, what comes back, what is asked, found again token by token."""

import pytest

from memseq.errors import ConfigError
from memseq.tasks.task import IGNORE
from memseq.tasks.topics import TopicsTask

TASKS = [
    TopicsTask(),
    TopicsTask(n_topics=3, n_asked=3, n_before=2, n_keys=3, segment_length=5),
    TopicsTask(n_topics=1, n_asked=1, n_keys=1),
]


@pytest.mark.parametrize("task", TASKS, ids=str)
def test_every_question_asks_what_its_topic_told(task):
    batch = task.sample(60, 0)
    L, m, G = task.segment_length, task.n_keys, task.n_topics
    for inputs, labels, where in zip(batch.inputs.tolist(), batch.labels.tolist(), batch.slices["told_in"].tolist(), strict=True):
        pieces = [inputs[i : i + L] for i in range(0, len(inputs), L)]
        meant = []
        for piece in pieces[:G]:
            facts = sorted(token for token in piece if task.facts <= token < task.questions)
            assert [(fact - task.facts) // task.n_values for fact in facts] == list(range(m))  # every key once
            (topic,) = {token // task.n_words for token in piece if token < task.facts}
            assert sum(token < task.facts for token in piece) == L - m
            meant.append((topic, [task.values + (fact - task.facts) % task.n_values for fact in facts]))
        assert len(dict(meant)) == G
        back = []
        for number, piece in enumerate(pieces[G:]):
            at = (G + number) * L
            (topic,) = {token // task.n_words for token in piece if token < task.facts}
            if (number + 1) % (1 + task.n_before):
                assert max(piece) < task.facts  # nothing but words of the topic that is asked next
                assert pieces[G + number + 1][0] // task.n_words == topic
                assert labels[at : at + L] == L * [IGNORE]
                continue
            back.append(topic)
            told = [name for name, _ in meant].index(topic)
            assert piece[-m:] == [task.questions + key for key in range(m)]
            assert labels[at : at + L] == [*(L - m) * [IGNORE], *dict(meant)[topic]]
            assert where[at : at + L] == [*(L - m) * [-1], *m * [told]]
        assert len(set(back)) == task.n_asked
        assert labels[: G * L] == G * L * [IGNORE]


def test_facts_stand_anywhere_among_the_words_of_their_topic():
    task = TopicsTask()
    told = task.sample(200, 0).inputs.unflatten(1, (-1, task.segment_length))[:, : task.n_topics]
    share = ((told >= task.facts) & (told < task.questions)).float().mean((0, 1))
    assert (share - task.n_keys / task.segment_length).abs().max() < 0.07


def test_settings_that_cannot_be_are_refused():
    with pytest.raises(ConfigError, match="n_asked=4 asks for more topics"):
        TopicsTask(n_topics=2)
    with pytest.raises(ConfigError, match="topics=4 are fewer than n_topics=8"):
        TopicsTask(topics=4)
    with pytest.raises(ConfigError, match="do not fit into segment_length=2; use 3 or more"):
        TopicsTask(segment_length=2)
