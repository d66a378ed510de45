"""BatchNorm over groups of the batch or over the batch of all ranks, with the ReLU and the addition that follow it.

One autograd function for all of them. Forward: partial statistics, their combination, normalisation. Backward: partial
sums, their combination, the input's gradient. Over several ranks, an all-gather of [2, C] statistics and an all-reduce
of [2, C] sums stand between the passes; all ranks have equally many images, so that no count is sent, and the host
never waits.

Triton computes the passes on CUDA, plain torch elsewhere. ReLU's mask is not stored: it is computed again from the
input, or read off the output where a residual was added.

B: images of a rank, C: channels, G: groups, W: ranks.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch.autograd.function import once_differentiable

from fastmoco.ranks.exchange import all_gather_rows
from fastmoco.ranks.world import rank_and_size

Implementation = Literal["triton", "torch"]
_PASSES = {"triton": "fastmoco.kernels.batchnorm_triton", "torch": "fastmoco.kernels.batchnorm_torch"}


@cache
def implementation(device: torch.device, dtype: torch.dtype) -> Implementation:
    """What computes the passes on a device: Triton on NVIDIA GPUs since Ampere for all but float64, else torch."""
    # ROCm's devices are `cuda` to torch as well. Ampere is the first architecture that copies to shared memory
    # asynchronously, which the reductions rely on. The kernels sum in float32, so float64 is torch's
    if device.type != "cuda" or torch.version.hip or torch.cuda.get_device_capability(device) < (8, 0):
        return "torch"
    fits = dtype in (torch.float32, torch.bfloat16, torch.float16)
    return "triton" if fits and find_spec("triton") else "torch"


@dataclass(frozen=True)
class Running:
    """What a training step moves: running mean and variance [C], and the number of batches; each may be None."""

    mean: torch.Tensor | None = None
    var: torch.Tensor | None = None
    batches: torch.Tensor | None = None


@dataclass(frozen=True)
class _Call:
    passes: Any
    groups: int
    ranks: int
    epsilon: float
    momentum: float
    running: Running


class _BatchNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias, residual, relu, call: _Call):
        passes, running = call.passes, call.running
        count = x.numel() // (x.shape[1] * call.groups)
        # Triton launches on the current device, which need not be that of `x`
        with torch.cuda.device_of(x):
            parts, tile = passes.partial_statistics(x, call.groups)
            if call.ranks > 1:
                # each rank's statistics become one part of a single group, of `count` rows
                parts, tile = all_gather_rows(passes.combine(parts, count, tile))[None], count
                count *= call.ranks
            settings = call.epsilon, call.momentum, running.mean, running.var, running.batches
            moments = passes.finish(parts, count, tile, *settings)
            y = passes.normalise(x, residual, moments, weight, bias, relu)
        # the output is kept only where a residual was added: there ReLU's mask cannot be computed from the input alone
        ctx.save_for_backward(x, weight, bias, moments, None if residual is None else y)
        ctx.passes, ctx.ranks, ctx.count, ctx.relu = passes, call.ranks, count, relu
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):  # pyright: ignore[reportIncompatibleMethodOverride]
        passes = ctx.passes
        x, weight, bias, moments, y = ctx.saved_tensors
        # autograd may pass a gradient of other strides, or an expanded one; the passes read rows of channels
        grad = grad.contiguous(memory_format=torch.channels_last)
        with torch.cuda.device_of(x):
            parts, masked = passes.partial_gradients(grad, x, y, moments, weight, bias, ctx.relu)
            sums, grad_weight, grad_bias = passes.fold(parts, moments, weight, bias)
            # after `fold`: gradients of weight and bias stay this rank's own, since DistributedDataParallel averages
            # them
            if ctx.ranks > 1:
                dist.all_reduce(sums)
            # with a residual, the mask is already applied, to what is also the residual's gradient
            slope, relu = (grad, ctx.relu) if masked is None else (masked, False)
            grad_x = passes.input_gradient(slope, x, moments, weight, bias, sums, ctx.count, relu)
        return grad_x, grad_weight, grad_bias, masked, None, None


def batch_norm(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    residual: torch.Tensor | None = None,
    *,
    relu: bool = False,
    groups: int = 1,
    over_ranks: bool = False,
    epsilon: float = 1e-5,
    momentum: float = 0.1,
    running: Running | None = None,
    by: Implementation | None = None,
) -> torch.Tensor:
    """Normalise a training batch by its own statistics, add a residual, apply ReLU.

    The running statistics move to the mean of what they would be for each group alone.

    Args:
        x: [B, C, H, W] of any float dtype; statistics are in float32, or in float64 for float64.
        weight: γ [C].
        bias: β [C].
        residual: added before ReLU, which it implies; of the shape and dtype of `x`.
        relu: apply ReLU.
        groups: consecutive groups of the batch that have statistics of their own; they divide B.
        over_ranks: one group of the images of all ranks, each of which must take part with equally many.
        epsilon: added to the variance.
        momentum: of the running statistics.
        running: the statistics to move.
        by: what computes it; default: as `implementation` says.

    Returns:
        [B, C, H, W] with channels-last memory, of the dtype of `x`. Gradients of weight and bias are the rank's own.

    Raises:
        ValueError: where shapes or types do not fit together, or a group has one value a channel.
    """
    ranks = rank_and_size()[1] if over_ranks else 1
    _check(x, weight, bias, residual, groups, ranks)
    x = x.contiguous(memory_format=torch.channels_last)
    if residual is not None:
        residual = residual.contiguous(memory_format=torch.channels_last)
    # imported only when chosen: Triton is not installed everywhere
    passes = import_module(_PASSES[by or implementation(x.device, x.dtype)])
    call = _Call(passes, groups, ranks, epsilon, momentum, running or Running())
    return _BatchNorm.apply(x, weight, bias, residual, relu or residual is not None, call)  # pyright: ignore


def _check(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, residual: torch.Tensor | None, groups: int, ranks: int
) -> None:
    if x.dim() != 4 or not x.is_floating_point() or weight.shape != bias.shape or weight.shape != x.shape[1:2]:
        raise ValueError(
            f"input, weight and bias are {x.dtype} {tuple(x.shape)}, {tuple(weight.shape)} and {tuple(bias.shape)}; "
            "expected a float [B, C, H, W], [C] and [C]"
        )
    if residual is not None and (residual.shape != x.shape or residual.dtype != x.dtype):
        raise ValueError(
            f"the residual is {residual.dtype} {tuple(residual.shape)} and the input {x.dtype} {tuple(x.shape)}; "
            "both must be equal"
        )
    if groups < 1 or len(x) % groups or (ranks > 1 and groups > 1):
        raise ValueError(f"{groups} groups of {len(x)} images on {ranks} ranks; they must divide it, 1 over ranks")
    if x.numel() // x.shape[1] * ranks <= groups:
        raise ValueError(f"one value a channel in a group of {tuple(x.shape)}; statistics need two")
