from typing import Any

from memseq.layers.recurrent import Zoneout
from memseq.memories.gru import AfterReset, BeforeReset, GRUConfig


def configs() -> list[Any]:
    cells = (AfterReset(), BeforeReset(), Zoneout(cell=AfterReset(), rates=(0.2,)))
    return [GRUConfig(d_model=16), *(GRUConfig(d_model=16, hidden_size=9, initial="learned", cell=cell) for cell in cells)]
