"""The machine: what it is, for beside a measured number, and the one thing that training asks of it."""

import ctypes
import os
import platform
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

__all__ = ["describe", "keep_freed_memory"]

INSTRUCTIONS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "sve")


def describe() -> dict[str, Any]:
    """Processor, its vector instructions, cores, memory, accelerator, torch and today's date, ready for JSON."""
    told = _cpu()
    flags = told.get("flags", told.get("Features", "")).split()
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "cpu": told.get("model name", "unknown"),
        "instructions": [name for name in INSTRUCTIONS if name in flags],
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gib": round(_memory() / 2**30),
        "gpu": gpu,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "date": datetime.now(UTC).date().isoformat(),
    }


def keep_freed_memory() -> bool:
    """Let the C library keep the memory that tensors free, for the next step's; whether it could be told so.

    glibc returns freed memory to the kernel, which clears it page by page before it hands it out again: a fifth of the
    time of a step of full back-propagation, on the machine of `docs/replay.md`. Concerns the whole process, so that commands
    ask for it and the library does not. The environment variables of malloc, where they are set, go before.
    """
    given = any(name.startswith("MALLOC_") for name in os.environ) or "malloc" in os.environ.get("GLIBC_TUNABLES", "")
    if given or platform.libc_ver()[0] != "glibc":
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    trim_threshold, mmap_threshold = -1, -3
    return bool(mallopt(trim_threshold, 2**31 - 1) and mallopt(mmap_threshold, 32 << 20))


def _cpu() -> dict[str, str]:
    try:
        lines = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
    except OSError:
        return {}
    return {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}


def _memory() -> int:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return 0
