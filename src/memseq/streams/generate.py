"""Many streams generate together: prompts of any lengths, no padding, and a stream that stops leaves the batch.

A row draws what it would draw alone: its chance depends on its own seed (`seed + row`) and its own position.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from memseq.errors import ConfigError, InputError
from memseq.state import State, select, stack
from memseq.streams.ragged import read_ragged_last
from memseq.streams.reading import Tokenizer, reading
from memseq.streams.sampling import Sampler, draw
from memseq.streams.text import as_bytes

__all__ = ["Generated", "generate"]


class Generated(NamedTuple):
    """What `generate` made: of each row the new tokens, the logits after the last of them, and the state there."""

    tokens: list[list[int]]
    logits: Float[Tensor, "B V"]
    state: State


def generate(
    model: Any,
    prompts: Sequence[Any],
    n: int,
    *,
    states: State | None = None,
    tokenizer: Tokenizer | None = None,
    temperature: float = 1.0,
    top_p: float = 1.0,
    top_k: int | None = None,
    seed: int = 0,
    stop: int | Sequence[int] = (),
) -> Generated:
    """Continue each prompt by `n` tokens, or up to and with a token id in `stop`.

    prompts   of each row token ids, or a text (or its bytes) with `tokenizer`; at least one token
    states    what the rows remember already, one row a prompt; None for streams that have read nothing

    >>> [tokenizer.decode(ids) for ids in generate(model, ["Once", "At the end of"], 40, tokenizer=tokenizer).tokens]
    """
    sampler = Sampler(temperature=temperature, top_p=top_p, top_k=top_k)
    if n < 0:
        raise ConfigError(f"n={n} tokens cannot be generated; use 0 or more")
    stops = {stop} if isinstance(stop, int) else set(stop)
    ids = [_encode(prompt, row, tokenizer) for row, prompt in enumerate(prompts)]
    rows = list(range(len(ids)))  # still generating
    made: list[list[int]] = [[] for _ in ids]
    ended: list[tuple[list[int], Tensor, State]] = []
    with reading(model):
        logits, state = read_ragged_last(model, ids, states)
        for _ in range(n):
            chance = torch.tensor([draw(seed + row, len(ids[row]) + len(made[row])) for row in rows], dtype=torch.float64)
            tokens = sampler.choose(logits, chance)
            logits, state = model.step(tokens, state)
            new = tokens.tolist()
            for row, token in zip(rows, new, strict=True):
                made[row].append(token)
            over = [place for place, token in enumerate(new) if token in stops]
            if not over:
                continue
            ended.append(([rows[place] for place in over], logits[over], select(state, over)))
            on = [place for place in range(len(rows)) if place not in over]
            rows = [rows[place] for place in on]
            if not rows:
                break
            logits, state = logits[on], select(state, on)
        if not ended:
            return Generated(made, logits, state)
        if rows:
            ended.append((rows, logits, state))
        order = torch.tensor([row for part, _, _ in ended for row in part]).argsort()
        return Generated(made, torch.cat([y for _, y, _ in ended])[order], select(stack([s for _, _, s in ended]), order))


def _encode(prompt: Any, row: int, tokenizer: Tokenizer | None) -> Any:
    if isinstance(prompt, str | bytes):
        if tokenizer is None:
            raise InputError(f"prompt {row} is a text; give its tokenizer, or give token ids")
        prompt = [int(token) for chunk in tokenizer.encode_chunks(as_bytes((prompt,))) for token in chunk]
    if len(prompt) == 0:
        raise InputError(f"prompt {row} is empty; give at least one token, for there is nothing to continue")
    return prompt
