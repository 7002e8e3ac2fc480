"""JRT-Prompt: what is built, and that reading it is reading it."""

import pytest
import torch
from torch.testing import assert_close

from memseq.errors import ConfigError, InputError
from memseq.memories.gru import GRUConfig
from memseq.models.stack import StackConfig
from memseq.state import select, tensors
from memseq.streams.jrt_prompt import jrt_prompt, jrt_tokens, read_twice


def test_the_question_stands_before_and_after_the_second_reading():
    assert jrt_prompt("C", "Q", between="|") == "C|Q|C|Q"
    assert jrt_prompt("C", "Q") == "C\nQ\nC\nQ"
    assert jrt_prompt("C", "Q", readings=1, between=" ") == "C Q"
    assert jrt_tokens([1, 2, 3], [9]).tolist() == [1, 2, 3, 9, 1, 2, 3, 9]
    assert jrt_tokens(torch.tensor([1]), [], readings=3).tolist() == [1, 1, 1]


def test_ragged_contexts_are_read_each_as_alone():
    model = StackConfig(vocab_size=11, d_model=8, layers=(GRUConfig(d_model=8),)).build().double()
    contexts, questions = [[1, 2, 3, 4], [5], [6, 7]], [[9], [8, 9], [10]]
    examples = model.advance(torch.randint(11, (3, 6)), model.init_state(3))
    logits, state = read_twice(model, contexts, questions, examples)
    for row, (context, question) in enumerate(zip(contexts, questions, strict=True)):
        tokens = torch.tensor([context + question + context + question])
        y, after = model(tokens, select(examples, [row]))
        assert_close(logits[row], y[0, -1], rtol=1e-10, atol=1e-12)
        assert_close(tensors(select(state, [row])), tensors(after), rtol=1e-10, atol=1e-12)
    once, _ = read_twice(model, contexts, questions, examples, readings=1)
    y, _ = model(torch.tensor([[5, 8, 9]]), select(examples, [1]))
    assert_close(once[1], y[0, -1], rtol=1e-10, atol=1e-12)


def test_errors_say_what_was_given():
    model = StackConfig(vocab_size=11, d_model=8, layers=(GRUConfig(d_model=8),)).build()
    with pytest.raises(ConfigError, match="readings=0"):
        jrt_prompt("C", "Q", readings=0)
    with pytest.raises(InputError, match="both empty"):
        jrt_tokens([], [])
    with pytest.raises(InputError, match="2 contexts and 1 questions"):
        read_twice(model, [[1], [2]], [[1]])
