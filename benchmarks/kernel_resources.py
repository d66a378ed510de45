"""Registers, spills, shared memory and matrix instructions of the Triton kernels, by architecture; needs no GPU.

    python benchmarks/kernel_resources.py [--architectures 80 90 100] [--json OUT]

Compiles each kernel as the product launches it, and reads what ptxas reports. `programs` is how many fit on a
multiprocessor at once, by registers, shared memory, threads and tensor memory.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from _command import BenchmarkError, script
from _environment import environment
from _ptxas import SHARED_KIB, Compiled
from _results import write_beside, write_json


@dataclass(frozen=True)
class Args:
    """Resources of the Triton kernels by architecture, as ptxas reports them."""

    architectures: tuple[int, ...] = (80, 86, 90, 100)
    """Compute capabilities to compile for: 90 for sm_90."""
    json: Path | None = None
    """File for the rows and the environment; the table (.md) is written beside it."""


def run(args: Args) -> None:
    """Compile, print the table, and write rows and table."""
    unknown = set(args.architectures) - set(SHARED_KIB)
    if unknown:
        known = " ".join(map(str, SHARED_KIB))
        raise BenchmarkError(f"--architectures {min(unknown)} is not known; use some of {known}")
    if not find_spec("triton"):
        raise BenchmarkError("Triton is not installed; use torch on Linux, which brings it")
    with tempfile.TemporaryDirectory() as folder:
        rows = [
            {"kernel": kernel, "dtype": str(dtype).removeprefix("torch."), "d": dim, "architecture": f"sm_{capability}"}
            | found.row()
            for capability in args.architectures
            for kernel, dtype, dim, found in kernels(capability, Path(folder))
        ]
    text = markdown(rows)
    print(text, end="")
    if args.json:
        import triton

        write_json(args.json, {"environment": environment(), "triton": triton.__version__, "rows": rows})
        write_beside(args.json, text)


def kernels(capability: int, folder: Path) -> Iterator[tuple[str, torch.dtype, int | None, Compiled]]:
    """All kernels: name, dtype, dimensions of the keys, and figures."""
    import _kernels
    from fastmoco.kernels.dispatch import MAX_DIM

    for dtype, most in MAX_DIM.items():
        for dim in (64, 128, 256):
            if dim <= most:
                yield "infonce walk", dtype, dim, _kernels.walk(dtype, dim, capability, folder)
                yield "enqueue", dtype, dim, _kernels.enqueue(dtype, dim, capability, folder)
    for dim in (128, 256):
        yield "infonce combine", torch.float32, dim, _kernels.combine(dim, capability, folder)
    for name, images in _kernels.BATCH_NORM.items():
        for dtype in (torch.float32, torch.bfloat16) if images else (torch.float32,):
            yield f"batch norm {name}", dtype, None, _kernels.batch_norm(name, dtype, capability, folder)
    for dtype in (torch.float32, torch.bfloat16):
        yield "colours", dtype, None, _kernels.colours(dtype, capability, folder)


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as a table."""
    names = list(rows[0])
    lines = ["Resources of the Triton kernels, as compiled without a GPU.", ""]
    lines.append(f"| {' | '.join(name.replace('_', ' ') for name in names)} |")
    lines.append("| --- | --- | --: | --- |" + " --: |" * (len(names) - 4))
    # the keys' dimensions do not apply to all kernels
    lines += [f"| {' | '.join('' if row[name] is None else str(row[name]) for name in names)} |" for row in rows]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    script(Args, run)
