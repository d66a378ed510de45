"""Find the ResNet in what a weight file holds, whatever the keys and prefixes around it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fastmoco.layouts.files import LayoutError
from fastmoco.layouts.known import CONTAINERS, HEADS, LAYOUTS, STEM_AND_STAGES, WRAPPERS, other_encoder
from shards.words import counted

_BLOCK = r"\.\d+\.(?:conv[1-3]|bn[1-3]|downsample\.[01])\.\w+"
_NAMED, _NUMBERED = (re.compile(rf"((?:.*\.)?){stage}{_BLOCK}") for stage in ("layer[1-4]", "[4-7]"))
_AVERAGED = "n_averaged"  # how many updates a torch.optim.swa_utils.AveragedModel is the mean of
# torch.nn.Sequential(*resnet.children()): 2 is the ReLU, 3 the pooling
_BY_NUMBER = {"0": "conv1", "1": "bn1", "4": "layer1", "5": "layer2", "6": "layer3", "7": "layer4"}


@dataclass(frozen=True)
class Found:
    """An encoder found in a file.

    Attributes:
        layout: name of the layout.
        taken: which of the file's encoders it is.
        tensors: its tensors under torchvision's names, and whatever else is at its place, without heads.
        head: the head's names at its place.
        others: names of all other tensors in the file.
    """

    layout: str
    taken: str
    tensors: dict[str, torch.Tensor]
    head: tuple[str, ...]
    others: tuple[str, ...]


def flat(content: Any) -> dict[str, torch.Tensor]:
    """All tensors and arrays in nested dictionaries, keys joined by dots, without WRAPPERS in the names.

    Raises:
        LayoutError: two tensors have one name without WRAPPERS, and differ.
    """
    tensors: dict[str, torch.Tensor] = {}
    for parts, value in _walk(content, ()):
        name = ".".join(part for part in ".".join(parts).split(".") if part not in WRAPPERS)
        if name.rpartition(".")[2] == _AVERAGED and value.dim() == 0:
            continue
        if name in tensors and not _same(tensors[name], value):
            raise LayoutError(f"two different tensors have the name {name} without prefixes such as module.")
        tensors[name] = value
    return tensors


def find(path: Path, tensors: Mapping[str, torch.Tensor]) -> Found:
    """The encoder to take among the tensors of a file, as `flat` returns them.

    Raises:
        LayoutError: there is no ResNet, or there are several and the file is in no known layout.
    """
    roots = _roots(tensors)
    if not roots:
        raise LayoutError(f"{path} {_not_found(tensors)}")
    root, layout, taken = chosen(path, tensors, roots, alike=True)
    return _found(layout, taken, tensors, root)


def chosen(path: Path, tensors: Mapping[str, torch.Tensor], roots: list[str], alike: bool = False
) -> tuple[str, str, str]:  # fmt: skip
    """Which of the encoders of a file to take, by the layouts that are known.

    Args:
        path: the file.
        tensors: its tensors, as `flat` returns them.
        roots: prefixes of the encoders.
        alike: whether any may be taken where no layout says which and all are equal.

    Returns:
        Its prefix, the name of the layout, and which encoder it is.

    Raises:
        LayoutError: no layout says which is meant.
    """
    by_place: dict[str, list[str]] = {}
    for root in roots:
        by_place.setdefault(_place_of(root), []).append(root)
    firsts = {_place_of(name).split(".")[0] for name in tensors}
    for layout in LAYOUTS:
        place = layout.fits(by_place, firsts)
        if place is not None and _all_same(tensors, by_place[place]):
            return by_place[place][0], layout.name, layout.taken
    if len(roots) == 1 or (alike and _all_same(tensors, roots)):
        return roots[0], "state dictionary", f"the encoder behind {roots[0]!r}"
    places = ", ".join(root.rstrip(".") or "no prefix" for root in roots)
    raise LayoutError(
        f"{path} holds {len(roots)} encoders ({places}), and its layout does not say which one is meant; save the "
        "state dictionary of the one to use by torch.save"
    )


def _walk(content: Any, parts: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], torch.Tensor]]:
    if isinstance(content, np.ndarray) and content.dtype.kind in "fiu":
        content = torch.from_numpy(content)
    if isinstance(content, torch.Tensor):
        yield parts, content.detach()
    elif isinstance(content, Mapping):
        for key, value in content.items():
            if isinstance(key, str):  # an optimiser's state has numbers
                yield from _walk(value, (*parts, key))


def _place_of(root: str) -> str:
    """A prefix of names without the keys that only hold other things."""
    return ".".join(part for part in root.split(".") if part and part not in CONTAINERS)


def _roots(tensors: Mapping[str, torch.Tensor]) -> list[str]:
    """Prefixes behind which a ResNet is."""
    roots = dict.fromkeys(match[1] for name in tensors if (match := _NAMED.fullmatch(name)))
    for root in dict.fromkeys(match[1] for name in tensors if (match := _NUMBERED.fullmatch(name))):
        stem = tensors.get(root + "0.weight")
        # other networks have numbered blocks, too
        if stem is not None and stem.dim() == 4 and root + "1.running_mean" in tensors:
            roots[root] = None
    return list(roots)


def _found(layout: str, taken: str, tensors: Mapping[str, torch.Tensor], root: str) -> Found:
    inside = {name.removeprefix(root): tensor for name, tensor in tensors.items() if name.startswith(root)}
    if not any(name.startswith("layer") for name in inside):
        inside = {_numbered(name): tensor for name, tensor in inside.items()}
    head = tuple(name for name in inside if name.split(".")[0] in HEADS)
    kept = {name: tensor for name, tensor in inside.items() if name not in head}
    others = tuple(name for name in tensors if not name.startswith(root))
    return Found(layout, taken, kept, head, others)


def _numbered(name: str) -> str:
    first, _, rest = name.partition(".")
    return f"{_BY_NUMBER.get(first, first)}.{rest}" if rest else name


def _all_same(tensors: Mapping[str, torch.Tensor], roots: list[str]) -> bool:
    """Whether the encoders behind the prefixes are equal: some files hold one of them twice."""

    def under(root: str) -> dict[str, torch.Tensor]:
        below = {name.removeprefix(root): tensor for name, tensor in tensors.items() if name.startswith(root)}
        return {name: tensor for name, tensor in below.items() if name.split(".")[0] in STEM_AND_STAGES}

    first, *rest = [under(root) for root in roots]
    return all(
        first.keys() == other.keys() and all(_same(first[name], other[name]) for name in first) for other in rest
    )


def _same(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a is b or (a.shape == b.shape and a.dtype == b.dtype and bool(torch.equal(a, b)))


def _not_found(tensors: Mapping[str, torch.Tensor]) -> str:
    """Why no ResNet was found."""
    if not tensors:
        return (
            "is no checkpoint of fastmoco train or the original MoCo, and no state dictionary of tensors; "
            "save model.state_dict() of a torchvision ResNet"
        )
    kind = other_encoder(tensors)
    if kind is not None:
        return f"holds {kind}; its architecture is not searched for: name it by --arch, as --arch timm:NAME"
    names = list(tensors)
    shown = ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
    return f"holds {counted(len(names), 'tensor')} ({shown}), none with a name of a ResNet's blocks, as layer1.0.conv1"
