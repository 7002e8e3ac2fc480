"""Every Triton kernel is compiled for two generations of GPUs, which needs none: the interpreter forgives what a compiler does not."""

import json
import os
import subprocess
import sys

import pytest

pytest.importorskip("triton", reason="Triton is not installed; on Linux pip install 'memseq[dev]' brings it")

COMPILE = """
import json, sys
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from memseq.ops.kernels import elementwise, matrix, matrix_back

tile = {"L": 16, "BK": 16, "BV": 16, "PRECISION": "tf32"}
half = {"q": "*bf16", "k": "*bf16", "v": "*bf16"}
kernels = [
    (matrix._prepare, tile, half),
    *((kernel, tile | {"DELTA": delta}, half) for kernel in (matrix._states, matrix._outputs) for delta in (True, False)),
    *((k, tile | {"DELTA": delta}, half) for k in (matrix_back._states_back, matrix_back._inputs_back) for delta in (True, False)),
    (elementwise._scan, {"BLOCK": 256}, {}),
    (elementwise._scan_back, {"BLOCK": 256}, {}),
    *((kernel, {"LIMITED": True, "BK": 16, "BV": 16}, {}) for kernel in (elementwise._hadamard, elementwise._hadamard_back)),
]
shared = {}
for arch in (80, 90):  # their tensor cores are driven by other instructions
    for kernel, constants, types in kernels:
        sizes = {"T": "i32", "H": "i32", "G": "i32", "K": "i32", "V": "i32", "E": "i32", "limit": "fp32"}
        sizes |= {} if "L" in constants else {"L": "i32"}
        signature = {n: "constexpr" if n in constants else types.get(n) or sizes.get(n, "*fp32") for n in kernel.arg_names}
        values = {(kernel.arg_names.index(n),): value for n, value in constants.items()}
        built = triton.compile(ASTSource(fn=kernel, signature=signature, constexprs=values), target=GPUTarget("cuda", arch, 32))
        shared[f"{kernel.__name__} {arch} {constants.get('DELTA', '')}"] = built.metadata.shared
print(json.dumps(shared))
"""


def test_they_compile(tmp_path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(tmp_path), "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    done = subprocess.run([sys.executable, "-c", COMPILE], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    shared = json.loads(done.stdout)
    assert len(shared) == 26
    assert max(shared.values()) < 48 << 10  # what any GPU gives a program unasked
