"""Triton kernels compiled for GPUs that need not be in this machine."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Compiled:
    """A kernel, and what ptxas reports.

    Attributes:
        kernel: as triton.compile returns it.
        registers: of a thread.
        spilled: bytes that a thread stores for want of registers.
    """

    kernel: Any
    registers: int
    spilled: int


def compiled(
    kernel: Any,
    types: Mapping[str, str],
    constants: Mapping[str, Any],
    capability: int,
    folder: Path,
    *,
    divisible: Container[str],
    **options: Any,
) -> Compiled:
    """Compile a kernel to machine code.

    Args:
        kernel: the function under triton.jit.
        types: of its arguments by name, `*bf16`; the others are constants.
        constants: their values by name; None for those that are missing.
        capability: 90 for sm_90.
        folder: for intermediate files.
        divisible: arguments that are multiples of 16, or addresses of such.
        options: of triton.compile, `num_warps`.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    signature = {argument: types.get(argument, "constexpr") for argument in kernel.arg_names}
    values = {argument: constants.get(argument) for argument, kind in signature.items() if kind == "constexpr"}
    aligned = {(place,): [["tt.divisibility", 16]] for place, name in enumerate(signature) if name in divisible}
    source = ASTSource(kernel, signature, values, aligned)
    result: Any = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    (folder / "kernel.ptx").write_text(result.asm["ptx"])
    tools = triton.knobs.nvidia  # pyright: ignore[reportAttributeAccessIssue]  (it comes with the import of compiler)
    ptxas = tools.ptxas_blackwell if capability >= 100 else tools.ptxas
    line = [ptxas.path, "-v", f"--gpu-name=sm_{capability}{'a' * (capability >= 90)}", "kernel.ptx", "-o", "cubin"]
    done = subprocess.run(line, cwd=folder, capture_output=True, text=True)
    report = done.stderr + done.stdout
    assert done.returncode == 0, report
    registers, spilled = re.search(r"Used (\d+) registers", report), re.search(r"(\d+) bytes spill stores", report)
    assert registers and spilled, report
    return Compiled(result, int(registers[1]), int(spilled[1]))


def by_name(kernel: Any, types: Sequence[str], constants: Mapping[str, Any]) -> dict[str, str]:
    """The types of a kernel's arguments by name, given in their order; its constants come after them."""
    assert kernel.arg_names[len(types) :] == list(constants), kernel.arg_names
    return dict(zip(kernel.arg_names[: len(types)], types, strict=True))
