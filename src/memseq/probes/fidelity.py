"""Fidelity: how much of a token is still there in what is predicted, and of a layer in the layers above it.

Source: MemMamba (arXiv:2510.03279), horizontal and vertical memory fidelity; estimators at equal positions.

    ETMF      mean_j cos(E[x_j], sum_v p_j(v) E[v])          p_j = softmax(logits_j / tau)
    ETMF_D    mean_j cos(E[x_{j-D}], sum_v p_j(v) E[v])      D tokens back
    floor     the same for tokens of other streams: what all embeddings have in common
    ECLMF     mean_l 1 - |Y - X W| / (|X| + 1e-6)            X, Y: residual streams of layers l and l + G, a token a row,
    ECLMF_r   mean_l 1 - |Y - X W| / (|Y| + 1e-6)            W = (X'X + 1e-4 I)^-1 X'Y, in float64

ECLMF has the norm of X below the line, so it depends on scale and may be negative; ECLMF_r says what share of Y is linear in X.
Both are in the sample that W was fitted on: with fewer tokens than a few times the width they are near 1 for nothing. Independent
X and Y of N rows and width D give ECLMF_r = 1 - sqrt(1 - D / N).
"""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F

from memseq.probes.asking import LOGITS, PIECE
from memseq.probes.probe import Probe, Subject, say
from memseq.state import State

__all__ = ["FidelityProbe", "cross_layer", "listened", "token_fidelity"]

GAPS = (1, 2, 5, 10)
LAGS = (0, 8, 16, 32, 128)
RIDGE = 1e-4


def listened(
    model: Any, layers: Sequence[nn.Module], tokens: Int64[Tensor, "B T"], state: State
) -> tuple[list[Float[Tensor, "B T D"]], Tensor, State]:
    """Read `tokens` in one piece of each layer's own making: what entered each of `layers`, the logits, and the state after."""
    heard: list[list[Tensor]] = [[] for _ in layers]

    def listen(place: int) -> Any:
        return lambda _, args: heard[place].append(args[0].detach())

    with ExitStack() as hooks:
        for place, layer in enumerate(layers):
            hooks.callback(layer.register_forward_pre_hook(listen(place)).remove)
        logits, state = model(tokens, state)
    return [torch.cat(pieces, dim=1) for pieces in heard], logits, state  # a model may read a piece as several


def token_fidelity(tokens: Int64[Tensor, "B T"], predicted: Float[Tensor, "B T D"], embedding: Float[Tensor, "V D"], lag: int) -> float:
    """ETMF at a lag: the cosine between the embedding of a token and what is predicted `lag` tokens later."""
    given = embedding[tokens][:, : tokens.shape[1] - lag]
    return float(F.cosine_similarity(given.double(), predicted[:, lag:].double(), dim=-1).mean())


def cross_layer(x: Float[Tensor, "N D"], y: Float[Tensor, "N D"]) -> tuple[float, float]:
    """(ECLMF, ECLMF_r) of two layers, a token a row."""
    x, y = x.double(), y.double()
    weights = torch.linalg.solve(x.mT @ x + RIDGE * torch.eye(x.shape[1], dtype=x.dtype, device=x.device), x.mT @ y)
    error = (y - x @ weights).norm()
    return float(1 - error / (x.norm() + 1e-6)), float(1 - error / (y.norm() + 1e-6))


@dataclass(frozen=True, kw_only=True)
class FidelityProbe(Probe):
    name: ClassVar[str] = "fidelity"
    about: ClassVar[str] = "how much of a token is in what is predicted, and of a layer in the layers above it"
    needs: ClassVar[tuple[str, ...]] = ("layers",)

    tau: float = 1.0

    def parts(self, subject: Subject) -> list[str]:
        return ["reading"]

    def measure(self, subject: Subject, part: str) -> dict[str, Any]:
        model, layers, embedding = subject.model, subject.anatomy.layers, subject.anatomy.embedding
        if embedding is None:
            raise TypeError("an anatomy with layers has an embedding")
        rows = 4
        length = min(self.length, 1024, subject.longest or 1024)
        tokens = torch.stack([subject.text(length, start=row * 16384) for row in range(rows)])
        weight = embedding().detach().float()
        piece = max(1, min(PIECE, LOGITS // (rows * subject.vocab_size)))
        state, residual, predicted = model.init_state(rows), [[] for _ in layers], []
        for part_tokens in tokens.split(piece, dim=1):
            heard, logits, state = listened(model, layers, part_tokens, state)
            for kept, h in zip(residual, heard, strict=True):
                kept.append(h.float().cpu())
            predicted.append(((logits.float() / self.tau).softmax(-1) @ weight).cpu())
        said, tokens, weight = torch.cat(predicted, dim=1), tokens.cpu(), weight.cpu()
        floor = token_fidelity(tokens.roll(1, dims=0), said, weight, 0)
        streams = [torch.cat(kept, dim=1).flatten(0, 1) for kept in residual]
        gaps = []
        for gap in (g for g in GAPS if g < len(streams)):
            pairs = [cross_layer(streams[i], streams[i + gap]) for i in range(len(streams) - gap)]
            gaps.append({"gap": gap, "eclmf": sum(a for a, _ in pairs) / len(pairs), "eclmf_r": sum(b for _, b in pairs) / len(pairs)})
        return {
            "tokens": tokens.numel(),
            "width": int(streams[0].shape[1]),
            "layers": len(streams) - 1,
            "etmf": [{"lag": lag, "fidelity": token_fidelity(tokens, said, weight, lag)} for lag in LAGS if lag < length],
            "floor": floor,
            "eclmf": gaps,
        }

    def conclude(self, subject: Subject, parts: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
        return parts["reading"]

    def says(self, result: Mapping[str, Any]) -> list[dict[str, Any]]:
        etmf, last = result["etmf"], result["eclmf"][-1]
        far = etmf[min(1, len(etmf) - 1)]
        return [
            say(
                "How much of a token is in its predictions?",
                f"cosine {far['fidelity']:.2f} after {far['lag']} tokens; {result['floor']:.2f} for tokens it never saw",
                far["fidelity"] - result["floor"],
            ),
            say(
                "How much of a layer is in the layers above it?",
                f"{last['eclmf_r']:.0%} of the layer {last['gap']} above is linear in it",
                last["eclmf_r"],
            ),
        ]
