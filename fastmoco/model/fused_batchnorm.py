"""BatchNorm with the ReLU and the residual addition that follow it in torchvision's ResNets, as one function.

Of timm's encoders, it takes the ReLUs that are part of their BatchNorms; additions and other activations follow it.

Parameters and buffers keep their names, so that weights and checkpoints fit with and without.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F
from torchvision.models.resnet import BasicBlock, Bottleneck

from fastmoco.kernels.batchnorm import Running, batch_norm
from fastmoco.model.batchnorm import Norm2d, replace_batchnorm
from fastmoco.model.encoders import Encoder, ResNetBackbone
from fastmoco.ranks.world import rank_and_size


class FusedBatchNorm2d(Norm2d):
    """BatchNorm over groups of the batch, or over the batch of all ranks, with ReLU and addition where asked.

    In training it computes what `SplitBatchNorm2d` and `SyncBatchNorm2d` do; all ranks must have equally many images.
    In evaluation it is plain BatchNorm.

    Attributes:
        groups: consecutive groups of the batch with statistics of their own.
        over_ranks: statistics over the images of all ranks.
        relu: whether ReLU follows.
    """

    def __init__(self, num_features: int, groups: int = 1, over_ranks: bool = False) -> None:
        super().__init__(num_features)
        # no ReLU at first: the BatchNorms of the shortcuts have none
        self.groups, self.over_ranks, self.relu = groups, over_ranks, False

    def forward(self, input: torch.Tensor, residual: torch.Tensor | None = None) -> torch.Tensor:
        """Normalise [B, C, H, W]; a residual is added before ReLU, which it implies."""
        if not self.training:
            out = self.normalised(input)
            if residual is not None:
                out += residual
            return self.activated(F.relu(out, inplace=True) if self.relu or residual is not None else out)
        assert self.momentum is not None
        # as SplitBatchNorm2d, it does not count the batches that it splits
        mean, variance = self.statistics()
        counted = self.groups == 1 and mean is self.running_mean
        running = Running(mean, variance, self.num_batches_tracked if counted else None)
        out = batch_norm(
            input, self.weight, self.bias, residual,
            relu=self.relu, groups=self.groups, over_ranks=self.over_ranks and rank_and_size()[1] > 1,
            epsilon=self.eps, momentum=self.momentum, running=running,
        )  # fmt: skip
        return self.activated(out)


class _FusedBasicBlock(BasicBlock):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        residual = x if self.downsample is None else self.downsample(x)
        return self.bn2(self.conv2(self.bn1(self.conv1(x))), residual)


class _FusedBottleneck(Bottleneck):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        residual = x if self.downsample is None else self.downsample(x)
        return self.bn3(self.conv3(self.bn2(self.conv2(self.bn1(self.conv1(x))))), residual)


def fuse_batchnorm(encoder: Encoder, groups: int = 1, over_ranks: bool = False) -> Encoder:
    """Replace every BatchNorm of an encoder's backbone, with the ReLUs and additions behind it, keeping the weights."""
    backbone = encoder.backbone
    replace_batchnorm(backbone, lambda channels: FusedBatchNorm2d(channels, groups, over_ranks))
    if not isinstance(backbone, ResNetBackbone):
        _take_relus(backbone)
        return encoder
    _followed_by_relu(backbone.get_submodule("bn1"))
    # an empty step, since Backbone calls all of its children: the stem's ReLU is part of bn1
    backbone.relu = nn.Identity()
    for block in backbone.modules():
        if isinstance(block, Bottleneck):
            # another class on the same object: parameters keep their values, names and order, on which optimisers and
            # checkpoints depend
            block.__class__ = _FusedBottleneck
            _followed_by_relu(block.bn1, block.bn2)
        elif isinstance(block, BasicBlock):
            block.__class__ = _FusedBasicBlock
            _followed_by_relu(block.bn1)
    return encoder


def _take_relus(backbone: nn.Module) -> None:
    """Fuse the ReLUs that timm has within its BatchNorms; what follows as a module of its own stays."""
    for norm in backbone.modules():
        if isinstance(norm, FusedBatchNorm2d) and norm.drop is None and type(norm.act) is nn.ReLU:
            norm.act, norm.relu = None, True


def _followed_by_relu(*norms: nn.Module) -> None:
    for norm in norms:
        assert isinstance(norm, FusedBatchNorm2d)
        norm.relu = True
