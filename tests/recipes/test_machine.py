"""What the machine is asked for is what it then does."""

import os
import platform
import subprocess
import sys

import pytest

from memseq.recipes.machine import keep_freed_memory

SCRIPT = """
import resource
from memseq.recipes.machine import keep_freed_memory
import torch

def step():
    kept = [torch.ones(1 << 20) for _ in range(40)]  # 160 MiB of activations, freed at the step's end

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

asked = keep_freed_memory()
step(), step()
before = faults()
step()
print(asked, faults() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="memory is kept by a setting of glibc's")
@pytest.mark.parametrize("kept", [True, False], ids=["asked", "not asked: the user's variables go before"])
def test_the_next_step_finds_the_memory_of_the_last(kept):
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_TUNABLES"))}
    environment |= {} if kept else {"MALLOC_TRIM_THRESHOLD_": "131072", "MALLOC_MMAP_THRESHOLD_": "131072"}
    told = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, env=environment, check=True).stdout.split()
    assert told[0] == str(kept)
    if kept:
        assert int(told[1]) < 4096  # pages of 4 KiB: 40,960 of them where each is asked for anew


def test_another_c_library_is_left_alone(monkeypatch):
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    assert keep_freed_memory() is False
