"""What would make a replay wrong without a word, found and named: states that are not finite, replays that differ."""

from collections.abc import Callable

import torch
from torch import Tensor

from memseq.errors import InputError, StateError, TrainingError
from memseq.state import State, leaf_names, tensors

__all__ = ["Agree", "Finite", "check_loss", "check_start", "compare", "differentiable", "sum_losses"]

Agree = Callable[[bool], bool]  # "I am well" of one process -> whether all of them are


def differentiable(t: Tensor) -> bool:
    """Whether a leaf can carry a gradient: integers, booleans and tokens pass through."""
    return t.is_floating_point() or t.is_complex()


def check_start(state: State, total: int) -> None:
    """Raise where a window cannot begin."""
    if total == 0:
        raise InputError("a window needs at least one segment, got none")
    if torch.is_inference_mode_enabled():
        raise TrainingError("replay cannot run under torch.inference_mode(), whose tensors never have gradients; leave it first")
    if any(t.is_inference() for t in tensors(state)):
        name = next(name for name, t in zip(leaf_names(state), tensors(state), strict=True) if t.is_inference())
        raise StateError(f"the state leaf {name!r} was made under torch.inference_mode(); read the stream under torch.no_grad()")


def check_loss(loss: Tensor) -> None:
    """A cell gives one number a segment, the sum of its losses."""
    if loss.ndim:
        raise InputError(f"a cell's loss must be one number, the sum over the segment, got a tensor of shape {list(loss.shape)}")


def sum_losses(losses: list[Tensor]) -> Tensor:
    """The sum in the order of the stream; a loss that is not finite is an error that names its segment."""
    each = torch.stack(losses)
    if not bool(each.isfinite().all()):
        t = int((~each.isfinite()).nonzero()[0])
        raise TrainingError(
            f"the loss of segment {t} of {len(losses)} is {each[t].item()}; the gradients of this window are not usable:"
            " call zero_grad(), and lower the learning rate or clip the gradients"
        )
    return each.sum()


def compare(t: int, replayed: State, kept: State) -> None:
    """The replay of segment t must arrive where the first pass arrived, up to the rounding of another kernel."""
    for name, new, old in zip(leaf_names(kept), tensors(replayed), tensors(kept), strict=True):
        if old.numel() == 0:
            continue
        delta, size = float((new.detach().double() - old.double()).abs().max()), float(old.double().abs().max())
        allowed = torch.finfo(old.dtype).eps ** 0.5 * max(1.0, size) if differentiable(old) else 0.0
        if not delta <= allowed:
            raise TrainingError(
                f"segment {t} was replayed to another state than in the first pass: leaf {name!r} differs by max |delta| = {delta:.3g}"
                f" (allowed {allowed:.3g}); the cell draws random numbers for its loss before those of its state, keeps state outside of"
                " its state, or runs kernels that are not deterministic"
            )


class Finite:
    """Looks at every state of the first pass, and waits for the device once."""

    def __init__(self, state: State) -> None:
        # A leaf that starts at -inf is a logarithm of nothing (the maximum of an online softmax), and may stay there.
        self.logs = [_own(s).isneginf().any() if differentiable(s) else None for s in tensors(state)]
        self.flags: dict[int, Tensor] = {}

    def note(self, t: int, state: State, *losses: Tensor) -> None:
        """Look at what segment t left, the first time it is read."""
        if t in self.flags:
            return
        leaves = [(_own(s), log) for s, log in zip(tensors(state), self.logs, strict=True) if log is not None]
        flags = [(s.isfinite() | s.isneginf() & log).all() for s, log in leaves]
        flags += [loss.detach().isfinite().all() for loss in losses]
        if flags:
            self.flags[t] = torch.stack([f.to(flags[-1].device) for f in flags]).all()

    def check(self, total: int, agree: Agree | None = None) -> None:
        """Raise `TrainingError` that names the first segment after which something was not finite.

        Where processes average their gradients, one that stops here would leave the others waiting: `agree` says whether all are well.
        """
        flags = torch.stack(list(self.flags.values())) if self.flags else torch.ones(1, dtype=torch.bool)
        well = bool(flags.all())
        if agree is not None and not agree(well) and well:
            raise TrainingError(
                "another process's window left a state or a loss that is not finite; no gradient was touched, here or there: all skip this"
                " window together"
            )
        if not well:
            t = list(self.flags)[int((~flags).nonzero()[0])]
            raise TrainingError(
                f"segment {t} of {total} left a state or a loss that is not finite; no gradient was touched. Skip this window, start"
                " from a fresh state, or lower the learning rate"
            )


def _own(t: Tensor) -> Tensor:
    """What an expanded tensor stores."""
    return t[tuple(slice(0, 1) if stride == 0 else slice(None) for stride in t.stride())]
