"""Which states a replay keeps changes no bit of what it computes: every memory, with dropout, under every schedule.

That keeping all of them gives the gradients of full back-propagation is the contract's law of replay (`test_memories.py`).
"""

import pytest
import torch
from configs import CONFIGS

from memseq.checking.readings import Piece, Weighted, with_dropout
from memseq.checking.subject import Subject
from memseq.state import tensors
from memseq.training import KeepAll, Offload, Revolve, Sqrt, replay_backward
from memseq.training.surroundings import Surroundings

OTHERS = (Sqrt(), Offload(inner=Revolve(slots=1)))
SEGMENTS = 4


@pytest.mark.parametrize("stem", CONFIGS)
def test_schedules_of_a_replay_agree_bit_for_bit(stem: str) -> None:
    subject = Subject(CONFIGS[stem]()[0], tokens=4, seed=0, device=torch.device("cpu"))
    memory = subject.build(with_dropout(subject.config, 0.1)).double().train()
    length = max(1, subject.tokens // SEGMENTS)
    pieces = []
    for i, x in enumerate(subject.stream(2, SEGMENTS * length, salt=8).split(length, dim=1)):
        generator = torch.Generator().manual_seed(i)
        width = (subject.vocab_size,) if subject.vocab_size is not None else x.shape[2:]
        pieces.append(Piece(i, x, torch.randn(*x.shape[:2], *width, generator=generator, dtype=torch.float64)))

    def replayed(schedule) -> list[torch.Tensor]:
        memory.zero_grad()
        torch.manual_seed(1)
        state = memory.init_state(2)
        cell = Weighted(memory)
        cell.around = Surroundings(cell, state)
        loss, end = replay_backward(cell, pieces, state, schedule=schedule)
        return [loss, *tensors(end), *(torch.zeros_like(p) if p.grad is None else p.grad for p in memory.parameters())]

    wanted = replayed(KeepAll())
    assert any(bool(t.any()) for t in wanted[1:])
    for schedule in OTHERS:
        for found, theirs in zip(replayed(schedule), wanted, strict=True):
            assert torch.equal(found, theirs), schedule
