"""Vector operations that Numba does not generate by itself, for the compiled loops of a view.

Numba vectorises a loop along one array. It neither keeps weighted sums of many lines in registers over a second loop
nor transposes within registers. Both are written here in LLVM's terms, eight numbers to a vector, which LLVM translates
to the machine's own instructions. `pipelines.kernels.reference` has the same arithmetic as plain loops.
"""

from __future__ import annotations

from typing import Any

import numba
from llvmlite import ir

from pipelines.kernels.llvm import (  # fmt: skip
    BYTE,
    FLOAT,
    FLOATS,
    FUSED,
    SIDE,
    constant,
    intrinsic,
    limited,
    load,
    multiply_add,
    place,
    plus,
    spread,
    store,
    summing,
    transposed,
)

# Both come to four vectors of sums (two rows of 16, one run of 32): independent additions that need not wait for each
# other, and few enough to stay in AVX2's 16 registers together with weights and pixels.
COLUMNS = 16
"""Columns that `add_rows` sums at once, in two rows."""
RUN = 32
"""Numbers that `add_runs` sums at once, and so the rows of a block."""


@intrinsic
def add_rows(
    typing: Any, image: Any, row: Any, column: Any, taps: Any, weights: Any, line: Any, sums: Any, to_row: Any, to: Any
) -> Any:
    """Two weighted sums of ``taps`` rows; no bounds are checked.

    ``sums[to_row + i, to:to + 16] = weights[line + i, :taps] @ image[row:row + taps, column:column + 16]``, i = 0, 1.

    Args:
        typing: Numba's.
        image: uint8[H, W], contiguous.
        row: the first one.
        column: the first one.
        taps: rows to sum.
        weights: float32, contiguous.
        line: row of the first sum's weights.
        sums: float32, contiguous, written to.
        to_row: row of the first sum.
        to: its column.
    """
    del typing
    return numba.void(image, row, column, taps, weights, line, sums, to_row, to), _rows


def _rows(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
    image_type, _, _, _, weights_type, _, sums_type, _, _ = signature.args
    image, row, column, taps, weights, line, sums, to_row, to = arguments
    vectors = COLUMNS // SIDE
    with summing(builder, taps, 2 * vectors) as (tap, totals):
        pixels = []  # loaded and converted once for both sums
        for part in range(vectors):
            at = place(context, builder, image_type, image, builder.add(row, tap), plus(builder, column, SIDE * part))
            pixels.append(builder.uitofp(load(builder, at, BYTE), FLOATS))
        for i in range(2):
            weight = builder.load(place(context, builder, weights_type, weights, plus(builder, line, i), tap))
            for part in range(vectors):
                totals.add(builder, vectors * i + part, weight, pixels[part])
    for i in range(2):
        for part in range(vectors):
            column = plus(builder, to, SIDE * part)
            at = place(context, builder, sums_type, sums, plus(builder, to_row, i), column)
            store(builder, totals.value(builder, vectors * i + part), at)
    return context.get_dummy_value()


@intrinsic
def add_runs(
    typing: Any, lines: Any, at: Any, step: Any, taps: Any, weights: Any, line: Any, levels: Any, to: Any
) -> Any:
    """A weighted sum of ``taps`` runs of 32 numbers, rounded to levels; no bounds are checked.

    ``levels[to:to + 32] = round(sum over t of weights[line, t] * lines[at + t * step:][:32])``, clamped to 0 and 255.

    Args:
        typing: Numba's.
        lines: float32, one-dimensional.
        at: index of the first run.
        step: distance from one run to the next.
        taps: runs to sum.
        weights: float32, contiguous.
        line: row of the weights.
        levels: uint8, one-dimensional, written to.
        to: index of the first level.
    """
    del typing
    return numba.void(lines, at, step, taps, weights, line, levels, to), _runs


def _runs(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
    lines_type, _, _, _, weights_type, _, levels_type, _ = signature.args
    lines, at, step, taps, weights, line, levels, to = arguments
    with summing(builder, taps, RUN // SIDE) as (tap, totals):
        weight = builder.load(place(context, builder, weights_type, weights, line, tap))
        run = builder.add(at, builder.mul(tap, step))
        for part in range(RUN // SIDE):
            run_at = place(context, builder, lines_type, lines, plus(builder, run, SIDE * part))
            totals.add(builder, part, weight, load(builder, run_at, FLOAT))
    for part in range(RUN // SIDE):
        total = builder.fadd(totals.value(builder, part), constant(0.5))  # the conversion truncates
        # weights that add up to 1 but for rounding exceed 255 by little, which the conversion to a byte would make 0
        total = limited(builder, total, constant(0.0), constant(255.0))
        wide = builder.fptosi(total, ir.VectorType(ir.IntType(32), SIDE))
        into = place(context, builder, levels_type, levels, plus(builder, to, SIDE * part))
        store(builder, builder.trunc(wide, ir.VectorType(BYTE, SIDE)), into)
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
