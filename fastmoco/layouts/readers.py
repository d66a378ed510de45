"""What reads an exported encoder in another program: the module that loads it, or the settings that describe it."""

from __future__ import annotations

from collections.abc import Callable

from fastmoco.architectures import by_timm
from fastmoco.model.encoders import usual_size
from fastmoco.model.timm_encoders import arguments_of
from pipelines.augmentation import IMAGENET_MEAN, IMAGENET_STD

_BLOCKS = {
    "resnet10": "BasicBlock, [1, 1, 1, 1]",
    "resnext50_32x8d": "Bottleneck, [3, 4, 6, 3]",
}
"""Block and layers of encoders that neither torchvision nor timm has by name, though their classes build them."""
_OWN = ("resnet50_w2", "resnet50_w4")
"""Encoders that no class of theirs builds: both fix the width of the stem."""
_GREY_STEM = "torch.nn.Conv2d(1, 64, 7, stride=2, padding=3, bias=False)"
"""The first convolution for images of one channel, which torchvision has no argument for."""
# depth, groups, channels of a group in the first stage's 3 × 3 convolutions, channels of stem and first stage
_DETECTRON2 = {
    "resnet18": (18, 1, 64, 64, 64),
    "resnet34": (34, 1, 64, 64, 64),
    "resnet50": (50, 1, 64, 64, 256),
    "resnet101": (101, 1, 64, 64, 256),
    "resnet152": (152, 1, 64, 64, 256),
    "resnext50_32x4d": (50, 32, 4, 64, 256),
    "resnext50_32x8d": (50, 32, 8, 64, 256),
    "resnext101_32x8d": (101, 32, 8, 64, 256),
    "resnext101_64x4d": (101, 64, 4, 64, 256),
    "wide_resnet50_2": (50, 1, 128, 64, 256),
    "wide_resnet101_2": (101, 1, 128, 64, 256),
    "resnet50_w2": (50, 1, 128, 128, 512),
    "resnet50_w4": (50, 1, 256, 256, 1024),
}


def torchvision(arch: str, classes: int | None = None, image_size: int | None = None, channels: int = 3) -> str:
    """What loads an encoder in torchvision's layout, or a classifier of some classes, of images of any size."""
    if arch in _OWN:
        return _own("torchvision", arch, classes, channels)
    stem = "" if channels == 3 else f"conv1 = {_GREY_STEM}"
    if arch in _BLOCKS:
        block = f"torchvision.models.resnet.{_BLOCKS[arch]}"
        groups = ", groups=32, width_per_group=8" if arch == "resnext50_32x8d" else ""
        made = f"torchvision.models.ResNet({block}{groups}{'' if classes is None else f', num_classes={classes}'})"
        return f"{made}{_with(stem, classes)} loads it strictly (torchvision has no {arch} by name)"
    made = f"torchvision's {arch}" if classes is None else f"torchvision.models.{arch}(num_classes={classes})"
    return f"{made}{_with(stem, classes)} loads it strictly"


def _with(stem: str, classes: int | None) -> str:
    """The modules that are replaced before weights are loaded."""
    replaced = [each for each in (stem, "" if classes is not None else "fc = torch.nn.Identity()") if each]
    return f" with {' and '.join(replaced)}" if replaced else ""


def by_class_alone(arch: str) -> bool:
    """Whether timm and torchvision have an encoder's class at most, but no name for it."""
    return arch in _BLOCKS or arch in _OWN


def timm(arch: str, classes: int | None = None, image_size: int | None = None, channels: int = 3) -> str:
    """What loads an encoder in timm's layout, or a classifier of some classes, of images of a size."""
    if by_timm(arch):
        name, arguments = arguments_of(arch, image_size or usual_size(arch), channels)
        more = "".join(f", {key}={value}" for key, value in arguments.items())
        return f"timm.create_model('{name}', num_classes={classes or 0}{more}) loads it strictly"
    if arch in _OWN:
        return _own("timm", arch, classes, channels)
    grey = "" if channels == 3 else f", in_chans={channels}"
    if arch in _BLOCKS:
        block = f"timm.models.resnet.{_BLOCKS[arch]}"
        groups = ", cardinality=32, base_width=8" if arch == "resnext50_32x8d" else ""
        made = f"timm.models.resnet.ResNet({block}{groups}, num_classes={classes or 0}{grey})"
        return f"{made} loads it strictly (timm has no {arch} by name)"
    return f"timm.create_model('{arch}', num_classes={classes or 0}{grey}) loads it strictly"


def detectron2(arch: str, mean: tuple[float, ...] | None = None, std: tuple[float, ...] | None = None) -> str:
    """The settings under which detectron2 reads an encoder of images with a mean and std; None: ImageNet's."""
    levels = [[round(255 * value, 3) for value in values] for values in (mean or IMAGENET_MEAN, std or IMAGENET_STD)]
    # torchvision's ResNets have their strides in the 3 × 3 convolutions, detectron2's by default in the 1 × 1
    images = f"INPUT.FORMAT RGB, PIXEL_MEAN {levels[0]}, PIXEL_STD {levels[1]} and RESNETS.STRIDE_IN_1X1 False"
    if arch not in _DETECTRON2:
        stages = "detectron2.modeling.backbone.ResNet of stages by ResNet.make_stage(BasicBlock, 1, ...)"
        return f"set MODEL.WEIGHTS to it, {images}; MODEL.RESNETS.DEPTH has no {arch}: register a {stages}"
    depth, groups, width, stem, first = _DETECTRON2[arch]
    named = {
        "DEPTH": (depth, 50), "NUM_GROUPS": (groups, 1), "WIDTH_PER_GROUP": (width, 64),
        "STEM_OUT_CHANNELS": (stem, 64), "RES2_OUT_CHANNELS": (first, 256),
    }  # fmt: skip
    shape = ", ".join(f"RESNETS.{name} {value}" for name, (value, default) in named.items() if value != default)
    return f"set MODEL.WEIGHTS to it, {shape + ', ' if shape else ''}{images}"


def hub(arch: str, classes: int | None = None, image_size: int | None = None, channels: int = 3) -> str:
    """What loads a folder for the Hugging Face hub, and what uploads it."""
    return (
        "timm.create_model('local-dir:FOLDER', pretrained=True) loads it; add the licence to its README.md, and upload "
        "it by hf upload USER/NAME FOLDER"
    )


def moco(arch: str, mean: tuple[float, ...] | None = None, std: tuple[float, ...] | None = None) -> str:
    """What reads a checkpoint of the original MoCo, of images with any mean and std."""
    named = arch in _OWN or arch in _BLOCKS
    # its programs build an encoder as torchvision.models.NAME
    return "the original MoCo's programs read it" + (
        f" once torchvision.models has a {arch}, which it lacks" if named else ""
    )


def _own(library: str, arch: str, classes: int | None, channels: int) -> str:
    grey = "" if channels == 3 else f", channels={channels}"
    made = f"fastmoco.model.encoders.backbone('{arch}'{grey})"
    if classes is not None:
        made += f", followed by fc = torch.nn.Linear(out_dim, {classes}),"
    return f"{made} loads it strictly ({library} has no {arch}; its class WideResNet needs torchvision alone)"


READERS: dict[str, Callable[..., str]] = {
    "torchvision": torchvision,
    "timm": timm,
    "hf-hub": hub,
    "detectron2": detectron2,
    "moco": moco,
}
"""For each format, what to do with a file, as text, given the encoder's architecture; for those with a classifier also
the number of classes of a fine-tuned one, and the side and channels of its images; for the others mean and std."""
