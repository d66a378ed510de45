"""Eight numbers at once in LLVM's terms: what the vector instructions of `_vectors` are put together from."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numba.extending
from llvmlite import ir
from numba.core import cgutils

SIDE = 8
FLOATS = ir.VectorType(ir.FloatType(), SIDE)
BYTE, FLOAT = ir.IntType(8), ir.FloatType()
FUSED = ("contract",)  # a product and its sum may be one instruction


def intrinsic(function: Callable[..., Any]) -> Callable[..., None]:
    """numba.extending.intrinsic, for functions called without their first argument and for their effect alone."""
    return numba.extending.intrinsic(function)  # pyright: ignore[reportReturnType]


class Totals:
    """Sums that stay in registers over a loop."""

    def __init__(self, builder: Any, count: int) -> None:
        self._places = [cgutils.alloca_once_value(builder, constant(0.0)) for _ in range(count)]

    def add(self, builder: Any, number: int, weight: Any, values: Any) -> None:
        """Add ``weight * values`` to a sum."""
        total = multiply_add(builder, spread(builder, weight), values, builder.load(self._places[number]))
        builder.store(total, self._places[number])

    def value(self, builder: Any, number: int) -> Any:
        """A sum."""
        return builder.load(self._places[number])


@contextmanager
def summing(builder: Any, taps: Any, count: int) -> Iterator[tuple[Any, Totals]]:
    """A loop over taps; gives its number and the sums."""
    totals = Totals(builder, count)
    for at in totals._places:
        builder.store(constant(0.0), at)  # anew each time: the room is the function's, not the loop's
    with cgutils.for_range(builder, taps) as loop:
        yield loop.index, totals


def transposed(builder: Any, lines: list[Any]) -> list[Any]:
    """Eight vectors of eight; at each distance 4, 2, 1, vectors that far apart change their off-diagonal squares."""
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
    """A number in all eight places."""
    undefined = ir.Constant(FLOATS, ir.Undefined)
    first = builder.insert_element(undefined, number, ir.Constant(ir.IntType(32), 0))
    return builder.shuffle_vector(first, undefined, _mask([0] * SIDE))


def multiply_add(builder: Any, a: Any, b: Any, c: Any) -> Any:
    """The sum ``a * b + c``, in one instruction where there is one."""
    return builder.fadd(builder.fmul(a, b, flags=FUSED), c, flags=FUSED)


def limited(builder: Any, values: Any, least: Any, most: Any) -> Any:
    """Values cut off at two limits."""
    values = builder.select(builder.fcmp_ordered("<", values, least), least, values)
    return builder.select(builder.fcmp_ordered(">", values, most), most, values)


def constant(value: float) -> ir.Constant:
    """The same number eight times."""
    return ir.Constant(FLOATS, [value] * SIDE)


def _mask(lanes: list[int]) -> ir.Constant:
    return ir.Constant(ir.VectorType(ir.IntType(32), SIDE), lanes)


def plus(builder: Any, number: Any, more: int) -> Any:
    """An index and a constant."""
    return builder.add(number, ir.Constant(number.type, more))


def place(context: Any, builder: Any, kind: Any, array: Any, *indices: Any) -> Any:
    """Pointer to a number of a contiguous array."""
    made = context.make_array(kind)(context, builder, array)
    at = indices[0]
    if len(indices) == 2:
        _, columns = cgutils.unpack_tuple(builder, made.shape, 2)
        at = builder.add(builder.mul(at, columns), indices[1])
    return builder.gep(made.data, [at])


def load(builder: Any, at: Any, lane: ir.Type) -> Any:
    """Eight numbers."""
    return builder.load(builder.bitcast(at, ir.VectorType(lane, SIDE).as_pointer()), align=1)


def store(builder: Any, vector: Any, at: Any) -> None:
    """Eight numbers into an array, wherever they lie."""
    builder.store(vector, builder.bitcast(at, vector.type.as_pointer()), align=1)
