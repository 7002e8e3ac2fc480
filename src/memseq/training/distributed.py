"""Many processes, by torch's own means: `torchrun`, DistributedDataParallel, FSDP2, `torch.distributed.checkpoint`.

    torchrun --nproc-per-node 2 -m memseq train ...

Each process reads its own lanes; a window's loss is divided by the number of tokens that all processes scored in it, and
engines average gradients over processes, so that N processes of B lanes take the step of one process of N B lanes.
The same calls run on gloo (CPU) and on NCCL.
"""

import os
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch import distributed as dist

from memseq.contract import Memory
from memseq.errors import ConfigError

__all__ = ["FullyShard", "OneProcess", "ReplicateData", "Strategy", "all_sum", "all_well", "process_group", "rank", "world"]


def world() -> int:
    """The number of processes that train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """This process's number among them, from 0."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def barrier() -> None:
    if world() > 1:
        dist.barrier()


def all_sum(values: Sequence[float], device: torch.device | str = "cpu") -> list[float]:
    """Each value summed over all processes, in double precision."""
    if world() == 1:
        return [float(v) for v in values]
    where = device if dist.get_backend() == "nccl" else "cpu"
    total = torch.tensor(values, dtype=torch.float64, device=where)
    dist.all_reduce(total)
    return total.tolist()


def all_well(well: bool, device: torch.device | str = "cpu") -> bool:
    """Whether every process is well: those that wait for each other's gradients must stop together."""
    return all_sum([not well], device)[0] == 0


@contextmanager
def process_group() -> Generator[torch.device]:
    """Join the processes that `torchrun` started, and leave at the end; gives the device of this process.

    Without `torchrun` nothing is joined: the process trains alone, on a GPU where there is one.
    """
    cuda = torch.cuda.is_available()
    if "WORLD_SIZE" not in os.environ or dist.is_initialized():
        yield torch.device("cuda" if cuda else "cpu")
        return
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if cuda else "gloo")
    try:
        yield device
    finally:
        dist.destroy_process_group()


@runtime_checkable
class Strategy(Protocol):
    """What wraps the module that is trained, and how its weights go to disk and back."""

    def wrap(self, module: nn.Module) -> nn.Module: ...

    def whole(self, model: Memory[Any]) -> Memory[Any] | None:
        """The model with all its weights on process 0, to be saved; None elsewhere."""
        ...


@dataclass(frozen=True, kw_only=True)
class OneProcess:
    """No engine."""

    def wrap(self, module: nn.Module) -> nn.Module:
        if world() > 1:
            raise ConfigError(f"{world()} processes train together and none would share gradients; choose ReplicateData() or FullyShard()")
        return module

    def whole(self, model: Memory[Any]) -> Memory[Any] | None:
        return model


@dataclass(frozen=True, kw_only=True)
class ReplicateData:
    """DistributedDataParallel: every process holds the whole model.

    Parameters that a synced segment leaves unused (a writer when the window is one segment long) are averaged as well,
    because they are looked for.
    """

    def wrap(self, module: nn.Module) -> nn.Module:
        _need_processes(self)
        return nn.parallel.DistributedDataParallel(module, find_unused_parameters=True)

    def whole(self, model: Memory[Any]) -> Memory[Any] | None:
        return model if rank() == 0 else None


@dataclass(frozen=True, kw_only=True)
class FullyShard:
    """FSDP2: weights, gradients and optimiser states lie in parts, one a process.

    The model is one group. Replay keeps the weights gathered for the length of a window anyway, so finer groups would not
    save memory.
    """

    def wrap(self, module: nn.Module) -> nn.Module:
        from torch.distributed.fsdp import fully_shard

        _need_processes(self)
        for p in module.parameters():  # from_local would accept diverging copies silently
            dist.broadcast(p.data, src=0)
        marks = {name: {k: vars(p)[k] for k in ("lr_scale", "no_decay") if k in vars(p)} for name, p in module.named_parameters()}
        fully_shard(module)
        for name, p in module.named_parameters():
            for key, value in marks[name].items():  # sharding makes new parameters, and the optimiser reads these marks
                setattr(p, key, value)
        return module

    def whole(self, model: Memory[Any]) -> Memory[Any] | None:
        full = {name: _gathered(t) for name, t in model.state_dict().items()}
        if rank() != 0:
            return None
        with torch.random.fork_rng(devices=[]):  # building draws initial weights; saving must not move the run's random numbers
            copy = model.config.build()
        copy.to(next(t.dtype for t in full.values() if t.is_floating_point())).load_state_dict(full)
        return copy


def _gathered(t: Tensor) -> Tensor:
    return t.full_tensor().cpu() if hasattr(t, "full_tensor") else t.cpu()


def _need_processes(strategy: Any) -> None:
    if not (dist.is_available() and dist.is_initialized()):
        raise ConfigError(f"{strategy} shares work between processes, and there is one; start them with torchrun --nproc-per-node N")


def is_sharded(model: nn.Module) -> bool:
    return any(hasattr(p, "full_tensor") for p in model.parameters())


def save_shards(folder: Path, model: nn.Module, optimizers: Sequence[torch.optim.Optimizer]) -> None:
    """Every process writes its part of the weights and of the optimisers' states."""
    from torch.distributed import checkpoint
    from torch.distributed.checkpoint.state_dict import get_state_dict

    weights, states = get_state_dict(model, list(optimizers))
    checkpoint.save({"model": weights, "optimizers": states}, checkpoint_id=folder)


def load_shards(folder: Path, model: nn.Module, optimizers: Sequence[torch.optim.Optimizer]) -> None:
    from torch.distributed import checkpoint
    from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

    weights, states = get_state_dict(model, list(optimizers))
    checkpoint.load({"model": weights, "optimizers": states}, checkpoint_id=folder)
    set_state_dict(model, list(optimizers), model_state_dict=weights, optim_state_dict=states)
