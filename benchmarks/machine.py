"""What a benchmark ran on, named by its hardware; every result file carries it."""

import os
import platform
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

__all__ = ["describe"]


def describe() -> dict[str, Any]:
    """Processor, cores, memory, accelerator, versions, threads and date, as plain JSON values."""
    text = _read("/proc/cpuinfo")
    fields = dict(line.split(":", 1) for line in text.split("\n\n")[0].splitlines() if ":" in line)
    fields = {name.strip(): value.strip() for name, value in fields.items()}
    flags = fields.get("flags", "").split()
    memory = dict(line.split(":", 1) for line in _read("/proc/meminfo").splitlines() if ":" in line)
    return {
        "cpu": fields.get("model name", platform.processor() or platform.machine()),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "instructions": [flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if flag in flags],
        "ram_gib": round(int(memory["MemTotal"].split()[0]) / 2**20, 1) if "MemTotal" in memory else None,
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "threads": torch.get_num_threads(),
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
    }


def _read(path: str) -> str:
    file = Path(path)
    return file.read_text() if file.exists() else ""


if __name__ == "__main__":
    import json

    print(json.dumps(describe(), indent=2))
