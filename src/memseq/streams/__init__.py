"""A model over endless input. Streams know only the law: `model(tokens, state)`, `step`, `advance`, `init_state`."""

from memseq.streams.generate import Generated, generate
from memseq.streams.ragged import read_ragged, read_ragged_last
from memseq.streams.reading import Tokenizer, reading
from memseq.streams.sampling import Sampler, draw
from memseq.streams.session import Session

__all__ = ["Generated", "Sampler", "Session", "Tokenizer", "draw", "generate", "read_ragged", "read_ragged_last", "reading"]
