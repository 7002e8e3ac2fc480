"""Replay for losses that couple segments: the outputs are kept, and any cotangents of them are taken.

    y_0 .. y_{S-1}, s_S = replay_scan(step, x, s_0)        s_{t+1}, y_t = step(x_t, s_t)

Forward reads every segment without a graph and keeps the outputs and the states its schedule chooses. Backward reads them
again from the last, one graph at a time. To autograd the scan is one function of the segments, the first state and the
parameters: a contrastive or pooled loss, recurrent models in series, and gradients of the input come by themselves.
Memory: the outputs, the kept states, one segment.
"""

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from memseq.errors import InputError, TrainingError
from memseq.state import State, detach, tensors
from memseq.training.cell import Segments
from memseq.training.guards import check_start, differentiable
from memseq.training.replay import leaves_of, no_autocast
from memseq.training.schedules import Here, KeepAll, Schedule, rewind
from memseq.training.surroundings import Surroundings

__all__ = ["replay_scan"]

Step = Callable[[Any, State], tuple[Any, State]]


def replay_scan(
    step: Step,
    segments: Segments,
    state: State,
    *,
    parameters: Iterable[Tensor] | None = None,
    schedule: Schedule = KeepAll(),  # noqa: B008 (frozen)
) -> tuple[list[Any], State]:
    """The outputs of all segments and the final state, as `y, state = step(segment, state)` in a loop would give them.

    `parameters` are the tensors besides segments and state that gradients flow to; for a module, or a method of one, they
    are found by themselves. Under `fully_shard` use `checkpointed_loss` instead: there the parameters of a forward are
    not those of the module.

    Raises `TrainingError` in a second backward and in one that asks for a second derivative.
    """
    check_start(state, len(segments))
    module = step if isinstance(step, nn.Module) else getattr(step, "__self__", None)
    if parameters is None:
        if not isinstance(module, nn.Module):
            raise InputError("the parameters of a plain function cannot be found; name them with parameters=module.parameters()")
        parameters = module.parameters()
    parameters = [p for p in parameters if p.requires_grad]
    segments = [segments[t] for t in range(len(segments))]
    inputs = [t for t in pytree.tree_leaves((segments, state)) if isinstance(t, Tensor)]
    scan = Scan(step, module, segments, state, parameters, schedule)
    outputs = _Function.apply(scan, *inputs, *parameters)
    return pytree.tree_unflatten(list(outputs), scan.tree)


class Scan:
    """One window, read once forwards and once backwards."""

    def __init__(self, step: Step, module: Any, segments: Segments, state: State, parameters: list[Tensor], schedule: Schedule) -> None:
        self.step, self.parameters = step, parameters
        self.segments = [pytree.tree_map_only(Tensor, Tensor.detach, segment) for segment in segments]
        self.around = Surroundings(module, state)
        self.outputs: dict[int, Any] | None = {}  # of the forward, until they are handed over
        self.starts = rewind(self._ahead, detach(state), len(segments), schedule, self.around)
        devices = {"cpu", *(t.device.type for t in (*parameters, *tensors(state)))}
        self.autocast = [(d, torch.is_autocast_enabled(d), torch.get_autocast_dtype(d)) for d in sorted(devices)]

    def read(self) -> list[Tensor]:
        """The leaves of (outputs, final state)."""
        t, start = next(self.starts)
        self.last, self.before = Here().put(start), self.around.save()
        y, end = self.step(self.segments[t], start)
        leaves, self.tree = pytree.tree_flatten(([*self.outputs.values(), y], end))
        self.outputs = None
        if not all(isinstance(y, Tensor) for y in leaves):
            raise InputError(f"the outputs of a step must be tensors, got {sorted({type(y).__name__ for y in leaves})}")
        return leaves

    def replay(self, cotangents: Sequence[Tensor | None], wanted: Sequence[bool]) -> list[Tensor | None]:
        """The gradients of the inputs that are `wanted`: segments, first state, parameters."""
        each, later = pytree.tree_unflatten(list(cotangents), self.tree)
        flags = iter(wanted)
        wanted_segments = [pytree.tree_map(lambda x: isinstance(x, Tensor) and next(flags), segment) for segment in self.segments]
        later = pytree.tree_leaves(later)
        of_segments: list[list[Tensor | None]] = [[] for _ in self.segments]
        of_parameters: list[Tensor | None] = [None] * len(self.parameters)
        outside = self.around.save()
        self.around.restore(self.before)
        try:
            for t, start in chain([(len(self.segments) - 1, Here().get(self.last))], self.starts):
                start = leaves_of(start)
                segment = pytree.tree_map(lambda x, want: x.detach().requires_grad_() if want else x, self.segments[t], wanted_segments[t])
                y, end = self._with_graph(segment, start)
                roots = [(r, g) for r, g in zip(pytree.tree_leaves((y, end)), [*pytree.tree_leaves(each[t]), *later], strict=True)]
                targets = [pytree.tree_leaves(segment), tensors(start), self.parameters]
                mine, later, theirs = _vjp(roots, targets)
                of_segments[t] = [g for g, x in zip(mine, targets[0], strict=True) if isinstance(x, Tensor)]
                of_parameters = [a if b is None else b if a is None else a + b for a, b in zip(of_parameters, theirs, strict=True)]
        finally:
            self.around.restore(outside)
            torch.clear_autocast_cache()
        self.around.warn()
        return [*chain.from_iterable(of_segments), *later, *of_parameters]

    def _ahead(self, t: int, state: State) -> State:
        with torch.no_grad(), self._autocast():
            y, state = self.step(self.segments[t], state)
        if self.outputs is not None:
            self.outputs[t] = y
        return detach(state)

    def _with_graph(self, segment: Any, start: State) -> tuple[Any, State]:
        with torch.enable_grad(), self._autocast():
            torch.clear_autocast_cache()  # in older torch a cast made without a graph serves here too (pytorch#65766)
            return self.step(segment, start)

    def _autocast(self) -> ExitStack:
        """The autocast regions of the forward, entered again in the backward."""
        stack = ExitStack()
        for device, enabled, dtype in self.autocast:
            stack.enter_context(torch.autocast(device, enabled=enabled, dtype=dtype))
        return stack


def _vjp(roots: list[tuple[Tensor, Tensor | None]], targets: list[list[Any]]) -> list[list[Tensor | None]]:
    """The gradients of every group of targets; None for what is no differentiable leaf or was not used."""
    roots = [(r, g) for r, g in roots if g is not None and r.requires_grad]
    leaves = [x for group in targets for x in group if isinstance(x, Tensor) and x.requires_grad]
    found: dict[int, Tensor | None] = {}
    if roots and leaves:
        with no_autocast(roots[0][0].device):
            outputs, cotangents = zip(*roots, strict=True)
            found = dict(zip(map(id, leaves), torch.autograd.grad(outputs, leaves, cotangents, allow_unused=True), strict=True))
    return [[found.get(id(x)) for x in group] for group in targets]


class _Function(torch.autograd.Function):
    """The scan as autograd sees it."""

    @staticmethod
    def forward(ctx: Any, scan: Scan, *inputs: Tensor) -> tuple[Tensor, ...]:
        ctx.scan = scan
        ctx.set_materialize_grads(False)
        outputs = tuple(y.detach() for y in scan.read())  # new objects: the kept states must not come to hold this graph
        ctx.mark_non_differentiable(*(y for y in outputs if not differentiable(y)))
        return outputs

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise TrainingError("replay has no second derivative: call backward() or autograd.grad() without create_graph=True")
        scan, ctx.scan = ctx.scan, None
        if scan is None:
            raise TrainingError("the states of this replay are used up: one replay_scan serves one backward, so no retain_graph=True")
        return None, *scan.replay(cotangents, ctx.needs_input_grad[1:])
