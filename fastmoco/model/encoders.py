"""Encoders: a ResNet of torchvision or any encoder of timm without its classifier, followed by a projection head."""

from __future__ import annotations

from functools import cache, partial
from typing import Any, cast

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from torchvision.models import resnet
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

from fastmoco.architectures import by_timm, names
from fastmoco.channels import usual_normalisation
from fastmoco.model.batchnorm import BatchNorm2d
from fastmoco.model.heads import prediction_head, projection_head
from fastmoco.model.timm_encoders import new_timm_encoder, takes, traits
from pipelines.augmentation import IMAGENET_MEAN, IMAGENET_STD
from shards.format.scaling import Scaling


def _stem(channels: int, width: int) -> nn.Conv2d:
    """A ResNet's first convolution, initialised as torchvision does."""
    made = nn.Conv2d(channels, width, kernel_size=7, stride=2, padding=3, bias=False)
    nn.init.kaiming_normal_(made.weight, mode="fan_out", nonlinearity="relu")
    return made


class WideResNet(ResNet):
    """A ResNet with `factor` times the channels in every layer, including the stem and the blocks' outputs.

    torchvision's wide_resnet50_2 widens only the 3×3 convolutions.
    """

    def __init__(
        self, factor: float, block: type[BasicBlock | Bottleneck], layers: list[int], zero_init_residual: bool = False
    ) -> None:
        self._factor = factor
        super().__init__(block, layers, zero_init_residual=zero_init_residual)
        # torchvision's constructor fixes the stem at 64 channels and the classifier's input at 512 × expansion
        width = int(64 * factor)
        self.conv1 = _stem(3, width)
        self.bn1 = nn.BatchNorm2d(width)
        self.fc = nn.Linear(self.inplanes, 1000)

    def _make_layer(self, block, planes, blocks, stride=1, dilate=False) -> nn.Sequential:
        if planes == 64:  # torchvision calls this before the stem is widened
            self.inplanes = int(64 * self._factor)
        return super()._make_layer(block, int(planes * self._factor), blocks, stride, dilate)


_BUILDERS = {
    # the paper's ResNeXt (arXiv 1911.05722, table 1) and a ResNet of one block a stage, which torchvision does not have
    "resnet10": partial(ResNet, BasicBlock, [1, 1, 1, 1]),
    "resnet18": resnet.resnet18,
    "resnet34": resnet.resnet34,
    "resnet50": resnet.resnet50,
    "resnet101": resnet.resnet101,
    "resnet152": resnet.resnet152,
    "resnext50_32x4d": resnet.resnext50_32x4d,
    "resnext50_32x8d": partial(ResNet, Bottleneck, [3, 4, 6, 3], groups=32, width_per_group=8),
    "resnext101_32x8d": resnet.resnext101_32x8d,
    "resnext101_64x4d": resnet.resnext101_64x4d,
    "wide_resnet50_2": resnet.wide_resnet50_2,
    "wide_resnet101_2": resnet.wide_resnet101_2,
    "resnet50_w2": partial(WideResNet, 2, Bottleneck, [3, 4, 6, 3]),
    "resnet50_w4": partial(WideResNet, 4, Bottleneck, [3, 4, 6, 3]),
}


class _MeanOfPixels(nn.Module):
    """Global average pooling whose gradient is channels-last if the input is; AdaptiveAvgPool2d's is not.

    With the latter the backward pass of the last block would run in the slower layout.
    """

    def forward(self, images_BCHW: torch.Tensor) -> torch.Tensor:
        """[B, C, H, W] to [B, C]."""
        return images_BCHW.permute(0, 2, 3, 1).flatten(1, 2).mean(1)


class Backbone(nn.Module):
    """An encoder up to its pooled features: images [B, C, H, W] to features [B, out_dim].

    Attributes:
        arch: Its name.
        out_dim: Dimension of the pooled features.
        channels: C, 3 or 1.
        image_mean: Means of the channels that its images are normalised with, in [0, 1].
        image_std: Their standard deviations.
        image_scaling: By which 16-bit values are scaled to [0, 1]; None where it was trained on 8 bits, or none is
            known.
        image_bits: Bits that it was trained on, 8 or 16; 16 without a scaling where those of several sets differed.
    """

    arch: str
    out_dim: int
    channels: int = 3
    image_mean: tuple[float, ...] = IMAGENET_MEAN
    image_std: tuple[float, ...] = IMAGENET_STD
    image_scaling: Scaling | None = None
    image_bits: int = 8


class ResNetBackbone(Backbone):
    """A ResNet up to its global average pooling.

    Parameters keep torchvision's names, so that weights can be exchanged with torchvision both ways.
    """

    def __init__(self, arch: str, zero_init_residual: bool = False, channels: int = 3) -> None:
        super().__init__()
        net = _BUILDERS[arch](zero_init_residual=zero_init_residual)
        if channels != self.channels:
            net.conv1 = _stem(channels, net.conv1.out_channels)
            self.channels = channels
            self.image_mean, self.image_std = usual_normalisation(channels)
        self.arch, self.out_dim = arch, net.fc.in_features
        self._recomputed = False
        del net.fc
        net.avgpool = _MeanOfPixels()
        # torchvision registers a ResNet's children in the order in which it calls them; forward depends on that
        for name, child in net.named_children():
            self.add_module(name, child)

    def forward(self, images_BCHW: torch.Tensor) -> torch.Tensor:
        """Images [B, C, H, W] to pooled features [B, out_dim]."""
        x = images_BCHW
        for child in self.children():
            again = self._recomputed and isinstance(child, nn.Sequential) and torch.is_grad_enabled()
            x = checkpoint(child, x, use_reentrant=False) if again else child(x)
        return x

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Compute the activations of each stage again in the backward pass; named as timm's."""
        self._recomputed = enable


def backbone(
    arch: str,
    zero_init_residual: bool = False,
    image_size: int | None = None,
    drop_path: float = 0.0,
    channels: int = 3,
) -> Backbone:
    """An encoder by its name with random weights, mapping [B, C, H, W] to pooled features [B, out_dim].

    Args:
        arch: A name of `fastmoco.architectures`. One of timm is timm's own module with the attributes of Backbone.
        zero_init_residual: Initialise the last BatchNorm weight of each residual branch to zero, so that every block
            starts as the identity (arXiv 1706.02677, section 5.1); of ResNets only.
        image_size: Side of the images in pixels, on which the shapes of a transformer depend; None for the encoder's.
        drop_path: Rate of stochastic depth in the last block (arXiv 1603.09382); of timm's encoders only.
        channels: C, 3 or 1.

    Raises:
        ValueError: The name is not known, or an encoder of timm cannot be built so.
    """
    if by_timm(arch):
        return cast(Backbone, new_timm_encoder(arch, image_size, drop_path, channels))
    if arch not in _BUILDERS:
        raise ValueError(f"unknown architecture {arch!r}; known: {names()}")
    return ResNetBackbone(arch, zero_init_residual, channels)


def own_settings(arch: str, channels: int = 3) -> dict[str, Any]:
    """Settings that follow an encoder where the user has not given them: of timm's, its images' size, mean and std."""
    if not by_timm(arch):
        return {}
    own = traits(arch)
    mean, std = own.normalisation(channels)
    return {"image_size": own.image_size, "mean": mean, "std": std}


def usual_size(arch: str) -> int:
    """Side of an encoder's images in pixels where nothing else is said."""
    return own_settings(arch).get("image_size", 224)


def fixed_size(arch: str) -> bool:
    """Whether an encoder takes images of the one size that it is built for."""
    return by_timm(arch) and traits(arch).fixed


def small_size(arch: str, image_size: int) -> int:
    """Side of images that are cheap to pass: 32 pixels, or `image_size` where an encoder does not take these."""
    small = not by_timm(arch) or (not fixed_size(arch) and takes(arch, 32))
    return 32 if small else image_size


def shapes(arch: str, image_size: int | None = None, channels: int = 3) -> dict[str, torch.Size]:
    """Shapes of a backbone's parameters and buffers by name, in the order of its state dictionary."""
    return _shapes(arch, _BUILDERS.get(arch), image_size, channels)


@cache
def _shapes(arch: str, _builder: object, image_size: int | None, channels: int) -> dict[str, torch.Size]:
    with torch.device("meta"):  # names and shapes alone, without memory or time for values
        net = backbone(arch, image_size=image_size, channels=channels)
    return {name: value.shape for name, value in net.state_dict().items()}


PREDICTOR = "predictor."
"""What the names of the predictor's tensors begin with in an encoder's state."""


class Encoder(nn.Module):
    """Backbone, projection head and, if wanted, predictor: images [B, C, H, W] to features [B, D], not normalised.

    Args:
        arch: See `backbone`.
        head: Kind of the projection head; see `projection_head`.
        feature_dim: D.
        zero_init_residual: See `backbone`.
        head_layers: Layers of the head `mlp-bn`.
        head_width: Dimension of the hidden layers of the head `mlp-bn` and of the predictor.
        predictor: Kind of the predictor; see `prediction_head`.
        image_size: See `backbone`.
        drop_path: See `backbone`.
        channels: See `backbone`.
    """

    def __init__(
        self,
        arch: str,
        head: str,
        feature_dim: int,
        zero_init_residual: bool = False,
        *,
        head_layers: int = 2,
        head_width: int = 4096,
        predictor: str = "none",
        image_size: int | None = None,
        drop_path: float = 0.0,
        channels: int = 3,
    ) -> None:
        super().__init__()
        self.backbone = backbone(arch, zero_init_residual, image_size, drop_path, channels)
        self.head = projection_head(head, self.backbone.out_dim, feature_dim, head_layers, head_width)
        self.predictor = prediction_head(predictor, feature_dim, head_width)
        self._counted: list[BatchNorm2d] = []

    def count_together(self) -> None:
        """From now on count the batches of all BatchNorms in one launch: a ResNet-50 has 53 of them."""
        self._counted = [module for module in self.modules() if isinstance(module, BatchNorm2d)]
        for norm in self._counted:
            norm.counts = False

    def forward(self, images_BCHW: torch.Tensor) -> torch.Tensor:
        """Images [B, C, H, W] to features [B, D]."""
        if self.training and self._counted:
            torch._foreach_add_([norm.num_batches_tracked for norm in self._counted], 1)  # pyright: ignore
        projected_BD = self.head(self.backbone(images_BCHW))
        return projected_BD if self.predictor is None else self.predictor(projected_BD)
