"""Official questions asked of a pretrained model: what stands where, what HMT may know, and that every row trains and is asked."""

import random

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from memseq.recipes import answers
from memseq.recipes.answers import L, Questions
from memseq.tasks.inquiries import Inquiry
from memseq.tasks.tokenizers import Bytes

HELD = [Inquiry((f"We asked {i}.", f"It helped {i}. "), f"Did {i} help?", f"It is {i}.", ("yes", "no")[i % 2], (0, 1)) for i in range(10)]


@pytest.fixture
def questions():
    return Questions(HELD, Bytes(), chain=True)


def test_the_text_then_the_question_then_the_answer(questions):
    asked = questions.draw(questions.test, questions.test, 2, random.Random(0))
    assert asked.text.shape == (2, 2 * L)
    for one, text, last, targets in zip(questions.test, asked.text, asked.last, asked.targets, strict=True):
        said = bytes(last.tolist())
        assert said[: L // 2].endswith(one.question.encode())  # the first half, which HMT summarises, and no word of the answer
        answer = f"{one.decision} {one.answer}".encode()
        assert said[L // 2 :].rstrip(b"\0") == answer
        assert bytes(targets[L // 2 - 1 :][: len(answer)].tolist()) == answer
        assert int((targets != -100).sum()) == len(answer)
        before = bytes(text.tolist()) + said[: L // 2]
        assert "".join(one.passages).encode() in before
        assert len(before) == 2 * L + L // 2


def test_no_text_of_the_test_is_trained_on(questions):
    assert not {one.passages for one in questions.train} & {one.passages for one in questions.test}
    assert len(questions.train) + len(questions.test) == len(HELD)


def test_every_row_trains_and_is_asked(questions, monkeypatch):
    monkeypatch.setattr(answers, "READ", 1)
    monkeypatch.setattr(answers, "ASKED", (1, 2))
    monkeypatch.setattr(answers, "BATCH", 2)
    sizes = {"vocab_size": 256, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = LlamaConfig(**sizes, max_position_embeddings=160, initializer_range=0.5)  # large: what a memory says is to be seen
    for what in answers.contenders():
        torch.manual_seed(0)
        row = answers.run(what, LlamaForCausalLM(config).eval(), questions, epochs=0.25)
        assert set(row["own"]) == set(row["right"]) == {"1", "2"}
        assert (row["own"] == row["another's"]) == (what.name == "alone")
        assert (row["trained_on"], row["asked"], row["likeliest"]) == (8, 2, 0.5)
