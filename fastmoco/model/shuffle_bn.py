"""Shuffled BatchNorm (arXiv 1911.05722, section 3.3): keys are normalised in other company than queries.

Every rank derives the same permutation from (seed, step), so no index is broadcast. Images travel by one
all-to-all, so that a rank receives B images whatever the number of ranks; features come back with the
all-gather that the queue needs anyway.

B: images of a rank, W: ranks, N = W·B.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional as F

from fastmoco.distributed import all_gather_rows

_STREAM = 0x5BF


def permutation(seed: int, step: int, count: int) -> torch.Tensor:
    """The permutation of the global batch at a step: int64 [N] on the CPU, equal on all ranks."""
    return torch.from_numpy(np.random.Generator(np.random.Philox([seed, step, _STREAM, 0])).permutation(count))


def exchange(images: torch.Tensor, permutation_N: torch.Tensor) -> torch.Tensor:
    """Deal the global batch out anew: slot j of it takes the image that was at `permutation_N[j]`.

    Args:
        images: this rank's images [B, 3, H, W], rows rank·B … rank·B + B − 1 of the global batch.
        permutation_N: int64 [N] on the CPU.

    Returns:
        [B, 3, H, W] with channels-last strides: the images of this rank's slots.
    """
    if not dist.is_initialized():
        return images[permutation_N.to(images.device)]
    rank, batch = dist.get_rank(), images.shape[0]
    world_size = dist.get_world_size()
    source = permutation_N.view(world_size, batch)
    wanted = source[rank]
    mine = [row[row // batch == rank] - rank * batch for row in source]
    rows = images.permute(0, 2, 3, 1)[torch.cat(mine).to(images.device)].contiguous()
    sent = rows.view(batch, -1).view(torch.uint8)
    received = torch.empty_like(sent)
    counts = torch.bincount(wanted // batch, minlength=world_size).tolist()
    dist.all_to_all_single(received, sent, counts, [len(part) for part in mine])
    arrival = torch.argsort(wanted // batch, stable=True)
    slots = torch.empty_like(arrival)
    slots[arrival] = torch.arange(batch)
    restored = received[slots.to(images.device)].view(images.dtype).view(rows.shape)
    return restored.permute(0, 3, 1, 2)


def gather_unshuffled(features_BD: torch.Tensor, permutation_N: torch.Tensor) -> torch.Tensor:
    """Features of all ranks in the order before the exchange.

    Args:
        features_BD: [B, D], of the images that `exchange` gave this rank.
        permutation_N: the permutation given to `exchange`.

    Returns:
        [N, D]; this rank's own images are rows rank·B … rank·B + B − 1.
    """
    shuffled_ND = all_gather_rows(features_BD)
    return shuffled_ND[torch.argsort(permutation_N).to(features_BD.device)]


class SplitBatchNorm2d(nn.BatchNorm2d):
    """BatchNorm over `splits` consecutive groups of the batch, as if each were on a device of its own.

    Running statistics are the mean of the groups'. In evaluation it is plain BatchNorm.
    """

    def __init__(self, num_features: int, splits: int) -> None:
        super().__init__(num_features)
        self.splits = splits

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Normalise [B, C, H, W]; B must be a multiple of `splits` in training."""
        if not self.training:
            return super().forward(input)
        assert self.running_mean is not None and self.running_var is not None
        outputs, means, variances = [], [], []
        for group in input.chunk(self.splits):
            mean, variance = self.running_mean.clone(), self.running_var.clone()
            outputs.append(
                F.batch_norm(group, mean, variance, self.weight, self.bias, True, self.momentum or 0.1, self.eps)
            )
            means.append(mean)
            variances.append(variance)
        with torch.no_grad():
            self.running_mean.copy_(torch.stack(means).mean(0))
            self.running_var.copy_(torch.stack(variances).mean(0))
        return torch.cat(outputs)


def split_batchnorm(module: nn.Module, splits: int) -> nn.Module:
    """Replace every BatchNorm2d below `module` by one over `splits` groups, keeping weights and statistics."""
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            split = SplitBatchNorm2d(child.num_features, splits)
            split.load_state_dict(child.state_dict())
            setattr(module, name, split)
        else:
            split_batchnorm(child, splits)
    return module
