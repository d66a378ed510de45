"""The passes of the grouped BatchNorm in plain torch, for CPUs and float64: `batchnorm_triton` has the same functions.

A part is a whole group here. B: images, C: channels, G: groups, S: parts of a group.
"""

from __future__ import annotations

import torch

OVER = (1, 3, 4)
"""Dimensions of [G, B/G, C, H, W] that statistics are taken over."""


def _wide(x: torch.Tensor, groups: int) -> torch.Tensor:
    """[B, C, H, W] as [G, B/G, C, H, W], in float32 at least."""
    return x.to(torch.promote_types(x.dtype, torch.float32)).unflatten(0, (groups, -1))


def _spread(values_GC: torch.Tensor) -> torch.Tensor:
    return values_GC.reshape(len(values_GC), 1, -1, 1, 1)


def partial_statistics(x: torch.Tensor, groups: int) -> tuple[torch.Tensor, int]:
    """Mean and sum of squared distances of each group [G, 1, 2, C], and its rows."""
    wide = _wide(x, groups)
    # two passes, not E[x²] − E[x]²: that difference cancels where the mean is large
    mean_GC = wide.mean(OVER)
    squares_GC = (wide - _spread(mean_GC)).square().sum(OVER)
    return torch.stack([mean_GC, squares_GC], 1)[:, None], x.numel() // (x.shape[1] * groups)


def combine(parts: torch.Tensor, rows: int, tile: int) -> torch.Tensor:
    """Mean and sum of squared distances of each group's rows [G, 2, C]; the parts have equally many."""
    means, squares = parts.unbind(2)
    mean_GC = means.mean(1)
    # Chan, Golub and LeVeque (1979), for parts of equal size
    between_GC = (means - mean_GC[:, None]).square().sum(1) * (rows / parts.shape[1])
    return torch.stack([mean_GC, squares.sum(1) + between_GC], 1)


def finish(
    parts: torch.Tensor, rows: int, tile: int, epsilon: float, momentum: float,
    running_mean: torch.Tensor | None, running_var: torch.Tensor | None, tracked: torch.Tensor | None,
) -> torch.Tensor:  # fmt: skip
    """Moments of each group [G, 2, C]; moves the running statistics, and counts the batch in `tracked`."""
    mean_GC, squares_GC = combine(parts, rows, tile).unbind(1)
    if running_mean is not None and running_var is not None:
        running_mean.lerp_(mean_GC.mean(0).to(running_mean.dtype), momentum)
        running_var.lerp_((squares_GC.mean(0) / (rows - 1)).to(running_var.dtype), momentum)
    if tracked is not None:
        tracked.add_(1)
    return torch.stack([mean_GC, (squares_GC / rows + epsilon).rsqrt()], 1)


def _affine(x: torch.Tensor, moments: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    mean_GC, scale_GC = moments.unbind(1)
    return (_wide(x, len(moments)) - _spread(mean_GC)) * _spread(scale_GC * weight) + bias[:, None, None]


def normalise(
    x: torch.Tensor, residual: torch.Tensor | None, moments: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor,
    relu: bool,
) -> torch.Tensor:  # fmt: skip
    """The input normalised, with the residual added and ReLU where asked."""
    out = _affine(x, moments, weight, bias)
    if residual is not None:
        out += residual.unflatten(0, out.shape[:2])
    y = torch.empty_like(x)  # no view of `out`, which autograd would not let anyone change in place
    y.unflatten(0, out.shape[:2]).copy_(out.relu_() if relu else out)
    return y


def partial_gradients(
    grad: torch.Tensor, x: torch.Tensor, y: torch.Tensor | None, moments: torch.Tensor,
    weight: torch.Tensor, bias: torch.Tensor, relu: bool,
) -> tuple[torch.Tensor, torch.Tensor | None]:  # fmt: skip
    """Sums of gradient and gradient · (x − mean) of each group [G, 1, 2, C]; given `y`, the gradient masked by it."""
    # as torch, no gradient where the output is 0. Asking for y > 0 instead would drop the gradient of NaN
    masked = None if y is None else torch.where(y <= 0, 0, grad)
    slope = _masked(grad, x, moments, weight, bias) if relu and masked is None else grad if masked is None else masked
    slope = _wide(slope, len(moments))
    distance = _wide(x, len(moments)) - _spread(moments[:, 0])
    return torch.stack([slope.sum(OVER), (slope * distance).sum(OVER)], 1)[:, None], masked


def _masked(
    grad: torch.Tensor, x: torch.Tensor, moments: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor
) -> torch.Tensor:
    return torch.where((_affine(x, moments, weight, bias) <= 0).flatten(0, 1), 0, grad)


def fold(
    parts: torch.Tensor, moments: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The sums of each group [G, 2, C], and the gradients of weight and bias [C]."""
    sums = parts.sum(1)
    grad_weight = (sums[:, 1] * moments[:, 1]).sum(0)
    return sums, grad_weight.to(weight.dtype), sums[:, 0].sum(0).to(bias.dtype)


def input_gradient(
    grad: torch.Tensor, x: torch.Tensor, moments: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor,
    sums: torch.Tensor, count: int, relu: bool,
) -> torch.Tensor:  # fmt: skip
    """The gradient of the input, from sums over `count` rows."""
    mean_GC, scale_GC = moments.unbind(1)
    total_GC, product_GC = (sums / count).unbind(1)
    slope = _wide(_masked(grad, x, moments, weight, bias) if relu else grad, len(moments))
    distance = _wide(x, len(moments)) - _spread(mean_GC)
    along = _spread(scale_GC.square() * product_GC)
    result = (slope - _spread(total_GC) - distance * along) * _spread(scale_GC * weight)
    return result.flatten(0, 1).to(x.dtype)
