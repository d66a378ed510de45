"""What Numba's compiled code needs beyond `shards.kernels.llvm`: intrinsics, its arrays, and sums of floats."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba.extending
from llvmlite import ir
from numba.core import cgutils

from shards.kernels.llvm import SIDE

FLOAT = ir.FloatType()
FLOATS = ir.VectorType(FLOAT, SIDE)
FUSED = ("contract",)  # allows a fused multiply-add; see `pipelines.kernels.bands._FAST` for what is not allowed


def intrinsic(function: Callable[..., Any]) -> Callable[..., None]:
    """numba.extending.intrinsic, typed as what compiled code calls: no first argument, no result."""
    return numba.extending.intrinsic(function)  # pyright: ignore[reportReturnType]


def multiply_add(builder: Any, a: Any, b: Any, c: Any) -> Any:
    """``a * b + c``, in one instruction where the machine has one."""
    return builder.fadd(builder.fmul(a, b, flags=FUSED), c, flags=FUSED)


def limited(builder: Any, values: Any, least: Any, most: Any) -> Any:
    """Values clamped to [least, most]."""
    values = builder.select(builder.fcmp_ordered("<", values, least), least, values)
    return builder.select(builder.fcmp_ordered(">", values, most), most, values)


def plus(builder: Any, number: Any, more: int) -> Any:
    """An index plus a constant."""
    return builder.add(number, ir.Constant(number.type, more))


def start(context: Any, builder: Any, kind: Any, array: Any) -> Any:
    """Pointer to the first element of a contiguous array."""
    return context.make_array(kind)(context, builder, array).data


def place(context: Any, builder: Any, kind: Any, array: Any, row: Any, column: Any) -> Any:
    """Pointer to an element of a contiguous matrix; no bounds are checked."""
    made = context.make_array(kind)(context, builder, array)
    _, columns = cgutils.unpack_tuple(builder, made.shape, 2)
    return builder.gep(made.data, [builder.add(builder.mul(row, columns), column)])
