"""Triton kernels compiled for GPUs that need not be in this machine, and the resources that their programs use."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SHARED_KIB = {80: (163, 164), 86: (99, 100), 89: (99, 100), 90: (227, 228), 100: (227, 228), 120: (99, 100)}
"""Shared memory of a program at most, and of a multiprocessor, by architecture (CUDA programming guide)."""
_THREADS = {80: 2048, 86: 1536, 89: 1536, 90: 2048, 100: 2048, 120: 1536}
_REGISTERS = 65_536
_RESERVED = 1024  # bytes of shared memory that the driver adds to each program's
_COLUMNS = 512  # tensor memory of a multiprocessor
_INSTRUCTIONS = {
    "mma": r"\bmma\.sync",
    "wgmma": r"\bwgmma\.mma_async",
    "tcgen05": r"\btcgen05\.mma",
    "async_copies": r"\bcp\.async\.cg\.shared",
}


@dataclass(frozen=True)
class Compiled:
    """A kernel, and what ptxas reports.

    Attributes:
        kernel: as triton.compile returns it.
        capability: 90 for sm_90.
        registers: of a thread.
        spilled: bytes that a thread stores for want of registers.
    """

    kernel: Any
    capability: int
    registers: int
    spilled: int

    @property
    def shared(self) -> int:
        """Bytes of shared memory of a program."""
        return self.kernel.metadata.shared

    @property
    def tensor_columns(self) -> int:
        """Columns of tensor memory (Blackwell) of a program."""
        return getattr(self.kernel.metadata, "tmem_size", None) or 0

    @property
    def programs(self) -> int:
        """Programs that fit on a multiprocessor at once."""
        threads = 32 * self.kernel.metadata.num_warps
        registers = -(-self.registers // 8) * 8 * threads  # allocated in eights
        fitting = [_REGISTERS // registers, _THREADS[self.capability] // threads]
        fitting.append(SHARED_KIB[self.capability][1] * 1024 // (self.shared + _RESERVED))
        if self.tensor_columns:
            fitting.append(_COLUMNS // self.tensor_columns)
        return min(fitting)

    def count(self, instruction: str) -> int:
        """How often the code has mma, wgmma, tcgen05 (matrix products), or async_copies (cp.async, of 16 bytes)."""
        return len(re.findall(_INSTRUCTIONS[instruction], self.kernel.asm["ptx"]))

    def row(self) -> dict[str, int]:
        """All figures by name."""
        found = {"registers": self.registers, "spilled_bytes": self.spilled, "shared_bytes": self.shared}
        found |= {"tensor_columns": self.tensor_columns, "programs": self.programs}
        return found | {name: self.count(name) for name in _INSTRUCTIONS}


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

    Raises:
        RuntimeError: ptxas refused the code.
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
    registers, spilled = re.search(r"Used (\d+) registers", report), re.search(r"(\d+) bytes spill stores", report)
    if done.returncode != 0 or not registers or not spilled:
        raise RuntimeError(report)
    return Compiled(result, capability, int(registers[1]), int(spilled[1]))


def by_name(kernel: Any, types: Sequence[str], constants: Mapping[str, Any]) -> dict[str, str]:
    """The types of a kernel's arguments by name, given in their order; its constants come after them."""
    if kernel.arg_names[len(types) :] != list(constants):
        raise ValueError(f"{kernel.arg_names} do not end in {list(constants)}")
    return dict(zip(kernel.arg_names[: len(types)], types, strict=True))
