"""Operations on vectors of eight numbers in LLVM's terms: the building blocks of `pipelines.kernels.vectors`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numba.extending
from llvmlite import ir
from numba.core import cgutils

# Numbers to a vector, and the side of a tile that is transposed in registers. Eight floats fill an AVX register; where
# registers are narrower (SSE, NEON), LLVM splits the vector.
SIDE = 8
FLOATS = ir.VectorType(ir.FloatType(), SIDE)
BYTE, FLOAT = ir.IntType(8), ir.FloatType()
FUSED = ("contract",)  # allows a fused multiply-add; see `pipelines.kernels.bands._FAST` for what is not allowed


def intrinsic(function: Callable[..., Any]) -> Callable[..., None]:
    """numba.extending.intrinsic, typed as what compiled code calls: no first argument, no result."""
    return numba.extending.intrinsic(function)  # pyright: ignore[reportReturnType]


class Totals:
    """Sums that stay in registers over a loop.

    Written as variables in memory: LLVM turns those into registers (mem2reg), which saves writing phi nodes by hand.
    """

    def __init__(self, builder: Any, count: int) -> None:
        # allocated once, in the function's entry, but set to zero here: the call may be in a loop
        self._places = [cgutils.alloca_once_value(builder, constant(0.0)) for _ in range(count)]

    def add(self, builder: Any, number: int, weight: Any, values: Any) -> None:
        """Add ``weight * values`` to a sum."""
        total = multiply_add(builder, spread(builder, weight), values, builder.load(self._places[number]))
        builder.store(total, self._places[number])

    def value(self, builder: Any, number: int) -> Any:
        """A sum's present value."""
        return builder.load(self._places[number])


@contextmanager
def summing(builder: Any, taps: Any, count: int) -> Iterator[tuple[Any, Totals]]:
    """A loop over taps; yields its index and the sums."""
    totals = Totals(builder, count)
    with cgutils.for_range(builder, taps) as loop:
        yield loop.index, totals


def transposed(builder: Any, lines: list[Any]) -> list[Any]:
    """Transpose eight vectors of eight.

    In three rounds, at the distances 4, 2 and 1: two vectors that far apart swap the off-diagonal squares of that side.
    24 shuffles in registers take the place of 64 loads and stores of single numbers.
    """
    lines = list(lines)
    for distance in (4, 2, 1):
        for upper in (line for line in range(SIDE) if not line & distance):
            a, b = lines[upper], lines[upper + distance]
            lanes = range(SIDE)
            left = [SIDE + lane - distance if lane & distance else lane for lane in lanes]
            right = [SIDE + lane if lane & distance else lane + distance for lane in lanes]
            lines[upper] = builder.shuffle_vector(a, b, _mask(left))
            lines[upper + distance] = builder.shuffle_vector(a, b, _mask(right))
    return lines


def spread(builder: Any, number: Any) -> Any:
    """A vector with one number in all eight places."""
    undefined = ir.Constant(FLOATS, ir.Undefined)
    first = builder.insert_element(undefined, number, ir.Constant(ir.IntType(32), 0))
    return builder.shuffle_vector(first, undefined, _mask([0] * SIDE))


def multiply_add(builder: Any, a: Any, b: Any, c: Any) -> Any:
    """``a * b + c``, in one instruction where the machine has one."""
    return builder.fadd(builder.fmul(a, b, flags=FUSED), c, flags=FUSED)


def limited(builder: Any, values: Any, least: Any, most: Any) -> Any:
    """Values clamped to [least, most]."""
    values = builder.select(builder.fcmp_ordered("<", values, least), least, values)
    return builder.select(builder.fcmp_ordered(">", values, most), most, values)


def constant(value: float) -> ir.Constant:
    """A vector of one constant."""
    return ir.Constant(FLOATS, [value] * SIDE)


def _mask(lanes: list[int]) -> ir.Constant:
    return ir.Constant(ir.VectorType(ir.IntType(32), SIDE), lanes)


def plus(builder: Any, number: Any, more: int) -> Any:
    """An index plus a constant."""
    return builder.add(number, ir.Constant(number.type, more))


def place(context: Any, builder: Any, kind: Any, array: Any, *indices: Any) -> Any:
    """Pointer to an element of a contiguous array of one or two dimensions; no bounds are checked."""
    made = context.make_array(kind)(context, builder, array)
    at = indices[0]
    if len(indices) == 2:
        _, columns = cgutils.unpack_tuple(builder, made.shape, 2)
        at = builder.add(builder.mul(at, columns), indices[1])
    return builder.gep(made.data, [at])


def load(builder: Any, at: Any, lane: ir.Type) -> Any:
    """Load eight numbers. They are seldom aligned to a vector's size, and LLVM must not assume that they are."""
    return builder.load(builder.bitcast(at, ir.VectorType(lane, SIDE).as_pointer()), align=1)


def store(builder: Any, vector: Any, at: Any) -> None:
    """Store eight numbers, aligned or not."""
    builder.store(vector, builder.bitcast(at, vector.type.as_pointer()), align=1)
