from typing import Any

from memseq.memories.timescales import LeakyNetworkConfig


def configs() -> list[Any]:
    return [
        LeakyNetworkConfig(d_model=8, hidden_size=9),
        LeakyNetworkConfig(d_model=8, leak="outside", activation="tanh", train_tau=False),
        LeakyNetworkConfig(d_model=8, leak="outside", activation="sigmoid", substeps=3, initial="learned"),
    ]
