"""Encoders of timm, and the vision transformers of MoCo v3 (arXiv 2104.02057), which timm's class builds.

A module is timm's own, without a classifier, so that weights and checkpoints have timm's names.
"""

from __future__ import annotations

from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from typing import Any

import torch
from torch import nn
from torch.torch_version import TorchVersion

from fastmoco.architectures import MOCO_V3, TIMM
from fastmoco.channels import averaged
from fastmoco.config import ConfigError
from fastmoco.flags import require
from fastmoco.model import v3_transformers
from pipelines.augmentation import IMAGENET_MEAN, IMAGENET_STD

OLDEST = "1.0.30"
"""The oldest timm that is supported; before it, some families cannot be built without memory for their weights."""
_V3 = {
    "moco_v3_vit_small": ("vit_small_patch16_224", {"num_heads": 12}),
    "moco_v3_vit_base": ("vit_base_patch16_224", {}),
}
"""timm's name and arguments of MoCo v3's transformers. The paper's ViT-S has 12 heads (its table 2), timm's has 6."""


@dataclass(frozen=True)
class Traits:
    """What timm says of an encoder.

    Attributes:
        image_size: side of its images in pixels.
        mean: means of red, green and blue that its images are normalised with, in [0, 1].
        std: standard deviations.
        fixed: whether it is built for one image size, as are transformers.
        drops: whether it has stochastic depth where nothing is said.
        step: images' sides are multiples of it: of the patches, and of the windows of a Swin transformer.
    """

    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    fixed: bool
    drops: bool
    step: int

    def normalisation(self, channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Means and standard deviations of images; of one channel their averages."""
        return (self.mean, self.std) if channels == 3 else (averaged(self.mean), averaged(self.std))


def timm_name(arch: str) -> tuple[str, dict[str, Any]]:
    """The name by which timm builds an encoder, and the arguments besides its image size."""
    return _V3[arch] if arch in MOCO_V3 else (arch.removeprefix(TIMM), {})


def present_name(name: str) -> str | None:
    """The name of timm's for an encoder that it now has or formerly had under `name`; None without timm or for others.

    Names are those of timm, without `timm:`.
    """
    try:
        import timm
    except ImportError:
        return None
    plain = name.partition(".")[0]
    return timm.models.get_deprecated_models().get(plain, name) if timm.is_model(plain) else None


@cache
def traits(arch: str) -> Traits:
    """What timm says of an encoder.

    Raises:
        ConfigError: timm is not installed or too old, or has no encoder of that name.
    """
    name, arguments = timm_name(arch)
    settings = _timm(arch).get_pretrained_cfg(name)
    assert settings is not None  # _timm has found the name
    of_v3 = arch in MOCO_V3
    with torch.device("meta"):  # its modules alone
        net = _created(name, arguments)
    return Traits(
        settings.input_size[-1],
        IMAGENET_MEAN if of_v3 else tuple(settings.mean),
        IMAGENET_STD if of_v3 else tuple(settings.std),
        settings.fixed_input_size,
        _drops(net),
        _step(net),
    )


def new_timm_encoder(arch: str, image_size: int | None = None, drop_path: float = 0.0, channels: int = 3) -> nn.Module:
    """An encoder with random weights: images [B, C, S, S] to pooled features [B, out_dim].

    Args:
        arch: timm:NAME, or one of MOCO_V3.
        image_size: side S; None for timm's. It shapes the encoder only where that is built for one size.
        drop_path: rate of stochastic depth of the last block.
        channels: C, 3 or 1.

    Raises:
        ConfigError: there is no such encoder, it does not take images of that size or of one channel, or has no
            stochastic depth.
    """
    own = traits(arch)
    size = image_size or own.image_size
    check_size(arch, size)
    name, arguments = timm_name(arch)
    require(
        channels == 3 or _takes_grey(arch),
        f"--channels {channels}: timm's {name} takes images of three channels alone; leave it out, or use another one",
    )
    net = _created(name, arguments | _of_size(arch, size) | _of_depth(arch, drop_path) | _of_channels(channels))
    if arch in MOCO_V3:
        v3_transformers.begin(net)
    # of timm.create_model(NAME, num_classes=0), which some encoders compute from the pooled features
    mean, std = own.normalisation(channels)
    of_backbone = {"out_dim": net.head_hidden_size, "channels": channels, "image_mean": mean, "image_std": std}
    of_backbone |= {"image_scaling": None, "image_bits": 8, "arch": arch}
    for name, value in of_backbone.items():
        setattr(net, name, value)
    return net


def check_size(arch: str, size: int) -> None:
    """Raise ConfigError if an encoder does not take images of a size."""
    step, wrong = traits(arch).step, f"--image-size {size} does not fit --arch {arch}"
    below, above = size // step * step, -(-size // step) * step
    nearest = f"{below} or {above}" if below else f"{above}"
    require(size % step == 0, f"{wrong}, which takes multiples of {step}; use {nearest}")
    reason = _refusal(arch, size)
    if reason is None:
        return
    fitting = [each for each in (below - step, above + step) if each > 0 and _refusal(arch, each) is None]
    own = traits(arch).image_size
    raise ConfigError(f"{wrong} ({reason}); use {' or '.join(map(str, fitting or [own]))}")


def takes(arch: str, size: int) -> bool:
    """Whether an encoder that is not built for one size takes images of a size."""
    return size % traits(arch).step == 0 and _refusal(arch, size) is None


def arguments_of(arch: str, image_size: int, channels: int = 3) -> tuple[str, dict[str, Any]]:
    """The name and the arguments with which timm.create_model builds what weights of an encoder fit."""
    name, arguments = timm_name(arch)
    own = traits(arch).image_size
    return name, arguments | (_of_size(arch, image_size) if image_size != own else {}) | _of_channels(channels)


def _of_channels(channels: int) -> dict[str, Any]:
    """The argument of timm.create_model for images of one channel; none for three, its default."""
    return {"in_chans": channels} if channels != 3 else {}


@cache
def _takes_grey(arch: str) -> bool:
    """Whether timm builds an encoder for images of one channel whose first convolution shows it.

    It does not where a linear layer or rearranged pixels come first, as in NaFlexViT and TResNet: no reader would know
    such weights from those of three channels.
    """
    name, arguments = timm_name(arch)
    try:
        with torch.device("meta"):
            three, one = (_created(name, arguments | _of_channels(each)).state_dict() for each in (3, 1))
    except TypeError:  # an argument that its class does not have
        return False
    of_images = [key for key, value in three.items() if value.dim() == 4 and value.shape[1] == 3]
    return any(one[key].shape[1] == 1 for key in of_images)


def with_classifier(arch: str, image_size: int, channels: int, classes: int) -> nn.Module:
    """An encoder as timm builds it with a classifier of some classes, with random weights."""
    name, arguments = arguments_of(arch, image_size, channels)
    return _created(name, arguments, classes)


@cache
def names_of_classifier(arch: str) -> frozenset[str]:
    """Names of the tensors that timm's model of an encoder has only with a classifier."""
    name, arguments = timm_name(arch)
    with torch.device("meta"):
        bare, whole = (_created(name, arguments, classes).state_dict() for classes in (0, 2))
    return frozenset(whole.keys() - bare.keys())


def first_conv_and_classifier(arch: str) -> tuple[Any, Any]:
    """The names by which timm calls an encoder's first convolution and its classifier: a string, several, or None."""
    settings = _timm(arch).get_pretrained_cfg(timm_name(arch)[0])
    return settings.first_conv, settings.classifier


def _timm(arch: str) -> Any:
    """The package, which has the encoder."""
    try:
        import timm
    except ImportError:
        raise ConfigError(f"--arch {arch} needs timm: pip install 'fastmoco[timm]'") from None
    if TorchVersion(timm.__version__) < OLDEST:
        raise ConfigError(
            f"--arch {arch} needs timm {OLDEST} or newer, and {timm.__version__} is installed: pip install -U "
            "'fastmoco[timm]'"
        )
    name = timm_name(arch)[0]
    plain = name.partition(".")[0]  # a tag names weights, whose images may be normalised in another way
    if not timm.is_model(plain):
        close = [f"{TIMM}{other}" for other in get_close_matches(plain, timm.list_models(), n=3)]
        remedy = f"did you mean {' or '.join(close)}?" if close else "timm.list_models() has the names"
        raise ConfigError(f"unknown --arch {arch}: timm {timm.__version__} has no {plain}; {remedy}")
    now = present_name(name)
    require(now is not None, f"unknown --arch {arch}: timm {timm.__version__} no longer has it")
    require(
        now == name, f"unknown --arch {arch}: timm {timm.__version__} has renamed {plain} to {now}; give {TIMM}{now}"
    )
    try:
        timm.get_pretrained_cfg(name, allow_unregistered=False)
    except RuntimeError as error:  # of an unknown tag
        raise ConfigError(f"unknown --arch {arch}: {error} Use {TIMM}{plain}") from error
    return timm


def _created(name: str, arguments: dict[str, Any], classes: int = 0) -> nn.Module:
    import timm

    # no weights from the network: training starts from random ones
    return timm.create_model(name, pretrained=False, num_classes=classes, **arguments)


def _of_size(arch: str, size: int) -> dict[str, Any]:
    return {"img_size": size} if traits(arch).fixed else {}


def _of_depth(arch: str, rate: float) -> dict[str, Any]:
    if rate == 0:  # some have it by default, as Swin, and only those are sure to know the argument
        return {"drop_path_rate": 0.0} if traits(arch).drops else {}
    name, arguments = timm_name(arch)
    try:
        with torch.device("meta"):
            net = _created(name, arguments | {"drop_path_rate": rate})
        has = _drops(net)
    except TypeError:  # an argument that its class does not have
        has = False
    require(has, f"--drop-path {rate:g}: timm's {name} has no stochastic depth; leave it out")
    return {"drop_path_rate": rate}


def _drops(net: nn.Module) -> bool:
    return any(getattr(module, "drop_prob", 0) for module in net.modules())


@cache
def _refusal(arch: str, size: int) -> str | None:
    """Why an encoder does not take images of a size; None if it does."""
    name, arguments = timm_name(arch)
    try:
        with torch.device("meta"):
            _created(name, arguments | _of_size(arch, size)).eval()(torch.empty(2, 3, size, size))
    except (RuntimeError, AssertionError, ValueError, TypeError) as error:  # what encoders raise for it differs
        return (str(error).splitlines() or [type(error).__name__])[0][:120]
    return None


def _step(net: nn.Module) -> int:
    """Pixels of a patch, times the patches of a window where attention is in windows that are shifted.

    1 where patches overlap, as in PVT v2: then no side leaves pixels over.
    """
    patches = getattr(net, "patch_embed", None)
    patch = getattr(patches, "patch_size", 1)
    side = patch[0] if isinstance(patch, tuple) else patch
    stride = getattr(getattr(patches, "proj", None), "stride", (side, side))
    if isinstance(stride, tuple) and stride[0] < side:
        return 1
    # others have a window, too, that is as large as the image
    if "Swin" not in type(net).__name__:
        return side
    # without it, timm fills windows up with zeros, which take part in the attention
    windows: list[Any] = [getattr(module, "window_size", None) for module in net.modules()]
    return side * next(int(window[0]) for window in windows if isinstance(window, tuple))
