"""Replay on two processes: gradients are the mean of both ranks' full BPTT, whatever the engine and the number of segments.

Every scenario runs in one pair of processes (this file as a script); the tests read what each of them found.
"""

import json
import os
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest

SCENARIOS = [
    "ddp",
    "ddp_ragged",
    "ddp_one_segment_leaves_the_writer_unused",
    "ddp_ragged_to_one_segment",
    "ddp_find_unused_parameters",
    "ddp_bucket_views",
    "ddp_initial_state_made_outside",
    "ddp_windows_with_an_optimiser",
    "ddp_schedules",
    "ddp_refusals",
    "chain_ddp",
    "chain_ddp_static_graph_ragged",
    "chain_fsdp2",
    "chain_fsdp2_ragged",
    "fsdp2",
    "fsdp2_ragged",
    "fsdp2_ragged_to_one_segment",
    "fsdp2_root_only",
    "fsdp2_windows_with_an_optimiser",
]


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> list[dict[str, str]]:
    """What every scenario reported, rank by rank."""
    folder = tmp_path_factory.mktemp("ranks")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "WORLD_SIZE": "2", "MEMSEQ_RANKS": str(folder)}
    environment["PYTHONPATH"] = os.pathsep.join(p for p in sys.path if p)
    logs = [folder / f"{rank}.log" for rank in range(2)]
    ranks = []
    try:
        for rank, log in enumerate(logs):
            with log.open("w") as file:
                command = [sys.executable, __file__]
                ranks.append(subprocess.Popen(command, env={**environment, "RANK": str(rank)}, stdout=file, stderr=subprocess.STDOUT))
        codes = [rank.wait(timeout=300) for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    if codes != [0, 0]:
        pytest.fail("\n".join(f"rank {rank} ended with {codes[rank]}:\n{log.read_text()[-2000:]}" for rank, log in enumerate(logs)))
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_two_ranks(found, scenario):
    assert [rank[scenario] for rank in found] == ["exact", "exact"]


def main() -> None:
    import torch
    import torch.distributed as dist
    from torch import nn
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import DTensor
    from torch.nn.parallel import DistributedDataParallel

    from memseq.errors import ConfigError
    from memseq.layers.slots import SlotsConfig
    from memseq.memories.segment_attention import SegmentAttentionConfig
    from memseq.models.memformer import MemformerLMConfig
    from memseq.state import detach
    from memseq.training.cell import StreamCell
    from memseq.training.lanes import Segment
    from memseq.training.replay import CheckpointedWindow, replay_backward
    from memseq.training.schedules import Revolve, Sqrt
    from memseq.training.sync import fsdp2_sync

    rank, folder = int(os.environ["RANK"]), Path(os.environ["MEMSEQ_RANKS"])
    dist.init_process_group("gloo", f"file://{folder / 'meet'}", rank=rank, world_size=2, timeout=timedelta(seconds=60))
    torch.set_num_threads(1)
    B, L, D, V = 2, 4, 8, 13

    def make() -> StreamCell:
        torch.manual_seed(0)
        layers = (SegmentAttentionConfig(d_model=D, n_heads=2, segment_length=L),) * 2
        slots = SlotsConfig(d_model=D, segment_length=L, n_slots=3, n_heads=2)
        model = MemformerLMConfig(vocab_size=V, d_model=D, layers=layers, slots=slots).build().double()
        for read in model.reads:
            nn.init.normal_(read.out.weight, std=0.3)  # it starts at zero, which would hide the memory's gradient
        return StreamCell(model)

    def window(of: int, n: int, begin: int = 0) -> list[Segment]:
        """The segments `begin` to `n` of rank `of`, whose first rows begin a document."""
        g = torch.Generator().manual_seed(100 + of)
        tokens = torch.randint(V, (50, 2, B, L), generator=g)
        return [Segment(*tokens[t], torch.full((B,), t == 0) | torch.tensor([t == 2, False])) for t in range(begin, n)]

    def stale(cell: StreamCell):
        return detach(cell.model.init_state(B))

    def bptt(cell: StreamCell, segments: list[Segment], state):
        total = 0.0
        for segment in segments:
            loss, state = cell.loss(segment, state)
            total = total + loss
        total.backward()
        return detach(state)

    def mean_of_both(lengths: tuple[int, int], start=stale) -> dict[str, torch.Tensor]:
        cell = make()
        for of, n in enumerate(lengths):
            bptt(cell, window(of, n), start(cell))
        return {name: torch.zeros_like(p) if p.grad is None else p.grad / 2 for name, p in cell.named_parameters()}

    def whole(t: torch.Tensor) -> torch.Tensor:
        return t.full_tensor() if isinstance(t, DTensor) else t

    def difference(module: nn.Module, expected: dict[str, torch.Tensor]) -> str:
        worst = 0.0
        for name, p in module.named_parameters():
            g = torch.zeros_like(expected_of(name, expected)) if p.grad is None else whole(p.grad)
            worst = max(worst, float((g - expected_of(name, expected)).abs().max()))
        return "exact" if worst < 1e-12 else f"gradients differ by {worst:.3g}"

    def expected_of(name: str, expected: dict[str, torch.Tensor]) -> torch.Tensor:
        return expected[name.removeprefix("module.").removeprefix("cell.")]

    def ddp(lengths=(4, 4), expected=None, **options) -> str:
        cell = DistributedDataParallel(make(), **options)
        replay_backward(cell, window(rank, lengths[rank]), stale(cell.module))
        return difference(cell, mean_of_both(lengths))

    def ddp_initial_state_made_outside() -> str:
        """The forgetting bias is the initial state too, and here it is read outside of the wrapped forward."""
        cell = DistributedDataParallel(make())
        segments = [segment._replace(reset=torch.zeros(B, dtype=torch.bool)) for segment in window(rank, 3)]
        replay_backward(cell, segments, cell.module.model.init_state(B))
        plain = make()
        for of in range(2):
            bptt(plain, [s._replace(reset=torch.zeros(B, dtype=torch.bool)) for s in window(of, 3)], plain.model.init_state(B))
        return difference(cell, {name: p.grad / 2 for name, p in plain.named_parameters()})

    def windows_with_an_optimiser(wrap) -> str:
        """Three windows of ragged lengths, a step after each: stale weights or a reducer left astray would show."""
        cell, plain = wrap(make()), make()
        ours, theirs = (torch.optim.SGD(m.parameters(), lr=0.05) for m in (cell, plain))
        inner = cell.module if isinstance(cell, DistributedDataParallel) else cell
        state, states = stale(plain), [stale(plain), stale(plain)]
        for begin, lengths in ((0, (4, 2)), (10, (11, 13)), (20, (22, 22))):
            _, state = replay_backward(cell, window(rank, lengths[rank], begin), state)
            ours.step(), ours.zero_grad()
            states = [bptt(plain, window(of, lengths[of], begin), states[of]) for of in range(2)]
            for p in plain.parameters():
                p.grad = None if p.grad is None else p.grad / 2
            theirs.step(), theirs.zero_grad()
        worst = max(float((whole(a) - b).abs().max()) for a, b in zip(inner.parameters(), plain.parameters(), strict=True))
        return "exact" if worst < 1e-12 else f"weights differ by {worst:.3g}"

    def ddp_schedules() -> str:
        reports = set()
        for schedule in (Sqrt(), Revolve(slots=2)):
            cell = DistributedDataParallel(make())
            replay_backward(cell, window(rank, 5), stale(cell.module), schedule=schedule, verify=True)
            reports.add(difference(cell, mean_of_both((5, 5))))
        return " ".join(reports)

    def ddp_refusals() -> str:
        cell = DistributedDataParallel(make(), static_graph=True)
        try:
            replay_backward(cell, window(rank, 2), stale(cell.module))
        except ConfigError as error:
            return "exact" if "static_graph=True" in str(error) else str(error)
        return "a static graph was not refused"

    def shard(cell: StreamCell) -> StreamCell:
        for block in cell.model.blocks:
            for part in (*block.memories, block.ff):
                fully_shard(part)
        for write in cell.model.writes:
            fully_shard(write)
        return fully_shard(cell)

    def fsdp2(lengths=(4, 4), shard=shard) -> str:
        cell, segments = shard(make()), window(rank, lengths[rank])
        for _ in range(2):  # a second window over the same weights adds the same again
            replay_backward(cell, segments, stale(make()), sync=fsdp2_sync(cell))
        return difference(cell, {name: 2 * g for name, g in mean_of_both(lengths).items()})

    def chain(wrap, lengths=(4, 4)) -> str:
        module = wrap(CheckpointedWindow(make()))
        loss, _ = module(window(rank, lengths[rank]), stale(make()))
        loss.backward()
        return difference(module, mean_of_both(lengths))

    def chain_shard(module: CheckpointedWindow) -> CheckpointedWindow:
        for block in module.cell.model.blocks:
            fully_shard(block.ff)
        return fully_shard(module)

    runs = {
        "ddp": ddp,
        "ddp_ragged": lambda: ddp((4, 2)),
        "ddp_one_segment_leaves_the_writer_unused": lambda: ddp((1, 1)),
        "ddp_ragged_to_one_segment": lambda: ddp((1, 3)),
        "ddp_find_unused_parameters": lambda: ddp((1, 3), find_unused_parameters=True),
        "ddp_bucket_views": lambda: ddp((3, 2), gradient_as_bucket_view=True),
        "ddp_initial_state_made_outside": ddp_initial_state_made_outside,
        "ddp_windows_with_an_optimiser": lambda: windows_with_an_optimiser(DistributedDataParallel),
        "ddp_schedules": ddp_schedules,
        "ddp_refusals": ddp_refusals,
        "chain_ddp": lambda: chain(DistributedDataParallel),
        "chain_ddp_static_graph_ragged": lambda: chain(lambda m: DistributedDataParallel(m, static_graph=True), (4, 2)),
        "chain_fsdp2": lambda: chain(chain_shard),
        "chain_fsdp2_ragged": lambda: chain(fully_shard, (4, 2)),
        "fsdp2": fsdp2,
        "fsdp2_ragged": lambda: fsdp2((4, 2)),
        "fsdp2_ragged_to_one_segment": lambda: fsdp2((1, 3)),
        "fsdp2_root_only": lambda: fsdp2((3, 2), fully_shard),
        "fsdp2_windows_with_an_optimiser": lambda: windows_with_an_optimiser(shard),
    }
    assert list(runs) == SCENARIOS
    found = dict.fromkeys(SCENARIOS, "not reached")
    only = os.environ.get("MEMSEQ_ONLY")
    for name, scenario in runs.items():
        if only and only not in name:
            continue
        try:
            found[name] = scenario()
        except Exception as error:  # reported, and the next scenario still runs
            found[name] = f"{type(error).__name__}: {error}"
            if only:
                raise
        (folder / f"{rank}.json").write_text(json.dumps(found))
        dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
    os._exit(0)  # gloo's threads outlive the group (DDP holds it), and now and then abort a process whose interpreter is already ending
