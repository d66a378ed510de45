"""Names of encoders, checked without torch or timm; `fastmoco.model.encoders` builds them."""

from __future__ import annotations

from fastmoco.flags import require

TIMM = "timm:"
"""What the name of an encoder of timm begins with: `timm:convnext_tiny`."""
ARCHITECTURES = (
    "resnet10",
    "resnet18",
    "resnet34",
    "resnet50",
    "resnet101",
    "resnet152",
    "resnext50_32x4d",
    "resnext50_32x8d",
    "resnext101_32x8d",
    "resnext101_64x4d",
    "wide_resnet50_2",
    "wide_resnet101_2",
    "resnet50_w2",
    "resnet50_w4",
)
"""The ResNets, by torchvision's names."""
MOCO_V3 = ("moco_v3_vit_small", "moco_v3_vit_base")
"""The vision transformers of MoCo v3, which differ from timm's; built by timm."""


def by_timm(arch: str) -> bool:
    """Whether an encoder is built by timm."""
    return arch.startswith(TIMM) or arch in MOCO_V3


def known(arch: str) -> bool:
    """Whether a name is that of an encoder; which of them timm has is known once it is built."""
    return arch in ARCHITECTURES or arch in MOCO_V3 or (arch.startswith(TIMM) and len(arch) > len(TIMM))


def names() -> str:
    """The names that are known, for messages."""
    return f"{', '.join((*ARCHITECTURES, *MOCO_V3))}, and encoders of timm as timm:NAME, such as timm:convnext_tiny"


def check_arch(arch: str | None) -> None:
    """Raise ConfigError for a name that is not known; None is no name."""
    require(arch is None or known(arch), f"unknown --arch {arch!r}; known: {names()}")


def in_file_name(arch: str) -> str:
    """The name for folders: without the colon, which remote copies take for the end of a host's name."""
    return arch.replace(":", "-")
