"""What every test may lean on: the folder of real data, small threads, and no network."""

import os
from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)  # small tensors are faster so, and sums do not depend on the machine
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read when triton is first imported: its kernels then run on a CPU, by numpy


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of real texts and images that MEMSEQ_DATA names; tests that need it are skipped without it."""
    given = os.environ.get("MEMSEQ_DATA")
    if not given:
        pytest.skip("MEMSEQ_DATA is not set: it names a folder of real data (books, mnist, shakespeare, ...)")
    path = Path(given)
    if not path.is_dir():
        pytest.fail(f"MEMSEQ_DATA={given} is not a folder")
    return path


@pytest.fixture(autouse=True)
def _same_numbers_every_time() -> None:
    torch.manual_seed(0)
