"""Words for writing loops over vectors in LLVM's terms: the building blocks of `shards.kernels.filtering`.

Nothing here is particular to a processor: LLVM translates vectors of eight to the machine's own, splits them where
registers are narrower (SSE, NEON), and finds its multiply-adds of pairs (`multiplied_pairs`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import ir

SIDE = 8
"""Numbers to a vector of sums, and the side of a tile that is transposed in registers."""
BYTE, SHORT, INT, INDEX = ir.IntType(8), ir.IntType(16), ir.IntType(32), ir.IntType(64)


def loop(
    builder: Any, count: Any, body: Callable[[Any, list[Any]], Sequence[Any]], carried: Sequence[Any] = ()
) -> list[Any]:
    """Repeat `body` with an index from 0 to `count` - 1.

    Args:
        builder: LLVM's.
        count: 1 or more; the loop tests its condition at the end, as machines do.
        body: from the index and the carried values to their next ones.
        carried: values that one pass hands to the next, in registers.

    Returns:
        The carried values after the last pass.
    """
    count = number(count) if isinstance(count, int) else count
    before, inside = builder.block, builder.append_basic_block("loop")
    builder.branch(inside)
    builder.position_at_end(inside)
    index = builder.phi(INDEX)
    values = [builder.phi(value.type) for value in carried]
    after = list(body(index, values))
    following, last = builder.add(index, number(1)), builder.block
    for phi, first, next_value in zip([index, *values], [number(0), *carried], [following, *after], strict=True):
        phi.add_incoming(first, before)
        phi.add_incoming(next_value, last)
    end = builder.append_basic_block("end")
    builder.cbranch(builder.icmp_unsigned("<", following, count), inside, end)
    builder.position_at_end(end)
    return after


def number(value: int) -> ir.Constant:
    """An index."""
    return ir.Constant(INDEX, value)


def multiplied(builder: Any, *factors: Any) -> Any:
    """Product of indices."""
    product, *rest = (number(factor) if isinstance(factor, int) else factor for factor in factors)
    for factor in rest:
        product = builder.mul(product, factor)
    return product


def added(builder: Any, *terms: Any) -> Any:
    """Sum of indices."""
    total, *rest = (number(term) if isinstance(term, int) else term for term in terms)
    for term in rest:
        total = builder.add(total, term)
    return total


def smaller(builder: Any, a: Any, b: Any) -> Any:
    """The smaller of two indices."""
    return builder.select(builder.icmp_signed("<", a, b), a, b)


def element(builder: Any, start: Any, *terms: Any) -> Any:
    """Pointer to the element at the sum of indices; no bounds are checked."""
    return builder.gep(start, [added(builder, *terms)])


def load(builder: Any, at: Any, lane: ir.Type, lanes: int = SIDE) -> Any:
    """Load a vector. They are seldom aligned to a vector's size, and LLVM must not assume that they are."""
    return builder.load(builder.bitcast(at, ir.VectorType(lane, lanes).as_pointer()), align=1)


def store(builder: Any, vector: Any, at: Any) -> None:
    """Store a vector, aligned or not."""
    builder.store(vector, builder.bitcast(at, vector.type.as_pointer()), align=1)


def shuffled(builder: Any, a: Any, b: Any, lanes: Sequence[int]) -> Any:
    """The given lanes of two vectors, those of the second counted on."""
    return builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(INT, len(lanes)), list(lanes)))


def constant(kind: ir.Type, value: float, lanes: int = SIDE) -> ir.Constant:
    """A vector of one constant."""
    return ir.Constant(ir.VectorType(kind, lanes), [value] * lanes)


def spread(builder: Any, value: Any, lanes: int = SIDE) -> Any:
    """A vector with one number in all places."""
    undefined = ir.Constant(ir.VectorType(value.type, lanes), ir.Undefined)
    first = builder.insert_element(undefined, value, ir.Constant(INT, 0))
    return shuffled(builder, first, undefined, [0] * lanes)


def interleaved(builder: Any, a: Any, b: Any) -> tuple[Any, Any]:
    """The vector a0 b0 a1 b1 … in two halves."""
    lanes = a.type.count
    order = [lane for pair in zip(range(lanes), range(lanes, 2 * lanes), strict=True) for lane in pair]
    return shuffled(builder, a, b, order[:lanes]), shuffled(builder, a, b, order[lanes:])


def multiplied_pairs(builder: Any, values: Any, weights: Any) -> Any:
    """``values[2 * i] * weights[2 * i] + values[2 * i + 1] * weights[2 * i + 1]`` of int16 in int32.

    Written so that LLVM finds the one instruction for it that x86 has (pmaddwd).
    """
    wide = ir.VectorType(INT, values.type.count)
    products = builder.mul(builder.sext(values, wide), builder.sext(weights, wide), flags=("nsw",))
    even = list(range(0, values.type.count, 2))
    odd = [lane + 1 for lane in even]
    return builder.add(*(shuffled(builder, products, products, lanes) for lanes in (even, odd)))


def narrowed(builder: Any, vectors: Sequence[Any], lane: ir.IntType, least: int, most: int) -> Any:
    """One vector of all lanes in a smaller type, clamped to [least, most].

    The limits are those of the type, also where nothing exceeds them: x86 packs vectors with saturation (packssdw).
    """
    vectors = list(vectors)
    while len(vectors) > 1:
        count = 2 * vectors[0].type.count
        halves = zip(vectors[::2], vectors[1::2], strict=True)
        vectors = [shuffled(builder, a, b, range(count)) for a, b in halves]
    (wide,) = vectors
    for limit, order in ((least, "<"), (most, ">")):
        bound = constant(INT, limit, wide.type.count)
        wide = builder.select(builder.icmp_signed(order, wide, bound), bound, wide)
    return builder.trunc(wide, ir.VectorType(lane, wide.type.count))


def transposed(builder: Any, lines: list[Any]) -> list[Any]:
    """Transpose eight vectors of eight.

    Three times, lines four apart are interleaved, and the results take each other's place: 24 shuffles in registers
    instead of 64 loads and stores of single numbers.
    """
    for _ in range(3):
        pairs = zip(lines[: SIDE // 2], lines[SIDE // 2 :], strict=True)
        lines = [half for a, b in pairs for half in interleaved(builder, a, b)]
    return lines
