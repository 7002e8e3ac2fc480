"""Likelihoods and continuations of texts by a streamed model, as evaluation harnesses ask for them.

    scorer = Scorer(model, tokenizer)
    scorer.loglikelihoods([("The sky is", " blue")])      -> [(log p, whether it is the likeliest)]
    scorer.rolling(["a long text"])                        -> [log p of the whole text]
    scorer.continue_until(["Once"], Continuation(until=("\\n",)))

Texts of any lengths are read together, without padding, and in pieces: what is held is a state a text and one piece, however long
they are; nothing is cut off. Continuations of one context are scored in forks of its state: the context is read once.

The first token of a stream follows nothing, so there is no prediction of it. It is charged log V nats, as if all tokens were
equally likely: the same for every text, and no text is longer than it is by a token that nobody wrote.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from memseq.errors import ConfigError
from memseq.state import State, select, stack
from memseq.streams import Sampler, Tokenizer, draw, read_ragged, read_ragged_last, reading
from memseq.streams.text import Stops, as_bytes

__all__ = ["Continuation", "Scorer"]

LOGITS = 1 << 23  # logits held at once


@dataclass(frozen=True, kw_only=True)
class Continuation:
    """How a text is continued: greedily, unless the temperature is above 0."""

    until: tuple[str, ...] = ()  # texts that end it, and are left out
    tokens: int = 256  # at most
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.tokens < 1:
            raise ConfigError(f"tokens={self.tokens} continue nothing; use 1 or more")


class Scorer:
    """`batch_size` texts are read side by side: speed and memory, not results."""

    def __init__(self, model: Any, tokenizer: Tokenizer, *, batch_size: int = 16) -> None:
        if batch_size < 1:
            raise ConfigError(f"batch_size={batch_size} reads nothing; use 1 or more")
        self.model, self.tokenizer, self.batch_size = model, tokenizer, batch_size

    def encode(self, text: str) -> list[int]:
        return [int(token) for chunk in self.tokenizer.encode_chunks(as_bytes((text,))) for token in chunk]

    # ----------------------------------------------------------------------------------------------------- likelihoods

    def loglikelihoods(self, pairs: Sequence[tuple[str, str]]) -> list[tuple[float, bool]]:
        """Of each (context, continuation): log p of the continuation, and whether each of its tokens is the likeliest."""
        encoded = [self._split(context, continuation) for context, continuation in pairs]
        asked: dict[tuple[int, ...], list[int]] = {}  # the pairs of each context
        for number, (context, _) in enumerate(encoded):
            asked.setdefault(tuple(context), []).append(number)
        found: list[tuple[float, bool]] = [(0.0, True)] * len(pairs)
        contexts = sorted(asked, key=len)
        with reading(self.model):
            for first in range(0, len(contexts), self.batch_size):
                some = contexts[first : first + self.batch_size]
                logits, state = self._after(some)
                numbers = [(row, number) for row, context in enumerate(some) for number in asked[context]]
                for part in range(0, len(numbers), self.batch_size):
                    chosen = numbers[part : part + self.batch_size]
                    rows = torch.tensor([row for row, _ in chosen])
                    scores = self._scores([encoded[n][1] for _, n in chosen], logits[rows.to(logits.device)], select(state, rows))
                    for (_, number), score in zip(chosen, scores, strict=True):
                        found[number] = score
        return found

    def rolling(self, texts: Sequence[str]) -> list[float]:
        """log p of each whole text; 0 for an empty one."""
        found = [0.0] * len(texts)
        encoded = [self.encode(text) for text in texts]
        order = sorted((row for row, ids in enumerate(encoded) if ids), key=lambda row: len(encoded[row]))
        with reading(self.model):
            for first in range(0, len(order), self.batch_size):
                rows = order[first : first + self.batch_size]
                logits, state = self._after([()] * len(rows))
                for row, (score, _) in zip(rows, self._scores([encoded[row] for row in rows], logits, state), strict=True):
                    found[row] = score
        return found

    def _split(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """Ids of both, encoded together; white space at the end of a context belongs to what follows it."""
        kept = context.rstrip()
        both = self.encode(context + continuation)
        held = len(self.encode(kept)) if kept else 0
        return both[:held], both[held:]

    def _after(self, contexts: Sequence[Sequence[int]]) -> tuple[Tensor, State]:
        """What follows each context, as logits, and the states there; equal logits after nothing at all."""
        if all(contexts):
            return read_ragged_last(self.model, [list(context) for context in contexts])
        state = self.model.init_state(len(contexts))
        logits = torch.zeros(len(contexts), self.model.config.vocab_size, device=next(self.model.parameters()).device)
        rows = [row for row, context in enumerate(contexts) if context]
        if not rows:
            return logits, state
        # of the empty contexts there is one at most: contexts are told apart
        read, after = read_ragged_last(self.model, [list(contexts[row]) for row in rows])
        empty = next(row for row in range(len(contexts)) if row not in rows)
        order = torch.tensor([*rows, empty]).argsort()
        logits[rows] = read.to(logits.dtype)
        return logits, select(stack([after, select(state, [empty])]), order)

    def _scores(self, sequences: Sequence[list[int]], logits: Tensor, state: State) -> list[tuple[float, bool]]:
        """(log p, whether it is greedy) of each sequence after `state`, where `logits` [B, V] are of its first token."""
        total, greedy = [0.0] * len(sequences), [True] * len(sequences)

        def count(row: int, said: Tensor, following: Sequence[int]) -> None:
            target = torch.tensor(following, device=said.device)
            log_p = said.float().log_softmax(-1)
            total[row] += float(log_p.gather(-1, target[:, None]).double().sum())
            greedy[row] = greedy[row] and bool((said.argmax(-1) == target).all())

        for row, ids in enumerate(sequences):
            if ids:
                count(row, logits[row : row + 1], ids[:1])
        piece = max(1, min(256, LOGITS // (len(sequences) * self.model.config.vocab_size)))
        for start in range(0, max(map(len, sequences)) - 1, piece):
            parts = [ids[start : min(start + piece, len(ids) - 1)] for ids in sequences]
            said, state = read_ragged(self.model, parts, state)
            for row, part in enumerate(parts):
                if part:
                    count(row, said[row], sequences[row][start + 1 : start + 1 + len(part)])
        return list(zip(total, greedy, strict=True))

    # --------------------------------------------------------------------------------------------------- continuations

    def continue_until(self, contexts: Sequence[str], how: Continuation) -> list[str]:
        """What each context is continued by, up to a text of `how.until` or to the number of tokens."""
        found = [""] * len(contexts)
        encoded = [self.encode(text) for text in contexts]
        order = sorted(range(len(contexts)), key=lambda row: len(encoded[row]))
        with reading(self.model):
            for first in range(0, len(order), self.batch_size):
                rows = order[first : first + self.batch_size]
                for row, ids in zip(rows, self._continued([encoded[row] for row in rows], how), strict=True):
                    text = self.tokenizer.decode_bytes(ids).decode("utf-8", errors="replace")
                    ends = [at for at in (text.find(stop) for stop in how.until) if at >= 0]
                    found[row] = text[: min(ends)] if ends else text
        return found

    def _continued(self, contexts: Sequence[list[int]], how: Continuation) -> list[list[int]]:
        sampler = Sampler(temperature=how.temperature, top_p=how.top_p, top_k=how.top_k)
        if not all(contexts):
            raise ConfigError("an empty context cannot be continued: there is nothing to continue; give it at least one character")
        stops = [Stops(how.until, self.tokenizer) for _ in contexts]
        made: list[list[int]] = [[] for _ in contexts]
        logits, state = read_ragged_last(self.model, contexts)
        rows = list(range(len(contexts)))
        for _ in range(how.tokens):
            chance = torch.tensor([draw(how.seed + row, len(contexts[row]) + len(made[row])) for row in rows], dtype=torch.float64)
            tokens = sampler.choose(logits, chance)
            going = []
            for place, (row, token) in enumerate(zip(rows, tokens.tolist(), strict=True)):
                made[row].append(token)
                if not stops[row].met(token):
                    going.append(place)
            if not going:
                break
            if len(going) < len(rows):
                rows, tokens, state = [rows[place] for place in going], tokens[going], select(state, going)
            logits, state = self.model.step(tokens, state)
        return made
