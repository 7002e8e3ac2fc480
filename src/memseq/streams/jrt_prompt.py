"""JRT-Prompt: a context is read twice, the question between, so that the second reading knows what to keep.

Source: *Just read twice* (Arora et al., arXiv:2407.05483). No training, no change to the model: any stateful model reads

    context  question  context  question

without a reset between. On the second reading the state holds the question; a memory that must choose can choose. It costs one
more reading of the context. Blocks of examples that stand before the context are not repeated: they are the state to begin with.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from memseq.contract import Memory
from memseq.errors import ConfigError, InputError
from memseq.state import State
from memseq.streams.ragged import read_ragged_last

__all__ = ["jrt_prompt", "jrt_tokens", "read_twice"]


def jrt_prompt(context: str, question: str, *, readings: int = 2, between: str = "\n") -> str:
    """The text of a prompt: context and question, `readings` times.

    >>> jrt_prompt("Ada has the key.", "Who has the key?", between=" ")
    'Ada has the key. Who has the key? Ada has the key. Who has the key?'
    """
    _check(readings)
    return between.join(readings * [context, question])


def jrt_tokens(context: Sequence[int] | Tensor, question: Sequence[int] | Tensor, *, readings: int = 2) -> Tensor:
    """The token ids of a prompt [T]: context and question, `readings` times."""
    _check(readings)
    once = torch.cat([torch.as_tensor(part, dtype=torch.int64).reshape(-1) for part in (context, question)])
    if not len(once):
        raise InputError("context and question are both empty: there is nothing to read")
    return once.repeat(readings)


def read_twice(
    model: Memory[Any],
    contexts: Sequence[Any],
    questions: Sequence[Any],
    states: State | None = None,
    *,
    readings: int = 2,
    chunk_size: int = 4096,
) -> tuple[Float[Tensor, "B V"], State]:
    """What each stream predicts after its context and question, read `readings` times, and the states there.

    contexts, questions   token ids, of any lengths; questions are as many as contexts
    states                what the streams have read before, such as examples; None for new streams
    """
    if len(contexts) != len(questions):
        raise InputError(f"{len(contexts)} contexts and {len(questions)} questions; give one question a context")
    prompts = [jrt_tokens(context, question, readings=readings) for context, question in zip(contexts, questions, strict=True)]
    return read_ragged_last(model, prompts, states, chunk_size=chunk_size)


def _check(readings: int) -> None:
    if readings < 1:
        raise ConfigError(f"readings={readings} reads nothing; use 2 (as published), or 1 for a plain prompt")
