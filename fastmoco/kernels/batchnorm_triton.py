"""Launches of the grouped BatchNorm's Triton kernels; `batchnorm_torch` has the same functions in plain torch.

B: images, C: channels, G: groups, S: parts of a group. Tensors of images have channels-last memory.
"""

# the types of Triton's language are made by its decorators, which pyright cannot see through
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false

from __future__ import annotations

from functools import cache

import torch
import triton

from fastmoco.kernels.batchnorm_kernels import (
    combine_kernel,
    fold_kernel,
    gradient_sums_kernel,
    input_gradient_kernel,
    normalise_kernel,
    statistics_kernel,
)

INTERPRETED = triton.knobs.runtime.interpret
"""Whether Triton's interpreter runs the kernels, on a CPU."""
ELEMENTS = 4096
"""Elements of a tile of an elementwise pass."""
SUMMED_ELEMENTS = 2048
"""Elements of a tile of a reduction: 16 a thread, of each of which two sums are held in registers."""
BLOCK_C = 64
"""Most channels of a tile: 128 bytes of a row in half precision, the length of a cache line."""
PROGRAMS_PER_PROCESSOR = 4
"""Programs of a reduction for each multiprocessor: as many as fit there at once, so that none waits for a turn."""
COMBINED_C = 16
"""Channels of a program that combines partial results: few, so that several processors share the work."""
COMBINED_S = 64
"""Partial results that such a program reads at a time."""


@cache
def _programs(device: torch.device) -> int:
    """How many programs of a reduction are wanted on a device; a few under the interpreter, which has no processors."""
    # six, so that small tensors have several parts in tests
    if device.type != "cuda":
        return 6
    return PROGRAMS_PER_PROCESSOR * torch.cuda.get_device_properties(device).multi_processor_count


def _tiles(channels: int, elements: int) -> dict[str, int]:
    block = min(BLOCK_C, triton.next_power_of_2(channels))
    return {"BLOCK_R": elements // block, "BLOCK_C": block}


@cache
def _reduction(rows: int, channels: int, groups: int, device: torch.device) -> tuple[tuple[int, int, int], dict]:
    """Grid of a reduction over the rows of each group, and its tiles."""
    tiles = _tiles(channels, SUMMED_ELEMENTS)
    blocks = triton.cdiv(channels, tiles["BLOCK_C"])
    # channels and groups are divided among programs first; what is left divides the rows
    parts = max(1, _programs(device) // (blocks * groups))
    return (blocks, min(parts, triton.cdiv(rows, tiles["BLOCK_R"])), groups), tiles


@cache
def _elementwise(rows: int, channels: int, groups: int) -> tuple[tuple[int, int], dict]:
    """Grid of a pass over all elements, a tile a program, and its tiles."""
    tiles = _tiles(channels, ELEMENTS)
    return (triton.cdiv(channels, tiles["BLOCK_C"]) * triton.cdiv(rows, tiles["BLOCK_R"]), groups), tiles


@cache
def _combination(channels: int, parts: int) -> tuple[tuple[int], dict]:
    """Grid of a combination of partial results, and its tiles."""
    block = min(COMBINED_C, triton.next_power_of_2(channels))
    seen = min(COMBINED_S, triton.next_power_of_2(parts))
    return (triton.cdiv(channels, block),), {"BLOCK_C": block, "BLOCK_S": seen}


def _rows(x: torch.Tensor, groups: int) -> tuple[int, int]:
    """Rows of a group, and channels."""
    return x.numel() // (x.shape[1] * groups), x.shape[1]


def partial_statistics(x: torch.Tensor, groups: int) -> tuple[torch.Tensor, int]:
    """Mean and sum of squared distances of the parts of each group [G, S, 2, C], and the rows of their tiles."""
    rows, channels = _rows(x, groups)
    # grids and tiles are cached by shape: a ResNet-50 launches some hundred of these kernels in a step
    grid, tiles = _reduction(rows, channels, groups, x.device)
    # float32 whatever the images' dtype: these are sums over thousands of rows
    parts = x.new_empty((groups, grid[1], 2, channels), dtype=torch.float32)
    statistics_kernel[grid](x, parts, rows, grid[1], channels, **tiles)
    return parts, tiles["BLOCK_R"]


def combine(parts: torch.Tensor, rows: int, tile: int) -> torch.Tensor:
    """Mean and sum of squared distances of each group's rows [G, 2, C]."""
    groups, count, _, channels = parts.shape
    grid, tiles = _combination(channels, count)
    out = parts.new_empty((groups, 2, channels))
    combine_kernel[grid](
        parts, out, None, None, None, 0.0, 0.0, rows, count, groups, channels, tile, FINISH=False, **tiles
    )
    return out


def finish(
    parts: torch.Tensor, rows: int, tile: int, epsilon: float, momentum: float,
    running_mean: torch.Tensor | None, running_var: torch.Tensor | None, tracked: torch.Tensor | None,
) -> torch.Tensor:  # fmt: skip
    """Moments of each group [G, 2, C]; moves the running statistics, and counts the batch in `tracked`."""
    groups, count, _, channels = parts.shape
    grid, tiles = _combination(channels, count)
    out = parts.new_empty((groups, 2, channels))
    combine_kernel[grid](
        parts, out, running_mean, running_var, tracked, epsilon, momentum, rows, count, groups, channels, tile,
        FINISH=True, **tiles,
    )  # fmt: skip
    return out


def normalise(
    x: torch.Tensor, residual: torch.Tensor | None, moments: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor,
    relu: bool,
) -> torch.Tensor:  # fmt: skip
    """The input normalised, with the residual added and ReLU where asked."""
    rows, channels = _rows(x, len(moments))
    grid, tiles = _elementwise(rows, channels, len(moments))
    # empty_like keeps the channels-last strides that the kernels address by
    y = torch.empty_like(x)
    normalise_kernel[grid](x, residual, y, moments, weight, bias, rows, channels, RELU=relu, **tiles)
    return y


def partial_gradients(
    grad: torch.Tensor, x: torch.Tensor, y: torch.Tensor | None, moments: torch.Tensor,
    weight: torch.Tensor, bias: torch.Tensor, relu: bool,
) -> tuple[torch.Tensor, torch.Tensor | None]:  # fmt: skip
    """Sums of gradient and gradient · (x − mean) of the parts [G, S, 2, C]; given `y`, the gradient masked by it."""
    rows, channels = _rows(x, len(moments))
    grid, tiles = _reduction(rows, channels, len(moments), x.device)
    parts = moments.new_empty((len(moments), grid[1], 2, channels))
    # the residual's gradient, which autograd needs as a tensor of its own
    masked = None if y is None else torch.empty_like(x)
    gradient_sums_kernel[grid](
        grad, x, y, masked, moments, weight, bias, parts, rows, grid[1], channels, RELU=relu, **tiles
    )
    return parts, masked


def fold(
    parts: torch.Tensor, moments: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The sums of each group [G, 2, C], and the gradients of weight and bias [C]."""
    groups, count, _, channels = parts.shape
    grid, tiles = _combination(channels, count)
    sums, grad_weight, grad_bias = torch.empty_like(moments), torch.empty_like(weight), torch.empty_like(bias)
    fold_kernel[grid](parts, moments, sums, grad_weight, grad_bias, count, groups, channels, **tiles)
    return sums, grad_weight, grad_bias


def input_gradient(
    grad: torch.Tensor, x: torch.Tensor, moments: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor,
    sums: torch.Tensor, count: int, relu: bool,
) -> torch.Tensor:  # fmt: skip
    """The gradient of the input, from sums over `count` rows."""
    rows, channels = _rows(x, len(moments))
    grid, tiles = _elementwise(rows, channels, len(moments))
    out = torch.empty_like(x)
    input_gradient_kernel[grid](
        grad, x, out, moments, weight, bias, sums, rows, channels, float(count), RELU=relu, **tiles
    )
    return out
