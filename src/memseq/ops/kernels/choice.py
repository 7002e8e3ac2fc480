"""Which program computes an op: torch's own products, a Triton kernel of ours, or one of `fla-core`. Decided here and nowhere else.

    fla       on CUDA, where fla-core is installed and has the op; gradients by its own kernels
    torch     everywhere else: the forms of `ops/`, which are always there
    triton    where it is asked for, on CUDA, where Triton is installed and `ops/kernels` has the op

fla is taken where it can compute the case, else torch; ours in Triton wait for a measurement on a GPU before they are taken unasked.
All three compute the same function to rounding,
and rounding is a reason to refuse: fla's kernels round float32 products to TF32, so that they are taken for float32 only where
`torch.set_float32_matmul_precision("high")` has allowed such products, and always for inputs of 16 bits. Ours and torch's follow that
setting. States are float32.

`use(name)` and the environment variable MEMSEQ_KERNELS ask for one of the three. `torch` can always be had. `triton` and `fla` are then
used for every op that they have, in either precision, and what cannot be (no such package, no CUDA, no such op) is an error, never
silently another. Triton on a CPU means its interpreter (TRITON_INTERPRET=1), which is for tests.

One token is read by the definition, whatever is asked for: that is a few products of vectors, and no kernel is started for it.
"""

import os
from collections.abc import Callable, Generator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch
from torch import Tensor

from memseq.errors import ConfigError, nearest

__all__ = ["OPS", "Choice", "chosen", "kernel_for", "use"]

VARIABLE = "MEMSEQ_KERNELS"
KERNELS = ("fla", "triton", "torch")  # in the order of preference
OPS = {  # which kernels there are besides torch's, for every op of the linear family
    "decay": ("fla", "triton"),
    "delta_rule": ("fla", "triton"),
    "gla": ("fla",),
    "rwkv6": ("fla",),
    "kda": ("fla",),
    "channel": ("fla",),
    "scan": ("triton",),
    "hadamard": ("triton",),
    "prefix_softmax": (),
}
LARGEST_KEY = {"fla": {"delta_rule": 256, "kda": 256, "channel": 256}, "triton": {"decay": 256, "delta_rule": 256, "hadamard": 256}}
PACKAGES = {"fla": "fla-core", "triton": "Triton"}

_asked: ContextVar[str | None] = ContextVar("asked", default=None)


class Choice(NamedTuple):
    """What computes an op."""

    kernel: str  # torch, triton or fla
    why: str
    refused: dict[str, str]  # what was preferred to it, and why it is not taken


class _Case(NamedTuple):
    op: str
    device: str
    dtype: torch.dtype  # of queries, keys and values
    state_dtype: torch.dtype
    key_size: int
    n_tokens: int


def chosen(
    op: str,
    *,
    device: str | torch.device = "cuda",
    dtype: torch.dtype = torch.float32,
    state_dtype: torch.dtype = torch.float32,
    key_size: int = 64,
    n_tokens: int = 4096,
) -> Choice:
    """What would compute `op` for such inputs, and why; nothing is run.

    >>> chosen("gla", device="cpu").why
    'on a CPU torch is the fastest that there is'

    Raises `ConfigError` for an op that is not in `OPS`, and where `use` or MEMSEQ_KERNELS asks for what cannot be had.
    """
    if op not in OPS:
        raise ConfigError(f"there is no op {op!r} with a choice of kernels; {nearest(op, list(OPS))}")
    return _choice(_Case(op, torch.device(device).type, dtype, state_dtype, key_size, n_tokens))


@contextmanager
def use(kernel: str) -> Generator[None]:
    """Inside, every op runs on `kernel` (torch, triton or fla), or raises `ConfigError`; before MEMSEQ_KERNELS."""
    token = _asked.set(_known(kernel, "use"))
    try:
        yield
    finally:
        _asked.reset(token)


def kernel_for(op: str, k: Tensor, v: Tensor, S: Tensor) -> Callable[..., Any] | None:
    """The op as another kernel than torch computes it, with the signature of the op; None: torch's own form, which asks."""
    if torch.compiler.is_compiling() or (S.device.type == "cpu" and _wanted() is None):
        return None
    dtype = torch.promote_types(k.dtype, v.dtype)
    choice = _choice(_Case(op, S.device.type, dtype, S.dtype, k.shape[-1], v.shape[-2]))
    return None if choice.kernel == "torch" else _program(choice.kernel, op)


def _wanted() -> str | None:
    return _asked.get() or os.environ.get(VARIABLE) or None


def _known(kernel: str, where: str) -> str:
    if kernel not in KERNELS:
        raise ConfigError(f"{where} asks for the kernels {kernel!r}, which do not exist; {nearest(kernel, list(KERNELS))}")
    return kernel


def _choice(case: _Case) -> Choice:
    wanted = _wanted()
    if wanted is not None:
        _known(wanted, VARIABLE if _asked.get() is None else "use")
    if case.n_tokens == 1:
        return Choice("torch", "one token is read by the definition", {})
    if wanted is None:
        return _best(case)
    why_not = None if wanted == "torch" else _impossible(wanted, case)
    if why_not is not None:
        raise ConfigError(f"{case.op} was to run on {wanted}, which cannot be: {why_not}; ask for torch, or for nothing")
    return Choice(wanted, "it was asked for", {})


def _best(case: _Case) -> Choice:
    if case.device == "cpu":
        return Choice("torch", "on a CPU torch is the fastest that there is", {})
    refused: dict[str, str] = {}
    for kernel in KERNELS[:-1]:
        why_not = _impossible(kernel, case) or _unasked(kernel, case)
        if why_not is None:
            return Choice(kernel, f"{PACKAGES[kernel]} is installed and has {case.op}", refused)
        refused[kernel] = why_not
    return Choice("torch", "it computes every case, and nothing is preferred to it in this one", refused)


def _impossible(kernel: str, case: _Case) -> str | None:
    """Why `kernel` cannot compute the case at all; None where it can."""
    if kernel not in OPS[case.op]:
        return f"{PACKAGES[kernel]} has no kernel for {case.op} here"
    if missing := [package for package in ("fla", "triton")[KERNELS.index(kernel) :] if not _installed(package)]:
        return f"{' and '.join(PACKAGES[package] for package in missing)} not installed (pip install 'memseq[gpu]')"
    if case.device != "cuda" and not (kernel == "triton" and _interpreted()):
        return f"its kernels run on CUDA, and this is {case.device}"
    if case.state_dtype != torch.float32 or case.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return f"its states are float32 and its inputs no wider, and these are {case.state_dtype} and {case.dtype}"
    largest = LARGEST_KEY[kernel].get(case.op)
    if largest is not None and case.key_size > largest:
        return f"its keys have {largest} channels at most, and these have {case.key_size}"
    return None


def _unasked(kernel: str, case: _Case) -> str | None:
    """Why nobody should find `kernel` chosen for him."""
    if kernel == "triton":
        return "its kernels have not been measured on a GPU yet: they run where they are asked for"
    if case.dtype != torch.float32:
        return None
    if case.op == "channel":
        return "its kernel does not promise float32 on every GPU; inputs of bfloat16 are taken"
    if torch.get_float32_matmul_precision() == "highest":
        return "it rounds float32 products to TF32, which torch.set_float32_matmul_precision('high') would allow"
    return None


@cache
def _installed(package: str) -> bool:
    return find_spec(package) is not None


def _interpreted() -> bool:
    return os.environ.get("TRITON_INTERPRET") == "1"


@cache
def _program(kernel: str, op: str) -> Callable[..., Any]:
    """Imported when it is first needed: neither Triton nor fla comes with `import memseq`."""
    if kernel == "fla":
        from memseq.ops.kernels import fla_core

        return getattr(fla_core, op)
    if op in ("decay", "delta_rule"):
        from memseq.ops.kernels import matrix

        return getattr(matrix, op)
    from memseq.ops.kernels import elementwise

    return getattr(elementwise, op)
