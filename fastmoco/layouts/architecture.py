"""The architecture of an encoder, by its tensors' names and shapes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from fastmoco.architectures import ARCHITECTURES, by_timm, known, names
from fastmoco.channels import CHANNELS
from fastmoco.layouts.files import LayoutError
from fastmoco.model.encoders import shapes


def check_recorded(path: Path, recorded: str | None, arch: str | None) -> None:
    """Raise LayoutError for an architecture that a file records and that is not known, or not the user's `arch`.

    One of torchvision's ResNets is compared by its shapes later, as files call them by other names.
    """
    if recorded is not None and not known(recorded):
        raise LayoutError(f"{path} has an encoder {recorded!r}; known: {names()}")
    # a tag of timm's names weights, not another encoder
    same = arch is None or recorded is None or arch.partition(".")[0] == recorded.partition(".")[0]
    if not same and (by_timm(arch or "") or by_timm(recorded or "")):
        raise LayoutError(f"{path} holds a {recorded}, not a {arch}; give --arch {recorded}")


def arch_of(
    path: Path,
    tensors: Mapping[str, torch.Tensor],
    arch: str | None,
    recorded: str | None,
    image_size: int | None = None,
) -> str:
    """The architecture of an encoder, by its shapes; one of timm's is not searched for, but has to be said.

    Args:
        path: the file.
        tensors: those of the encoder, under torchvision's or timm's names.
        arch: what the user says, or None.
        recorded: what the file says, or None.
        image_size: side of the images that it was built for, on which the shapes of transformers depend; None for the
            usual.

    Raises:
        LayoutError: the shapes are of no known architecture, or of another one than `arch` or `recorded`.
    """
    check_recorded(path, recorded, arch)
    said = arch or recorded
    if said is not None and by_timm(said):
        wrong = {said: _differences(tensors, said, image_size)}
        if wrong[said]:
            raise LayoutError(f"{path} {_unlike(tensors, wrong, said)}")
        return said
    wrong = {}
    held = None
    # no two of them have the same shapes
    for name in sorted(ARCHITECTURES, key=lambda name: name != said):
        wrong[name] = _differences(tensors, name)
        if not wrong[name]:
            held = name
            break
    if held is None:
        raise LayoutError(f"{path} {_unlike(tensors, wrong, said)}")
    if recorded is not None and held != recorded:
        raise LayoutError(f"{path} does not hold the weights of its arch {recorded}, but those of a {held}")
    if arch is not None and held != arch:
        raise LayoutError(f"{path} holds a {held}, not a {arch}; give --arch {held}")
    return held


def channels_of(tensors: Mapping[str, torch.Tensor], arch: str, image_size: int | None = None) -> int:
    """Channels of an encoder's images, by the shape of its first convolution: 1 or, in all other cases, 3."""
    found = ((tensors.get(name), shape) for name, shape in shapes(arch, image_size).items())
    grey = (held is not None and _is_grey(held.shape, shape) for held, shape in found)
    return 1 if any(grey) else 3


def _is_grey(held: torch.Size, wanted: torch.Size) -> bool:
    return len(wanted) == 4 and wanted[1] == 3 and held == (wanted[0], 1, *wanted[2:])


def _differences(tensors: Mapping[str, torch.Tensor], arch: str, image_size: int | None = None) -> list[str]:
    """What distinguishes tensors from those of an architecture; counters of batches may be missing."""
    wanted = shapes(arch, image_size, channels_of(tensors, arch, image_size))
    wrong = [f"{n} is missing" for n in wanted if n not in tensors and not n.endswith("num_batches_tracked")]
    wrong += [f"{name} is unexpected" for name in tensors if name not in wanted]
    return wrong + [
        f"{name} has the shape {list(tensors[name].shape)}, not {list(shape)}"
        for name, shape in wanted.items()
        if name in tensors and tensors[name].shape != shape
    ]


def _unlike(tensors: Mapping[str, torch.Tensor], wrong: dict[str, list[str]], said: str | None) -> str:
    """Why tensors are of no architecture that is known, from the differences to each."""
    if said is not None and by_timm(said):
        return _named(wrong, said, "is --arch right?")
    first = tensors.get("conv1.weight")
    if first is not None and first.dim() == 4 and first.shape[2:] != (7, 7):
        sides = " × ".join(map(str, first.shape[2:]))
        return f"holds a ResNet whose first convolution is {sides}, not 7 × 7 as those of --arch"
    if first is not None and first.dim() == 4 and first.shape[1] not in CHANNELS:
        return f"holds a ResNet of images with {first.shape[1]} channels; those of --arch have 3 or 1"
    if "conv1.0.weight" in tensors or any(name.startswith("stem.") for name in tensors):
        return (
            "holds a ResNet with a stem of several convolutions, which torchvision's do not have; of one of timm's "
            "give the name, as --arch timm:resnet50d"
        )
    nearest = said or min(wrong, key=lambda name: len(wrong[name]))
    asked = "is --arch right?" if said else "it is the most similar one of --arch"
    return _named(wrong, nearest, asked)


def _named(wrong: dict[str, list[str]], arch: str, asked: str) -> str:
    first = "; ".join(wrong[arch][:3])
    return f"does not hold the weights of a {arch}: {first}, {len(wrong[arch])} in all; {asked}"
