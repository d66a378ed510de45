"""BatchNorm over parts of a device's batch, or over the batch of all devices.

It normalises images [B, C, H, W], tokens [B, C, L], and the features [B, C] of projection heads.

B: images of a rank, C: channels, L: tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional as F
from torch.nn.modules._functions import SyncBatchNorm
from torch.nn.modules.batchnorm import _BatchNorm

from fastmoco.ranks.exchange import sum_over_ranks
from fastmoco.ranks.world import rank_and_size

_recomputing = False


@contextmanager
def recomputing() -> Iterator[None]:
    """A backward pass, in which forward passes are those of activations that are computed again.

    BatchNorm does not move its running statistics there: the first pass has done so.
    """
    global _recomputing
    # of the process, not of a thread: on GPUs the backward pass runs in threads of its own
    _recomputing = True
    try:
        yield
    finally:
        _recomputing = False


class Norm2d(nn.BatchNorm2d):
    """BatchNorm of images, tokens or features, with the dropout and activation that timm has in its BatchNormAct2d.

    Attributes:
        drop: behind the normalisation; None for none. Named as timm's, as `act` is, whose names weights keep.
        act: behind `drop`.
    """

    drop: nn.Module | None
    act: nn.Module | None

    def __init__(self, num_features: int) -> None:
        super().__init__(num_features)
        self.register_module("drop", None)
        self.register_module("act", None)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Normalise [B, C, H, W], [B, C, L] or [B, C]."""
        return self.activated(self.normalised(input))

    def normalised(self, input: torch.Tensor) -> torch.Tensor:
        """The normalisation alone."""
        return super().forward(input)

    def statistics(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Running mean and variance for a training pass to move; copies of them where it is computed again."""
        assert self.running_mean is not None and self.running_var is not None
        if _recomputing:  # not None: as many tensors have to be kept as in the first pass
            return self.running_mean.clone(), self.running_var.clone()
        return self.running_mean, self.running_var

    def activated(self, x: torch.Tensor) -> torch.Tensor:
        """What follows it."""
        for module in (self.drop, self.act):
            x = x if module is None else module(x)
        return x

    def _check_input_dim(self, input: torch.Tensor) -> None:
        if input.dim() not in (2, 3, 4):
            expected = "[B, C, H, W], [B, C, L] or [B, C]"
            raise ValueError(f"the input has the shape {list(input.shape)}; expected {expected}")


class BatchNorm2d(Norm2d):
    """torch's BatchNorm, whose batches may be counted elsewhere: with those of other layers, in one launch.

    Attributes:
        counts: Whether it counts its batches itself.
    """

    counts = True

    def normalised(self, input: torch.Tensor) -> torch.Tensor:
        """See `Norm2d`."""
        if not self.training or (self.counts and not _recomputing):
            return super().normalised(input)
        assert self.momentum is not None
        statistics = self.statistics()
        return F.batch_norm(input, *statistics, self.weight, self.bias, True, self.momentum, self.eps)


class SplitBatchNorm2d(Norm2d):
    """BatchNorm over `splits` consecutive groups of the batch, as if each group were on a device of its own.

    Running statistics are the mean over the groups. In evaluation it is plain BatchNorm.
    """

    def __init__(self, num_features: int, splits: int) -> None:
        super().__init__(num_features)
        self.splits = splits

    def normalised(self, input: torch.Tensor) -> torch.Tensor:
        """See `Norm2d`; B must be a multiple of `splits` in training."""
        if not self.training:
            return super().normalised(input)
        assert self.running_mean is not None and self.running_var is not None
        outputs, means, variances = [], [], []
        for group in input.chunk(self.splits):
            # each group updates a copy, as each device would; in turn on one buffer, the last group would weigh most
            mean, variance = self.running_mean.clone(), self.running_var.clone()
            outputs.append(
                F.batch_norm(group, mean, variance, self.weight, self.bias, True, self.momentum or 0.1, self.eps)
            )
            means.append(mean)
            variances.append(variance)
        if _recomputing:
            return torch.cat(outputs)
        # num_batches_tracked is not counted: only a BatchNorm without momentum reads it
        with torch.no_grad():
            self.running_mean.copy_(torch.stack(means).mean(0))
            self.running_var.copy_(torch.stack(variances).mean(0))
        return torch.cat(outputs)


class SyncBatchNorm2d(BatchNorm2d):
    """BatchNorm over the images of all ranks: by torch's kernels on GPUs, and alike on CPUs, where torch has none.

    Batches may differ between ranks in all but the number of channels; every pixel has the same weight. In evaluation
    and without a process group it is plain BatchNorm. It does not derive from nn.SyncBatchNorm, which
    DistributedDataParallel refuses on CPUs.
    """

    def normalised(self, input: torch.Tensor) -> torch.Tensor:
        """See `Norm2d`; in training a collective operation of all ranks."""
        _, world_size = rank_and_size()
        if not self.training or world_size == 1:
            return super().normalised(input)
        if self.counts and not _recomputing:
            assert self.num_batches_tracked is not None
            self.num_batches_tracked.add_(1)
        if input.device.type == "cuda":
            statistics = *self.statistics(), self.eps, self.momentum
            group = dist.group.WORLD
            return SyncBatchNorm.apply(input, self.weight, self.bias, *statistics, group, world_size)
        # two passes, not E[x²] − E[x]²: that difference cancels where the mean is large
        x = input.to(torch.promote_types(input.dtype, torch.float32))
        # the count goes with the sums in one message, since ranks may have batches of different sizes
        own = x.new_full((1,), x.numel() // x.shape[1])
        rest = (0, *range(2, x.dim()))
        sums = sum_over_ranks(torch.cat([x.sum(rest), own]))
        count = sums[-1].detach()
        mean_C = sums[:-1] / count
        centred = x - _as_channels(mean_C, x)
        variance_C = sum_over_ranks(centred.square().sum(rest)) / count
        # running statistics have the unbiased variance, as torch's
        self._update_running(mean_C.detach(), variance_C.detach() * count / (count - 1))
        scale_C = (variance_C + self.eps).rsqrt()
        if not self.affine:
            return (centred * _as_channels(scale_C, x)).to(input.dtype)
        scaled = centred * _as_channels(self.weight * scale_C, x)
        return (scaled + _as_channels(self.bias, x)).to(input.dtype)

    @torch.no_grad()
    def _update_running(self, mean_C: torch.Tensor, variance_C: torch.Tensor) -> None:
        if _recomputing:
            return
        assert self.running_mean is not None and self.running_var is not None
        assert self.momentum is not None
        self.running_mean.lerp_(mean_C.to(self.running_mean.dtype), self.momentum)
        self.running_var.lerp_(variance_C.to(self.running_var.dtype), self.momentum)


def _as_channels(values_C: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Values [C] in a shape that broadcasts over [B, C, H, W], [B, C, L] or [B, C]."""
    return values_C.view(-1, *[1] * (like.dim() - 2))


def from_equal_statistics(module: nn.Module, parts: Sequence[torch.Tensor]) -> Iterator[torch.Tensor]:
    """The parts of a batch, for one pass of `module` each that moves the running statistics.

    Each pass starts with the statistics from before the first, and the mean of all is kept: as `SplitBatchNorm2d` has
    it for its groups. One after the other, the last part would weigh most.
    """
    running = [each for name, each in module.named_buffers() if name.endswith(("running_mean", "running_var"))]
    if not running:  # of an encoder without BatchNorm
        yield from parts
        return
    before = torch._foreach_add(running, 0.0)
    mean = torch._foreach_mul(running, 0.0)
    for part in parts:
        torch._foreach_copy_(running, before)
        yield part
        torch._foreach_add_(mean, running, alpha=1 / len(parts))
    torch._foreach_copy_(running, mean)


def replace_batchnorm(module: nn.Module, make: Callable[[int], nn.BatchNorm2d]) -> nn.Module:
    """Replace every BatchNorm in `module` by `make(channels)`, with its weights, statistics and settings.

    An activation that is part of it, as of timm's BatchNormAct2d, becomes part of the other one.
    """
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm1d | nn.BatchNorm2d):
            other = make(child.num_features)
            if not child.affine:
                other.affine, other.weight, other.bias = False, None, None  # pyright: ignore[reportAttributeAccessIssue]
            other.eps, other.momentum = child.eps, child.momentum
            for part in ("drop", "act"):
                within = getattr(child, part, None)
                if within is not None and not isinstance(within, nn.Identity):
                    setattr(other, part, within)
            other.load_state_dict(child.state_dict())
            setattr(module, name, other)
        else:
            replace_batchnorm(child, make)
    return module


def split_batchnorm(module: nn.Module, splits: int) -> nn.Module:
    """Replace every BatchNorm in `module` by one over `splits` groups, with its weights and statistics."""
    return replace_batchnorm(module, lambda channels: SplitBatchNorm2d(channels, splits))


def has_batchnorm(module: nn.Module) -> bool:
    """Whether features of an image depend on the others in its batch, in training."""
    return any(_has_statistics(child) for child in module.modules())


def unlike_batchnorm(module: nn.Module, images_alone: bool = False) -> str | None:
    """The name of a module that normalises by the batch and cannot be replaced by `replace_batchnorm`; None for none.

    Args:
        module: where to search.
        images_alone: whether the replacement is for images [B, C, H, W] only.
    """
    of_torch = (nn.BatchNorm2d,) if images_alone else (nn.BatchNorm1d, nn.BatchNorm2d)
    for name, child in module.named_modules():
        # by its name, since timm may not be installed
        known = type(child) in of_torch or type(child).__name__ == "BatchNormAct2d" or isinstance(child, Norm2d)
        if _has_statistics(child) and not (known and child.momentum is not None):
            return f"{name} ({type(child).__name__})"
    return None


def _has_statistics(module: nn.Module) -> bool:
    # timm's EvoNorm is no BatchNorm by its class
    return isinstance(module, _BatchNorm) or module._buffers.get("running_var") is not None
