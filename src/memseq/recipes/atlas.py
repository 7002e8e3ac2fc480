"""Recall of pairs by memories that learn while they read: Titans, the family of ATLAS, and Miras' three, beside Gated DeltaNet.

Sources: Titans (arXiv:2501.00663), ATLAS (arXiv:2505.23735), Miras (arXiv:2504.13173); the task is MQAR (Zoology, arXiv:2312.04927). The
same stages, rates, questions and batches as `recipes/linear_attention.py`, so that its rows may be set beside these.

    python -m memseq.recipes.atlas --part sweep --json results.json
    python -m memseq.recipes.atlas --part test --json results.json

Two blocks of width 64. Memories are as small as makes their bytes of state about those of Gated DeltaNet's two matrices of 32 x 32: Titans
and Atlas are matrices with a momentum, the family of ATLAS has heads of 4 or 8 numbers, whose features are 15 to 45, and Miras'
three are perceptrons of 16, 16 and 16 units, four in a block, without the residual path and norm of the paper, with which Yaad learned
nothing in these steps at 0.015. Atlas reads its keys as they are: with features, a training takes minutes.
"""

from collections.abc import Sequence
from typing import Any

from memseq.layers.fast_weights import Matrix, Perceptron
from memseq.memories.atlas import AtlasConfig, DeepTransformersConfig, DotConfig, OmegaNetConfig
from memseq.memories.gated_deltanet import GatedDeltaNetConfig
from memseq.memories.miras import MemoraConfig, MonetaConfig, YaadConfig
from memseq.memories.titans import TitansConfig
from memseq.recipes.linear_attention import D, H, PairsRun, compare

__all__ = ["contenders", "main"]


def contenders() -> list[PairsRun]:
    """Every row of the table."""
    size: dict[str, Any] = {"d_model": D, "n_heads": 4}
    plain = Perceptron(form="plain", expansion=1)
    return [
        PairsRun(name="gated_deltanet", memory=GatedDeltaNetConfig(d_model=D, n_heads=H)),
        PairsRun(name="titans", memory=TitansConfig(**size, depth=1, segment_length=8)),
        PairsRun(name="omeganet", memory=OmegaNetConfig(d_model=D, n_heads=8, window=4, architecture=Matrix())),
        PairsRun(name="yaad", memory=YaadConfig(**size, architecture=plain)),
        PairsRun(name="moneta", memory=MonetaConfig(**size, architecture=plain)),
        PairsRun(name="memora", memory=MemoraConfig(**size, architecture=plain)),
        PairsRun(name="deep_transformers", memory=DeepTransformersConfig(d_model=D, n_heads=16, architecture=plain)),
        PairsRun(name="dot", memory=DotConfig(d_model=D, n_heads=16, window=4, architecture=plain)),
        PairsRun(name="atlas", memory=AtlasConfig(**size, degree=None, window=4, architecture=Matrix())),
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    compare(arguments, contenders(), recipe="atlas", about="Recall of pairs by memories that learn while they read, at about equal state.")


if __name__ == "__main__":
    main()
