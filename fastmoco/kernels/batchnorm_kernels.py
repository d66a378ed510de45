"""Grouped BatchNorm in Triton, with the ReLU and the residual addition that follow it. Not yet run on a GPU.

Forward reads the input twice, once for the statistics and once to normalise it; backward reads gradient and input
twice. Nothing is added atomically: each program of a reduction writes its own partial result, and a small launch
combines them in a fixed order, so that the same input gives the same bits.

Statistics are sums around a shift, the mean of the first tile that a program reads. If a program reads T tiles, the
squared distance from the shift to the mean is at most (T − 1) times the variance, so that the subtraction of the two
sums loses at most a factor of T in precision however large the mean is. Welford's recurrence has no such bound to
keep, but needs a division and a chain of three dependent operations for each row. Partial results are combined by
the formula of Chan, Golub and LeVeque (1979), relative to the first partial mean.

A tile is BLOCK_R rows by BLOCK_C channels. Program `part` of a reduction reads the tiles part, part + S, part + 2S, …
of its group, so that at the end of the pass the L2 cache holds the last rows of the tensor; the elementwise pass
starts with these. `num_stages` makes the loops of the reductions copy tiles into shared memory ahead of their use: a
few programs then keep enough bytes under way.

B: images, C: channels, G: groups, R: rows (images × pixels) of a group, S: parts of a group. Tensors of images have
channels-last memory: R · G rows of C channels. Moments [G, 2, C] are mean and 1/√(variance + ε).
"""

# the types of Triton's language are made by its decorators, which pyright cannot see through
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false, reportOperatorIssue=false
# pyright: reportGeneralTypeIssues=false

from __future__ import annotations

import triton
import triton.language as tl

from fastmoco.kernels.batchnorm_tiles import (
    from_the_last,
    load_pair,
    load_parameter,
    load_tile,
    row_count,
    store_pair,
    store_tile,
)

# Triton compiles variants for 1, for multiples of 16 and for the rest. These numbers differ from layer to layer and
# gain nothing by it. C is not among them: where it is a multiple of 16, loads can be 16 bytes wide
_VARYING = ("R", "S", "G")


@triton.jit(do_not_specialize=_VARYING)
def statistics_kernel(x, parts, R, S, C, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr):
    """Mean and sum of squared distances from it for part program_id(1) of group program_id(2): [G, S, 2, C]."""
    channels = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    part, group = tl.program_id(1), tl.program_id(2)
    rows = tl.arange(0, BLOCK_R)
    # any value close to the mean would do as the shift; this one costs no pass of its own
    values, inside = load_tile(x, part * BLOCK_R, rows, channels, R, C, group)
    shift = tl.sum(values, axis=0) / tl.minimum(R - part * BLOCK_R, BLOCK_R)
    distance = tl.where(inside, values - shift[None, :], 0.0)
    # sums stay tiles until the loop ends: a sum over rows in each round would synchronise the program's threads
    total, squares = distance, distance * distance
    for first in tl.range((part + S) * BLOCK_R, R, S * BLOCK_R, num_stages=4):
        values, inside = load_tile(x, first, rows, channels, R, C, group)
        distance = tl.where(inside, values - shift[None, :], 0.0)
        total += distance
        squares += distance * distance
    count = row_count(part, R, S, BLOCK_R)
    # both sums are around the shift; moved to the mean here
    offset = tl.sum(total, axis=0) / count
    around_mean = tl.sum(squares, axis=0) - offset * offset * count
    # rounding may leave less than 0; unlike a maximum, a selection lets NaN through
    around_mean = tl.where(around_mean < 0, 0.0, around_mean)
    store_pair(parts, group * S + part, channels, C, shift + offset, around_mean)


@triton.jit(do_not_specialize=[*_VARYING, "TILE"])
def combine_kernel(
    parts, out, running_mean, running_var, tracked, epsilon, momentum, R, S, G, C, TILE,
    FINISH: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Combine the S parts of each group, which have the rows that `row_count` says.

    With FINISH, `out` gets the moments, running statistics move towards the mean of the groups', and `tracked` counts
    one more batch, each where it is given; without, `out` gets mean and sum of squared distances, one more partial
    result.
    """
    channels = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    inside = channels < C
    sum_of_means = tl.zeros([BLOCK_C], tl.float32)
    sum_of_variances = tl.zeros([BLOCK_C], tl.float32)
    for group in range(G):
        # first the mean of all parts, then the squares around it: the parts are few, and sums of squares around
        # anything else would be subtracted from each other
        shift, _ = load_pair(parts, group * S, channels, C)
        total = tl.zeros([BLOCK_S, BLOCK_C], tl.float32)
        for first in range(0, S, BLOCK_S):
            part = first + tl.arange(0, BLOCK_S)
            there = (part < S)[:, None] & inside[None, :]
            place = (group * S + part).to(tl.int64)[:, None] * 2 * C + channels[None, :]
            mean = tl.load(parts + place, mask=there, other=0.0)
            count = row_count(part, R, S, TILE).to(tl.float32)
            total += tl.where(there, (mean - shift[None, :]) * count[:, None], 0.0)
        mean_C = shift + tl.sum(total, axis=0) / R
        squares = tl.zeros([BLOCK_S, BLOCK_C], tl.float32)
        for first in range(0, S, BLOCK_S):
            part = first + tl.arange(0, BLOCK_S)
            there = (part < S)[:, None] & inside[None, :]
            place = (group * S + part).to(tl.int64)[:, None] * 2 * C + channels[None, :]
            distance = tl.load(parts + place, mask=there, other=0.0) - mean_C[None, :]
            count = row_count(part, R, S, TILE).to(tl.float32)
            within = tl.load(parts + place + C, mask=there, other=0.0)
            squares += tl.where(there, within + distance * distance * count[:, None], 0.0)
        squares_C = tl.sum(squares, axis=0)
        if FINISH:
            # sqrt_rn rounds correctly; tl.sqrt is the device's approximation
            variance = squares_C / R
            store_pair(out, group, channels, C, mean_C, 1.0 / tl.sqrt_rn(variance + epsilon))
            sum_of_means += mean_C
            # running statistics have the unbiased variance, as torch's
            sum_of_variances += squares_C / (R - 1)
        else:
            store_pair(out, group, channels, C, mean_C, squares_C)
    if FINISH:
        if running_mean is not None:
            old_mean = tl.load(running_mean + channels, mask=inside)
            old_variance = tl.load(running_var + channels, mask=inside)
            tl.store(running_mean + channels, old_mean + momentum * (sum_of_means / G - old_mean), mask=inside)
            new_variance = old_variance + momentum * (sum_of_variances / G - old_variance)
            tl.store(running_var + channels, new_variance, mask=inside)
        if tracked is not None:  # noqa: SIM102 - known when the kernel is compiled, unlike the next
            if tl.program_id(0) == 0:
                tl.store(tracked, tl.load(tracked) + 1)


@triton.jit(do_not_specialize=["R"])
def normalise_kernel(
    x, residual, y, moments, weight, bias, R, C, RELU: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr
):  # fmt: skip
    """(x − mean) · weight / √(variance + ε) + bias, plus the residual where there is one, then ReLU."""
    channels, first, group = from_the_last(R, C, BLOCK_R, BLOCK_C)
    rows = tl.arange(0, BLOCK_R)
    mean, scale = load_pair(moments, group, channels, C)
    values, inside = load_tile(x, first, rows, channels, R, C, group)
    # the mean is subtracted first: in values · a + b, both terms would be large where the mean is, and cancel
    out = (values - mean[None, :]) * (scale * load_parameter(weight, channels, C))[None, :]
    out += load_parameter(bias, channels, C)[None, :]
    if residual is not None:
        added, _ = load_tile(residual, first, rows, channels, R, C, group)
        out += added
    if RELU:
        out = tl.where(out <= 0, 0.0, out)  # unlike a maximum, it lets NaN through
    store_tile(y, out, inside, first, rows, channels, R, C, group)


@triton.jit(do_not_specialize=["R", "S"])
def gradient_sums_kernel(
    grad, x, y, masked, moments, weight, bias, parts, R, S, C,
    RELU: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Sums of the gradient and of gradient · (x − mean) for part program_id(1) of group program_id(2): [G, S, 2, C].

    With RELU the gradient counts where its output was above zero. Where the output is given as `y`, the gradient so
    masked, which is the residual's, is written to `masked`; else the output is computed again from the input, which
    is read anyway.
    """
    channels = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    part, group = tl.program_id(1), tl.program_id(2)
    rows = tl.arange(0, BLOCK_R)
    mean, scale = load_pair(moments, group, channels, C)
    scale *= load_parameter(weight, channels, C)
    shift = load_parameter(bias, channels, C)
    total = tl.zeros([BLOCK_R, BLOCK_C], tl.float32)
    product = tl.zeros([BLOCK_R, BLOCK_C], tl.float32)
    for first in tl.range(part * BLOCK_R, R, S * BLOCK_R, num_stages=3):
        slope, inside = load_tile(grad, first, rows, channels, R, C, group)
        values, _ = load_tile(x, first, rows, channels, R, C, group)
        distance = values - mean[None, :]
        if y is not None:
            out, _ = load_tile(y, first, rows, channels, R, C, group)
            slope = tl.where(out <= 0, 0.0, slope)
            store_tile(masked, slope, inside, first, rows, channels, R, C, group)
        # the forward pass's expression in its order of operations, so that its mask is found again
        elif RELU:
            slope = tl.where(distance * scale[None, :] + shift[None, :] <= 0, 0.0, slope)
        total += slope
        product += slope * distance
    store_pair(parts, group * S + part, channels, C, tl.sum(total, axis=0), tl.sum(product, axis=0))


@triton.jit(do_not_specialize=_VARYING[1:])
def fold_kernel(
    parts, moments, sums, grad_weight, grad_bias, S, G, C, BLOCK_S: tl.constexpr, BLOCK_C: tl.constexpr
):  # fmt: skip
    """The sums of each group from its parts, [G, 2, C], and the gradients of weight and bias [C]."""
    channels = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    inside = channels < C
    weights = tl.zeros([BLOCK_C], tl.float32)
    biases = tl.zeros([BLOCK_C], tl.float32)
    for group in range(G):
        total = tl.zeros([BLOCK_S, BLOCK_C], tl.float32)
        product = tl.zeros([BLOCK_S, BLOCK_C], tl.float32)
        for first in range(0, S, BLOCK_S):
            part = first + tl.arange(0, BLOCK_S)
            there = (part < S)[:, None] & inside[None, :]
            place = (group * S + part).to(tl.int64)[:, None] * 2 * C + channels[None, :]
            total += tl.load(parts + place, mask=there, other=0.0)
            product += tl.load(parts + place + C, mask=there, other=0.0)
        # the product with 1/√(variance + ε) waits until here, where it is one per channel
        total_C, product_C = tl.sum(total, axis=0), tl.sum(product, axis=0)
        store_pair(sums, group, channels, C, total_C, product_C)
        _, scale = load_pair(moments, group, channels, C)
        biases += total_C
        weights += product_C * scale
    tl.store(grad_weight + channels, weights.to(grad_weight.dtype.element_ty), mask=inside)
    tl.store(grad_bias + channels, biases.to(grad_bias.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["R", "count"])
def input_gradient_kernel(
    grad, x, out, moments, weight, bias, sums, R, C, count,
    RELU: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """The input's gradient, from sums over the `count` rows that the moments are of; RELU: mask the gradient first."""
    channels, first, group = from_the_last(R, C, BLOCK_R, BLOCK_C)
    rows = tl.arange(0, BLOCK_R)
    mean, scale = load_pair(moments, group, channels, C)
    total, product = load_pair(sums, group, channels, C)
    # per channel, so that the tile needs no division. `count` is of all ranks' rows, R of this rank's
    along = scale * scale * product / count
    scale *= load_parameter(weight, channels, C)
    slope, inside = load_tile(grad, first, rows, channels, R, C, group)
    values, _ = load_tile(x, first, rows, channels, R, C, group)
    distance = values - mean[None, :]
    if RELU:
        shift = load_parameter(bias, channels, C)
        slope = tl.where(distance * scale[None, :] + shift[None, :] <= 0, 0.0, slope)
    result = (slope - (total / count)[None, :] - distance * along[None, :]) * scale[None, :]
    store_tile(out, result, inside, first, rows, channels, R, C, group)
