from typing import Any

from memseq.layers.recurrent import Zoneout
from memseq.memories import lstm


def configs() -> list[Any]:
    cells = (
        lstm.Plain(),
        lstm.Projected(size=7),
        lstm.Peephole(),
        lstm.Coupled(),
        lstm.LayerNormed(),
        lstm.Original(),
        lstm.Original(truncated=False),
        lstm.Ablated(without="forget_gate"),
        lstm.RecurrentDropout(rate=0.2),
        Zoneout(cell=lstm.Plain(), rates=(0.1, 0.3)),
    )
    return [lstm.LSTMConfig(d_model=16, hidden_size=9, initial="learned", cell=cell) for cell in cells]
