"""A separable filter of an image in 16-bit integers: weighted sums down the columns, then along the rows.

Weights and the values between the two passes are int16, sums int32, so nothing depends on the order of the additions
or on the machine. What makes it fast: two neighbouring numbers of a sum are multiplied and added by one instruction
(x86's pmaddwd), for which rows, and later columns, are woven into pairs; the sums stay in registers; and both passes
sum over neighbouring numbers, because a block of rows is transposed in between. `shards.kernels.reference` computes
the same in NumPy.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llvmlite import ir

from shards.kernels.filters import RUN, STRIP
from shards.kernels.llvm import (
    BYTE,
    INDEX,
    INT,
    SHORT,
    SIDE,
    added,
    constant,
    element,
    interleaved,
    load,
    loop,
    multiplied,
    multiplied_pairs,
    narrowed,
    number,
    shuffled,
    smaller,
    spread,
    store,
    transposed,
)

_POINTERS = {"image": BYTE, "down_at": INDEX, "down": SHORT, "along_at": INDEX, "along": SHORT, "pairs": SHORT}
_POINTERS |= {"turned": SHORT, "woven": SHORT, "levels": BYTE}
ARGUMENTS = (
    "image", "stride", "rows", "pixels", "channels", "down_at", "down", "down_pairs", "blocks", "along_at", "along",
    "along_pairs", "width", "down_shift", "along_shift", "pairs", "turned", "woven", "levels",
)  # fmt: skip
"""Of the compiled function; pointers and int64.

- image: uint8, at the first number of the first row.
- stride: numbers from one row to the next.
- rows, pixels, channels: size of the image, or of the part of it that the sums read; STRIP numbers in a row or more.
- down_at: int64[blocks * RUN], the first pair of rows of each sum, in ascending order.
- down: int16[blocks * RUN, 2 * down_pairs], its weights; zero where they meet rows outside of the image.
- blocks: of RUN rows, of the result.
- along_at, along, along_pairs, width: the same for the columns; width sums.
- down_shift, along_shift: by how many bits the sums are divided, which are rounded. Between the passes values
  are int16, the last ones are clamped to 0 and 255.
- pairs, turned, woven: int16, working memory (`shards.kernels.filters.room`).
- levels: uint8[width * channels, blocks * RUN], written to: the result, transposed.
"""


def filtering(module: ir.Module, to_even: bool) -> ir.Function:
    """The function in a module: written to it, or found there.

    Args:
        module: LLVM's.
        to_even: whether sums halfway between two numbers are rounded to the even one, and not up, which is faster.
    """
    name = f"shards_filtering_{'to_even' if to_even else 'up'}"
    if name in module.globals:
        return module.globals[name]
    kinds = [_POINTERS[a].as_pointer() if a in _POINTERS else INDEX for a in ARGUMENTS]
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), kinds), name)
    function.linkage = "linkonce_odr"  # several modules of a program may have it
    for argument in function.args:
        if argument.type.is_pointer:
            argument.add_attribute("noalias")
    builder = ir.IRBuilder(function.append_basic_block("entry"))
    _Filter(builder, dict(zip(ARGUMENTS, function.args, strict=True)), to_even).write()
    builder.ret_void()
    return function


def laying_down(module: ir.Module) -> ir.Function:
    """A function that transposes `levels`, uint8[lines, rows], to `out`, uint8[rows, stride]: tiles of 8 x 8 numbers.

    Its arguments: levels, lines, rows, out, stride. Lines and rows are rounded up to whole tiles, which both have room
    for.
    """
    pointer = BYTE.as_pointer()
    kinds = [pointer, INDEX, INDEX, pointer, INDEX]
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), kinds), "shards_laying_down")
    levels, lines, rows, out, stride = function.args
    b = ir.IRBuilder(function.append_basic_block("entry"))

    def tiles(b: Any, length: Any) -> Any:
        return b.udiv(added(b, length, SIDE - 1), number(SIDE))

    def tile(down: Any, across: Any) -> Sequence[Any]:
        row, line = multiplied(b, down, SIDE), multiplied(b, across, SIDE)
        tile = [load(b, element(b, levels, multiplied(b, added(b, line, i), rows), row), BYTE) for i in range(SIDE)]
        for i, numbers in enumerate(transposed(b, tile)):
            store(b, numbers, element(b, out, multiplied(b, added(b, row, i), stride), line))
        return ()

    loop(b, tiles(b, rows), lambda down, _: loop(b, tiles(b, lines), lambda across, _: tile(down, across)))
    b.ret_void()
    return function


class _Filter:
    """Writes the function's body."""

    def __init__(self, builder: Any, arguments: dict[str, Any], to_even: bool) -> None:
        self._b, self._of, self._to_even = builder, arguments, to_even
        # of one strip and block: rows of sums
        self._sums = builder.alloca(SHORT, RUN * STRIP)
        self._used = multiplied(builder, arguments["pixels"], arguments["channels"])

    def write(self) -> None:
        b, of = self._b, self._of
        strips = b.udiv(added(b, self._used, STRIP - 1), number(STRIP))
        pixel_pairs = b.udiv(added(b, of["pixels"], 1), number(2))

        def block(at: Any, _: Sequence[Any]) -> Sequence[Any]:
            row = multiplied(b, at, RUN)
            base = b.load(element(b, of["down_at"], row))
            last = b.load(element(b, of["down_at"], row, RUN - 1))
            count = b.sub(added(b, last, of["down_pairs"]), base)
            loop(b, strips, lambda strip, _: self._strip(strip, row, base, count))
            loop(b, pixel_pairs, lambda pair, _: self._per_channel(pair, self._weave))
            loop(b, of["width"], lambda x, _: self._per_channel(x, lambda x, c: self._along(x, c, row)))
            return ()

        loop(b, of["blocks"], block)

    def _per_channel(self, at: Any, body: Any) -> Sequence[Any]:
        loop(self._b, self._of["channels"], lambda channel, _: body(at, channel) or ())
        return ()

    def _strip(self, strip: Any, row: Any, base: Any, count: Any) -> Sequence[Any]:
        """Sums down the columns of STRIP numbers, transposed into `turned`."""
        b, of = self._b, self._of
        # the last strip begins further left, and computes some numbers again
        column = smaller(b, multiplied(b, strip, STRIP), b.sub(self._used, number(STRIP)))
        loop(b, count, lambda pair, _: self._pair_rows(pair, base, column))

        def down(y: Any, _: Sequence[Any]) -> Sequence[Any]:
            at = b.sub(b.load(element(b, of["down_at"], row, y)), base)
            weights = element(b, of["down"], multiplied(b, added(b, row, y), of["down_pairs"], 2))
            values = element(b, of["pairs"], multiplied(b, at, 2 * STRIP))
            sums = self._summed(STRIP, values, number(2 * STRIP), weights, of["down_pairs"], of["down_shift"])
            for part in range(0, len(sums), 2):
                shorts = narrowed(b, sums[part : part + 2], SHORT, -(2**15), 2**15 - 1)
                store(b, shorts, element(b, self._sums, multiplied(b, y, STRIP), part * SIDE))
            return ()

        loop(b, RUN, down)

        def turn(tile: Any, _: Sequence[Any]) -> Sequence[Any]:
            first = multiplied(b, tile, SIDE)
            for across in range(0, STRIP, SIDE):
                lines = [
                    load(b, element(b, self._sums, multiplied(b, added(b, first, i), STRIP), across), SHORT)
                    for i in range(SIDE)
                ]
                for i, line in enumerate(transposed(b, lines)):
                    to = multiplied(b, added(b, column, across + i), RUN)
                    store(b, line, element(b, of["turned"], to, first))
            return ()

        loop(b, RUN // SIDE, turn)
        return ()

    def _pair_rows(self, pair: Any, base: Any, column: Any) -> Sequence[Any]:
        """Two rows of a strip woven into pairs of int16."""
        b, of = self._b, self._of
        upper = multiplied(b, added(b, base, pair), 2)
        last = b.sub(of["rows"], number(1))
        # below the image weights are zero: any rows will do
        rows = [multiplied(b, smaller(b, row, last), of["stride"]) for row in (upper, added(b, upper, 1))]
        to = multiplied(b, pair, 2 * STRIP)
        for part in range(0, STRIP, 2 * SIDE):
            lines = [load(b, element(b, of["image"], row, column, part), BYTE, 2 * SIDE) for row in rows]
            for half, woven in enumerate(interleaved(b, *lines)):
                wide = b.zext(woven, ir.VectorType(SHORT, 2 * SIDE))
                store(b, wide, element(b, of["pairs"], to, 2 * (part + half * SIDE)))
        return ()

    def _weave(self, pair: Any, channel: Any) -> None:
        """Two columns of a block woven into pairs."""
        b, of = self._b, self._of
        left = added(b, multiplied(b, pair, 2, of["channels"]), channel)
        right = added(b, left, of["channels"])
        to = multiplied(b, added(b, multiplied(b, pair, of["channels"]), channel), 2 * RUN)
        for part in range(0, RUN, SIDE):
            lines = [load(b, element(b, of["turned"], multiplied(b, line, RUN), part), SHORT) for line in (left, right)]
            for half, woven in enumerate(interleaved(b, *lines)):
                store(b, woven, element(b, of["woven"], to, 2 * part + half * SIDE))

    def _along(self, x: Any, channel: Any, row: Any) -> None:
        """A sum along the rows, for all rows of a block."""
        b, of = self._b, self._of
        at = b.load(element(b, of["along_at"], x))
        weights = element(b, of["along"], multiplied(b, x, of["along_pairs"], 2))
        first = multiplied(b, added(b, multiplied(b, at, of["channels"]), channel), 2 * RUN)
        step = multiplied(b, of["channels"], 2 * RUN)
        values = element(b, of["woven"], first)
        height = multiplied(b, of["blocks"], RUN)
        to = added(b, multiplied(b, added(b, multiplied(b, x, of["channels"]), channel), height), row)
        sums = self._summed(RUN, values, step, weights, of["along_pairs"], of["along_shift"])
        store(b, narrowed(b, sums, BYTE, 0, 255), element(b, of["levels"], to))

    def _summed(self, count: int, values: Any, step: Any, weights: Any, pairs: Any, shift: Any) -> list[Any]:
        """Weighted sums of `count` numbers, `step` from pair to pair, divided by 2 ** shift and rounded, as vectors."""
        b = self._b

        def more(pair: Any, totals: list[Any]) -> list[Any]:
            two = load(b, element(b, weights, multiplied(b, pair, 2)), SHORT, 2)
            weight = shuffled(b, two, two, [0, 1] * SIDE)
            at = element(b, values, multiplied(b, pair, step))
            return [
                b.add(total, multiplied_pairs(b, load(b, element(b, at, 2 * SIDE * part), SHORT, 2 * SIDE), weight))
                for part, total in enumerate(totals)
            ]

        one, bits = ir.Constant(INT, 1), b.trunc(shift, INT)
        half = spread(b, b.shl(one, b.sub(bits, one)))
        if not self._to_even:
            sums = loop(b, pairs, more, [half] * (count // SIDE))
            return [b.ashr(total, spread(b, bits)) for total in sums]
        # less than half by one, and again one if the whole number is odd
        sums, below = loop(b, pairs, more, [constant(INT, 0)] * (count // SIDE)), b.sub(half, constant(INT, 1))
        odd = [b.and_(b.ashr(total, spread(b, bits)), constant(INT, 1)) for total in sums]
        return [b.ashr(b.add(b.add(total, below), one), spread(b, bits)) for total, one in zip(sums, odd, strict=True)]
