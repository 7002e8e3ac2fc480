"""The laws of a memory, one function each: what is proven, and how.

Exact laws run in float64 and eval mode. "Streams of different ages" are rows of one batch that have read 0, 3, 8 and a few
more tokens than the longest segment: whatever is special about a position is met by some row at every token.
"""

import copy
import itertools
import math
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from memseq.checking.readings import (
    VERBS,
    Piece,
    Reading,
    Weighted,
    gradients,
    in_pieces,
    kept_alive,
    long_reading,
    named,
    read_by_step,
    root_mean_square,
    thousandfold,
    weighted,
    with_dropout,
)
from memseq.checking.subject import Ruler, Subject, describe, magnitude
from memseq.state import State, fork, leaf_names, load_state, save_state, select, stack, state_bytes, tensors

if TYPE_CHECKING:
    from memseq.checking import Effort

__all__ = ["LAWS", "Law"]


@dataclass(frozen=True, kw_only=True)
class Law:
    """A name, what it claims, the deviation it allows and the function that measures."""

    name: str
    claim: str
    tolerance: float
    prove: Callable[[Subject, Ruler, "Effort"], None]


def splits(subject: Subject, ruler: Ruler, effort: "Effort") -> None:
    """Whole = by tokens = any cut, in outputs, state and gradients.

    An encoder's outputs see the rest of their segment: they are compared for cuts between segments, its state for any.
    """
    memory = subject.double
    parameters = dict(memory.named_parameters())
    for start, rows, begin in subject.starts():
        x = subject.stream(rows, subject.tokens)
        inputs = {"input": x.requires_grad_()} if x.is_floating_point() else {}

        def measure(read: Reading, outputs: bool) -> tuple[list[Tensor], list[Tensor], list[str]]:
            state = begin()  # noqa: B023 (called inside this turn of the loop)
            leaves = {f"initial state.{n}": t for n, t in named(state) if t.requires_grad and t.is_leaf}
            y, end = read(memory, x, state)  # noqa: B023
            sources = parameters | inputs | leaves  # noqa: B023
            values = [*[y] * outputs, *tensors(end)]
            return values, gradients(weighted(values), list(sources.values())), [f"gradient of {name}" for name in sources]

        def compare(ways: dict[str, Reading], outputs: bool) -> None:
            values, grads, sources = measure(lambda memory, x, state: memory(x, state), outputs)  # noqa: B023
            names = [*["output"] * outputs, *(f"state.{name}" for name in leaf_names(begin()))]  # noqa: B023
            top = 1e-3 * max((magnitude(g) for g in grads), default=0.0)  # a gradient of zero is zero up to the rounding of its terms
            for way, read in ways.items():
                values_cut, grads_cut, _ = measure(read, outputs)
                ruler.compare(values_cut, values, names, f"{way}, {start}")  # noqa: B023
                ruler.compare(grads_cut, grads, sources, f"{way}, {start}", floor=top or 1.0)  # noqa: B023
            with torch.no_grad():
                state = begin()  # noqa: B023
                for piece in x.split(subject.cuts()[-1][1], dim=1):  # noqa: B023
                    state = memory.advance(piece, state)
                ruler.compare(tensors(state), values[outputs:], names[outputs:], f"advance, {start}")  # noqa: B023

        ways = {"token by token": read_by_step} | {f"cut {way}": in_pieces(pieces) for way, pieces in subject.cuts()}
        compare(ways, outputs=memory.causal)
        if not memory.causal and subject.segment is not None:
            compare({"cut between segments": in_pieces(subject.segment)}, outputs=True)


def causality(subject: Subject, ruler: Ruler, effort: "Effort") -> None:
    """Changing later tokens changes no earlier output; of an encoder, no output of an earlier segment."""
    memory, b, T = subject.double, subject.border, subject.tokens
    at = {1, 2, b - 1, b, b + 1, T // 2, T - 1} - {0} if memory.causal else set(range(subject.segment or T, T, subject.segment or T))
    if not at:
        ruler.where = "an encoder of whole calls: not claimed"
    with torch.no_grad():
        for start, rows, begin in subject.starts():
            state, x = begin(), subject.stream(rows, T)
            y, changed = memory(x, state)[0], subject.another(x)
            for t in sorted(at):
                after = memory(torch.cat([x[:, :t], changed[:, t:]], dim=1), state)[0]
                ruler.record(magnitude(after[:, :t] - y[:, :t]), f"outputs before token {t} when later tokens change, {start}")


def streams(subject: Subject, ruler: Ruler, effort: "Effort") -> None:
    """Rows of a batch do not mix; select, stack, permute and fork of a state commute with reading."""
    memory = subject.double

    def same(found: tuple[Tensor, State], wanted: tuple[Tensor, State], where: str) -> None:
        (y, state), (y_wanted, state_wanted), rows = found, wanted, len(found[0])
        if not memory.bounded:  # leaves that grow are as long as the longest of their batch: give both one length
            both = stack([state, state_wanted])
            state, state_wanted = select(both, slice(0, rows)), select(both, slice(rows, None))
        names = ["output", *(f"state.{name}" for name in leaf_names(state))]
        ruler.compare([y, *tensors(state)], [y_wanted, *tensors(state_wanted)], names, where)

    with torch.no_grad():
        rows = len(subject.ages)
        for start, state in (("new streams", memory.init_state(rows)), ("streams of different ages", subject.mixed())):
            x, more = subject.stream(rows, subject.tokens, salt=3), subject.stream(rows, 5, salt=4)
            y, end = memory(x, state)
            on = memory(more, end)
            alone = [memory(x[i : i + 1], select(state, [i])) for i in range(rows)]
            for i, (y_alone, end_alone) in enumerate(alone):
                same((y[i : i + 1], select(end, [i])), (y_alone, end_alone), f"row {i} in its batch and alone, {start}")
            same(memory(more, stack([end_alone for _, end_alone in alone])), on, f"read alone, stacked and read on, {start}")
            order, mask = torch.arange(rows - 1, -1, -1), torch.arange(rows) % 2 == 0
            same(memory(x[order], select(state, order)), (y[order], select(end, order)), f"permuted, {start}")
            same(memory(x[mask], select(state, mask)), (y[mask], select(end, mask)), f"every other row selected, {start}")
            copies = x.repeat_interleave(2, dim=0)
            same(memory(copies, fork(state, 2)), (y.repeat_interleave(2, dim=0), fork(end, 2)), f"forked, {start}")


def purity(subject: Subject, ruler: Ruler, effort: "Effort") -> None:
    """Reading writes to nothing that it was given; the outputs are a function of input and state, bit for bit."""
    memory = copy.deepcopy(subject.single)  # it is put into training mode, and whatever it may write to is written
    x, other = (subject.stream(2, subject.tokens, salt=salt, dtype=torch.float32) for salt in (5, 6))
    with torch.no_grad():
        used = memory(subject.stream(2, 3, salt=7, dtype=torch.float32), memory.init_state(2))[1]
        for start, state in (("a new state", memory.init_state(2)), ("a state in use", used)):
            given = (
                {"input": x} | {f"state.{n}": t for n, t in named(state)} | dict(memory.named_parameters()) | dict(memory.named_buffers())
            )
            before = {name: (t.clone(), t._version) for name, t in given.items()}
            for mode, (verb, call) in itertools.product((True, False), VERBS.items()):
                memory.train(mode)
                call(memory, x, state)
                for name, t in given.items():
                    ruler.identical([t], [before[name][0]], [name], f"changed by {verb}, {start}")
                    ruler.hold(t._version == before[name][1], f"{name} was written to by {verb}, {start}")
            y, end = memory(x, state)
            memory(other, memory.init_state(2))  # what a module might remember is now of another stream
            names = ["output", *(f"state.{name}" for name in leaf_names(end))]
            for call in ("second", "third"):
                y_again, end_again = memory(x, state)
                where = f"{call} call with the same input and state, {start}"
                ruler.identical([y_again, *tensors(end_again)], [y, *tensors(end)], names, where)


def shape(subject: Subject, ruler: Ruler, effort: "Effort") -> None:
    """One tree, batch axis first, integers on the host; bounded: fixed shapes and no more storage than they show."""
    memory, bounded = subject.single, subject.single.bounded
    with torch.no_grad():
        first = memory.init_state(2)
        tree, names = pytree.tree_structure(first), [f"state.{name}" for name in leaf_names(first)]
        ruler.hold(all(isinstance(t, Tensor) for t in tensors(first)), "the state holds leaves that are no tensors")

        def fits(state: State, rows: int, where: str) -> None:
            if pytree.tree_structure(state) != tree:
                return ruler.fail(f"another tree of state {where}")
            for name, t, like in zip(names, tensors(state), tensors(first), strict=True):
                fixed = 1 if bounded else 2
                ruler.hold(
                    t.ndim == like.ndim and t.shape[:1] == (rows,), f"{name} {where} is {describe(t)} for {rows} streams; batch axis first"
                )
                same = t.dtype == like.dtype and t.shape[fixed:] == like.shape[fixed:]
                ruler.hold(same, f"{name} {where} is {describe(t)}, a new state of 2 streams has {describe(like)}")
                whole = t.is_floating_point() or t.is_complex() or t.dtype == torch.bool
                ruler.hold(whole or t.device.type == "cpu", f"{name} {where} counts on {t.device}; integers live on the host")
            for name, excess in kept_alive(state):
                ruler.record(excess, f"storage kept alive by state.{name} {where}, beyond what it shows", 0.0)
            return None

        for rows in (1, 2, 3):
            state = memory.init_state(rows)
            fits(state, rows, "from init_state")
            fits(memory.step(subject.stream(rows, 1, dtype=torch.float32)[:, 0], state)[1], rows, "after 1 token")
        elsewhere = subject.state_elsewhere()
        fits(elsewhere, 2, "from init_state on another device")
        for name, t in named(elsewhere):
            ruler.hold(not t.is_floating_point() or t.is_meta, f"state.{name} stays on {t.device} when the memory is on another device")
        sizes = {}
        for seen, _, state in long_reading(subject, memory, effort.bounded, effort.piece, marks=4):
            fits(state, 1, f"after {seen} tokens")
            sizes[seen] = state_bytes(state)
        for t in range(subject.border):  # a whole turn, token by token, whatever the phase
            state = memory.step(subject.stream(1, 1, salt=t, dtype=torch.float32)[:, 0], state)[1]
            fits(state, 1, f"{t + 1} tokens after {effort.bounded}")
        if not bounded:
            quarter, half, whole = (sizes[effort.bounded * k // 4] for k in (1, 2, 4))
            early, late = half - quarter, whole - half
            exponent = math.log2(late / early) if early > 0 and late > 0 else math.inf if late > 0 else 0.0
            ruler.record(
                max(0.0, exponent - 1),
                f"growth beyond a line: {quarter}, {half}, {whole} bytes after 1/4, 1/2 and all of {effort.bounded} tokens",
            )


def replay(subject: Subject, ruler: Ruler, effort: "Effort") -> None:
    """`replay_backward` = full BPTT over five segments, also with dropout: BPTT meets each segment with the same generators."""
    from memseq.training.replay import replay_backward
    from memseq.training.surroundings import Surroundings

    new, mixed = subject.starts()
    configs = {"as configured": subject.config, "with dropout 0.1": with_dropout(subject.config, 0.1)}
    if configs["with dropout 0.1"] == subject.config:
        del configs["with dropout 0.1"]
    length = -(-subject.tokens // 4)
    for (label, config), (start, rows, begin) in itertools.product(configs.items(), (new, mixed)):
        memory = subject.build(config).double().train()
        # a learned initial state has a graph of its own for each of the two; leaves are the same for both
        replayed_from, read_from = [memory.init_state(rows) for _ in range(2)] if start == new[0] else 2 * [begin()]
        xs = [x.clone() for x in subject.stream(rows, 5 * length, salt=8).split(length, dim=1)]
        pieces = []
        for i, x in enumerate(xs):
            generator = torch.Generator().manual_seed(i)
            width = (subject.vocab_size,) if subject.vocab_size is not None else x.shape[2:]
            weight = torch.randn(*x.shape[:2], *width, generator=generator, dtype=torch.float64).to(x.device)
            pieces.append(Piece(i, x.requires_grad_(x.is_floating_point()), weight))
        cell = Weighted(memory)
        cell.around = Surroundings(cell, replayed_from)
        sources = dict(memory.named_parameters())
        sources |= {f"input of segment {i}": p.x for i, p in enumerate(pieces) if p.x.requires_grad}
        sources |= {f"initial state.{n}": t for n, t in named(replayed_from) if t.requires_grad and t.is_leaf}
        replayed = replay_backward(cell, pieces, replayed_from)
        found = [torch.zeros_like(t) if t.grad is None else t.grad for t in sources.values()]

        total, state = torch.zeros((), dtype=torch.float64, device=subject.device), read_from
        for piece in pieces:
            cell.around.restore(cell.met[piece.index])
            loss, state = cell.loss(piece, state)
            total = total + loss
        wanted = gradients(total, list(sources.values()))
        where = f"{label}, {start}"
        floor = 1e-3 * max((magnitude(g) for g in wanted), default=1.0) or 1.0
        ruler.compare([replayed.loss, *tensors(replayed.state)], [total, *tensors(state)], ["loss", *leaf_names(state)], where)
        ruler.compare(found, wanted, [f"gradient of {name}" for name in sources], where, floor=floor)


def round_trip(subject: Subject, ruler: Ruler, effort: "Effort") -> None:
    """A saved and loaded state, and a saved and loaded model, give the same next outputs, bit for bit."""
    from safetensors.torch import load_model, save_model

    memory = subject.single
    x, more = (subject.stream(2, T, salt=9, dtype=torch.float32) for T in (subject.tokens, 7))
    with torch.no_grad(), tempfile.TemporaryDirectory() as folder:
        weights = Path(folder, "model.safetensors")
        save_model(memory, str(weights))
        loaded = subject.build(subject.config, seed=subject.seed + 1)
        load_model(loaded, weights, device=str(subject.device))
        for seen in (0, 3, subject.tokens):
            state = memory.init_state(2)
            state = memory(x[:, :seen], state)[1] if seen else state
            path = Path(folder, f"{seen}.state")
            save_state(state, path, model=memory)
            back = load_state(path, memory)
            names = [f"state.{name}" for name in leaf_names(state)]
            ruler.identical(tensors(back), tensors(state), names, f"saved and loaded after {seen} tokens")
            y, end = memory(more, state)
            for who, (y_back, end_back) in {"with the loaded state": memory(more, back), "by the loaded model": loaded(more, back)}.items():
                where = f"next outputs {who}, after {seen} tokens"
                ruler.identical([y_back, *tensors(end_back)], [y, *tensors(end)], ["output", *names], where)


def precision(subject: Subject, ruler: Ruler, effort: "Effort") -> None:
    """bf16 autocast stays near float32 with the same state dtypes; finite on inputs scaled by 1e3 and after a long stream."""
    memory = subject.single
    x = subject.stream(2, subject.tokens, salt=10, dtype=torch.float32)
    with torch.no_grad():
        y, end = memory(x, memory.init_state(2))
        with torch.autocast(subject.device.type, dtype=torch.bfloat16):
            y_low, end_low = memory(x, memory.init_state(2))
    ruler.record(root_mean_square(y_low, y), "output under bf16 autocast")
    for name, low, t in zip(leaf_names(end), tensors(end_low), tensors(end), strict=True):
        ruler.hold(low.dtype == t.dtype, f"state.{name} under bf16 autocast is {describe(low)} instead of {describe(t)}")
        if t.is_floating_point():
            ruler.record(root_mean_square(low, t), f"state.{name} under bf16 autocast")
    memory = subject.built  # noise on its weights may make a memory explode that was built not to
    loud, x_loud = thousandfold(memory, x)
    y, end = loud(x_loud, loud.init_state(2))
    grads = gradients(y.sum(), list(loud.parameters()))
    values = {"output": y} | {f"state.{n}": t for n, t in named(end)}
    values |= {f"gradient of {n}": g for (n, _), g in zip(loud.named_parameters(), grads, strict=True)}
    for name, t in values.items():
        ruler.hold(bool(t.isfinite().all()), f"{name} is not finite on inputs scaled by 1e3")
    with torch.no_grad():
        length = effort.finite if memory.bounded else effort.finite_unbounded
        for seen, y, end in long_reading(subject, memory, length, effort.piece):
            for name, t in [("output", y), *((f"state.{n}", t) for n, t in named(end))]:
                ruler.hold(bool(t.isfinite().all()), f"{name} is not finite after {seen} tokens")


LAWS = {
    law.name: law
    for law in (
        Law(name="splits", claim="whole = by tokens = any cut, in outputs, state and gradients", tolerance=1e-10, prove=splits),
        Law(name="causality", claim="changing later tokens changes no earlier output", tolerance=0.0, prove=causality),
        Law(name="streams", claim="rows do not mix; select, stack, permute and fork commute with reading", tolerance=1e-10, prove=streams),
        Law(name="purity", claim="nothing given is written to; the same state gives the same bits", tolerance=0.0, prove=purity),
        Law(name="shape", claim="tree, shapes, dtypes and bytes are bounded, or grow at most linearly", tolerance=0.5, prove=shape),
        Law(name="replay", claim="memory replay gives the gradients of full BPTT, also with dropout", tolerance=1e-9, prove=replay),
        Law(name="round trip", claim="save and load of state and model give the same next outputs", tolerance=0.0, prove=round_trip),
        Law(
            name="precision",
            claim="bf16 autocast stays near float32; finite on long streams and large inputs",
            tolerance=0.1,
            prove=precision,
        ),
    )
}
