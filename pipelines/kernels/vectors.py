"""Vector operations that Numba does not generate by itself, for the compiled loops of a view.

Numba vectorises a loop along one array. It neither keeps weighted sums of many lines in registers over a second loop
nor transposes within registers. Both are written in LLVM's terms, eight numbers to a vector, which LLVM translates to
the machine's own instructions. `pipelines.kernels.reference` has the same arithmetic as plain loops.
"""

from __future__ import annotations

from typing import Any

import numba
from llvmlite import ir

from pipelines.kernels.llvm import FLOATS, FUSED, intrinsic, limited, multiply_add, place, plus, start
from shards.kernels.filtering import filtering
from shards.kernels.llvm import BYTE, SIDE, load, spread, store, transposed


@intrinsic
def filter_image(
    typing: Any, image: Any, stride: Any, rows: Any, pixels: Any, channels: Any, down_at: Any, down: Any,
    down_pairs: Any, blocks: Any, along_at: Any, along: Any, along_pairs: Any, width: Any, down_shift: Any,
    along_shift: Any, pairs: Any, turned: Any, woven: Any, levels: Any,
) -> Any:  # fmt: skip
    """`shards.kernels.filtering.filtering`, rounding halves up; its pointers are contiguous arrays."""
    del typing
    arguments = (
        image, stride, rows, pixels, channels, down_at, down, down_pairs, blocks, along_at, along, along_pairs, width,
        down_shift, along_shift, pairs, turned, woven, levels,
    )  # fmt: skip
    return numba.void(*arguments), _filter


def _filter(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
    function = filtering(builder.module, to_even=False)
    kinds = zip(function.args, signature.args, arguments, strict=True)
    builder.call(
        function, [start(context, builder, kind, a) if formal.type.is_pointer else a for formal, kind, a in kinds]
    )
    return context.get_dummy_value()


@intrinsic
def transpose_tile(typing: Any, source: Any, row: Any, column: Any, target: Any, to_row: Any, to_column: Any) -> Any:
    """Write ``source[row:row + 8, column:column + 8].T`` to ``target[to_row:, to_column:]``; no bounds are checked.

    Args:
        typing: Numba's.
        source: a contiguous matrix.
        row: the tile's first row there.
        column: the tile's first column there.
        target: another matrix of the same type, written to.
        to_row: the transposed tile's first row there.
        to_column: the transposed tile's first column there.
    """
    del typing
    return numba.void(source, row, column, target, to_row, to_column), _transpose


def _transpose(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
    source, row, column, target, to_row, to_column = arguments
    source_type, target_type = signature.args[0], signature.args[3]
    lines = []
    for line in range(SIDE):
        at = place(context, builder, source_type, source, plus(builder, row, line), column)
        lines.append(load(builder, at, context.get_data_type(source_type.dtype)))
    for number, line in enumerate(transposed(builder, lines)):
        store(builder, line, place(context, builder, target_type, target, plus(builder, to_row, number), to_column))
    return context.get_dummy_value()


@intrinsic
def colour_tile(typing: Any, levels: Any, column: Any, row: Any, colours: Any, out: Any) -> Any:
    """The colours of 8 x 8 pixels of a transposed view, written upright; no bounds are checked.

    With ``r, g, b`` a pixel's levels and ``a`` the channel's row of ``colours``, a channel becomes
    ``min(max(a[0] * r + a[1] * g + a[2] * b + a[3], a[4]), a[5])``.

    Args:
        typing: Numba's.
        levels: uint8[3 * S, at least S], of which a line is one channel of one column of the view.
        column: of the first pixel in the view.
        row: of the first pixel in the view.
        colours: float32[3, 6].
        out: float32[S, 3 * S], written to.
    """
    del typing
    return numba.void(levels, column, row, colours, out), _colours


def _colours(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
    levels_type, _, _, colours_type, out_type = signature.args
    levels, column, row, colours, out = arguments
    index, first = column.type, builder.mul(column, ir.Constant(column.type, 3))
    of = [
        [
            spread(
                builder,
                builder.load(place(context, builder, colours_type, colours, *(ir.Constant(index, k) for k in at))),
            )
            for at in ((channel, number) for number in range(6))
        ]
        for channel in range(3)
    ]
    lines = []  # 24 vectors, red, green and blue of eight columns; a vector holds one column's eight rows
    for pixel in range(SIDE):
        places = [
            place(context, builder, levels_type, levels, plus(builder, first, 3 * pixel + c), row) for c in range(3)
        ]
        level = [builder.uitofp(load(builder, at, BYTE), FLOATS) for at in places]
        for channel in range(3):
            red, green, blue, base, least, most = of[channel]
            value = builder.fmul(red, level[0], flags=FUSED)
            value = multiply_add(builder, green, level[1], value)
            value = builder.fadd(multiply_add(builder, blue, level[2], value), base, flags=FUSED)
            lines.append(limited(builder, value, least, most))
    for third in range(3):  # eight of the 24 lines make a square tile; where colours meet its border does not matter
        for i, line in enumerate(transposed(builder, lines[SIDE * third : SIDE * (third + 1)])):
            at = place(context, builder, out_type, out, plus(builder, row, i), plus(builder, first, SIDE * third))
            store(builder, line, at)
    return context.get_dummy_value()
