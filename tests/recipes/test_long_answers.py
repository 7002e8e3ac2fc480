"""Long question answering: what a text holds, what stands where in a segment that asks, and that every row trains and is asked."""

import gzip
import json
from functools import partial

import pytest
import torch

from memseq.errors import ConfigError
from memseq.recipes import long_answers
from memseq.recipes.long_answers import L, LongAnswerTask

PROSE = "The sea was grey that day. A small boat lay in the harbour. No one spoke of the storm. The old man took his pipe and sat down."
STORY = """1 Fred is either in the school or the park.
2 Mary went back to the office.
3 Is Mary in the office? \tyes\t2
4 Bill moved to the cinema.
5 Fred moved to the cinema.
6 Is Fred in the park? \tno\t5
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    (folder / "books").mkdir()
    (folder / "babi" / "en").mkdir(parents=True)
    for split in ("train", "test"):
        (folder / "books" / f"{split}.txt").write_text(PROSE if split == "train" else PROSE.replace("sea", "sky"))
        stories = STORY * 20 if split == "train" else STORY.replace("park", "kitchen") * 20
        (folder / "babi" / "en" / f"qa10_indefinite-knowledge_{split}.txt.gz").write_bytes(gzip.compress(stories.encode()))
    (folder / "books" / "books.csv").write_text("file,split\ntrain.txt,train\ntest.txt,test\n")
    paper = {"QUESTION": "Does it help?", "CONTEXTS": ["We asked.", "It helped."], "LONG_ANSWER": "It helps most.", "final_decision": "yes"}
    (folder / "papers.json").write_text(json.dumps({str(i): paper for i in range(10)}))
    turns = [{"speaker": "Ann", "content": f"It is late number {word} ."} for word in ("one two three four five six seven " * 20).split()]
    asked = [{"query": "What did Ann think?", "answer": "That it is late.", "relevant_text_span": [["40", "41"]]}]
    (folder / "meetings.jsonl").write_text(10 * (json.dumps({"meeting_transcripts": turns, "specific_query_list": asked}) + "\n"))
    return folder


def told(shelf, words):
    names = {number: word for word, number in shelf.numbers.items()} | {0: "_"}
    return " ".join(names[word] for word in words.tolist())


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("kind", ["studies", "meetings"])
def test_the_text_says_once_what_its_answers_say(data, kind, split):
    shelf = long_answers.shelf(kind, data)
    task = LongAnswerTask(shelf=shelf, n_segments=6, n_asked=3)
    batch = task.sample(20, 1, split)
    assert batch.inputs.shape == (20, 9 * L)
    for words, labels in zip(batch.inputs, batch.labels, strict=True):
        text = told(shelf, words[: 6 * L])
        assert ("the sky was" not in text) if split == "train" else ("the sea was" not in text)
        assert (labels[: 6 * L] == -100).all()
        for start in range(6 * L, 9 * L, L):
            places = (labels[start : start + L] >= 0).nonzero()[:, 0]
            assert places[0] == L // 2 - 1  # the question ends the first half
            assert torch.equal(labels[start + places], words[start + places + 1])
            question, answer = told(shelf, words[start : start + L // 2]), told(shelf, labels[start + places])
            assert question.endswith("?")
            if kind == "studies":
                decision, sentence = answer.split(" ", 1)
                town = question[question.rindex(" in ", 0, question.index(" . is ")) :].split(" . ")[0] if " in " in question else ""
                story = text[text.index(f"{town.strip()} . ") :]
                assert decision in long_answers.DECISIONS
                assert sentence in story
            else:
                speaker, thing = question.removesuffix(" ?").split("did the ")[1].split(" say about the ")
                assert text.count(f"{speaker} the {thing} ") == 1
                assert f"{speaker} {answer}" in text


@torch.no_grad()
@pytest.mark.parametrize("row", range(4))
def test_no_model_sees_what_it_is_to_say(data, row):
    """Other words in the answer's place change nothing where its first word is asked."""
    torch.manual_seed(0)
    model = long_answers.contenders(1)[row].model.build().eval()
    task = LongAnswerTask(shelf=long_answers.shelf("studies", data), n_segments=2, n_asked=1)
    inputs = task.sample(2, 0).inputs
    other = inputs.clone()
    other[:, 2 * L + L // 2 :] = 1 + torch.randint(100, other[:, 2 * L + L // 2 :].shape)
    place = 2 * L + L // 2 - 1
    a, b = (model(tokens, model.init_state(2))[0][:, place] for tokens in (inputs, other))
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("kind", "file", "answer"), [("pubmedqa", "papers.json", "yes it helps most ."), ("qmsum", "meetings.jsonl", "that it is late .")]
)
def test_official_files_are_asked_in_the_same_way(data, kind, file, answer):
    shelf = long_answers.shelf(kind, data, str(data / file))
    batch = LongAnswerTask(shelf=shelf, n_segments=3).sample(5, 0, "test")
    assert batch.inputs.shape == (5, 4 * L)  # one question a text
    for words, labels in zip(batch.inputs, batch.labels, strict=True):
        assert told(shelf, labels[labels >= 0]) == answer
        text = told(shelf, words[: 3 * L])
        assert ("it helped" in text) if kind == "pubmedqa" else ("late number" in text)
    with pytest.raises(ConfigError, match="name it by --file"):
        long_answers.shelf(kind, data)


def test_the_score_is_of_the_decision_or_of_all_words(data):
    shelf = long_answers.shelf("studies", data)
    task = LongAnswerTask(shelf=shelf, n_segments=1, n_asked=1)
    batch, decided = task.sample(30, 0), [shelf.numbers[word] for word in long_answers.DECISIONS]

    class Player:
        """Right in the decision, and wrong in what follows."""

        def init_state(self, rows):
            return ()

        def advance(self, tokens, state):
            return state

        def __call__(self, tokens, state):
            said = torch.zeros(*tokens.shape, task.vocab_size)
            place = L // 2 - 1
            said[torch.arange(30), place, batch.labels[:, L + place]] = 50.0
            return said, state

    assert long_answers.scores(Player(), batch, decided)["right"] == 1
    assert long_answers.scores(Player(), batch)["right"] == 0
    nats = torch.log(torch.tensor(float(task.vocab_size)))  # of words that it knows nothing of
    asked = (batch.labels >= 0).sum()
    assert long_answers.scores(Player(), batch)["perplexity"] == pytest.approx(float((nats * (asked - 30) / asked).exp()), rel=1e-3)


def test_every_row_trains_is_asked_and_kept(data, tmp_path, monkeypatch):
    monkeypatch.setattr(long_answers, "ASKED", (2,))
    file = tmp_path / "rows.json"
    arguments = partial(lambda kind: [kind, str(data), "--seconds", "0.05", "--asked", "3", "--json", str(file)])
    long_answers.main(arguments("studies"))
    long_answers.main(arguments("meetings"))
    result = json.loads(file.read_text())
    names = [what.name for what in long_answers.contenders(1)]
    assert [(row["task"], row["name"]) for row in result["rows"]] == [(kind, name) for kind in ("studies", "meetings") for name in names]
    for row in result["rows"]:
        assert set(row["right"]) == set(row["perplexity"]) == {"2"}
    long_answers.main(arguments("studies"))  # all rows are there: nothing is run again
    assert json.loads(file.read_text())["rows"] == result["rows"]
