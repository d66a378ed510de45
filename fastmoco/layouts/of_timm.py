"""Find an encoder of timm in what a weight file holds, by the names of its tensors."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import torch

from fastmoco.architectures import TIMM, known
from fastmoco.layouts.files import LayoutError
from fastmoco.layouts.finding import Found, chosen
from fastmoco.layouts.known import HEADS
from fastmoco.model.encoders import fixed_size, shapes
from fastmoco.model.timm_encoders import names_of_classifier, present_name, traits
from fastmoco.model.v3_transformers import positions

_ALIKE = ("moco_v3_vit_small", "timm:vit_small_patch16_224")
"""Encoders of the same shapes, with 12 and with 6 attention heads."""
_OF_MOCO_V3 = {"vit_small": "moco_v3_vit_small", "vit_base": "moco_v3_vit_base"}


def renamed_arch(recorded: str | None, tensors: Mapping[str, torch.Tensor]) -> str | None:
    """The architecture that a file records, under its name here: other programs have timm's names, present or former.

    moco-v3 has encoders of its own under such names.
    """
    of_v3 = any(name.startswith("state_dict.base_encoder.") for name in tensors)
    if recorded is None or known(recorded):
        return recorded
    if of_v3 and recorded in _OF_MOCO_V3:
        return _OF_MOCO_V3[recorded]
    now = present_name(recorded)
    return recorded if now is None else TIMM + now


def find_of_timm(path: Path, tensors: Mapping[str, torch.Tensor], arch: str) -> tuple[Found, int | None]:
    """The encoder of timm to take among the tensors of a file, as `finding.flat` returns them.

    Args:
        path: the file.
        tensors: its tensors.
        arch: the architecture.

    Returns:
        The encoder, and the side of the images that it was built for where its shapes show it.

    Raises:
        LayoutError: it is not there, or there are several and the file is in no known layout.
    """
    wanted = shapes(arch)
    first, last = next(iter(wanted)), list(wanted)[-1]
    ends = [name.removesuffix(first) for name in tensors if name.endswith(first)]
    ends += [name.removesuffix(last) for name in tensors if name.endswith(last)]
    # the prefixes behind which most of the names are: names of parts may end alike
    counts = {root: sum(root + name in tensors for name in wanted) for root in dict.fromkeys(ends)}
    roots = [root for root, count in counts.items() if 2 * count > len(wanted)]
    if not roots:
        shown = ", ".join(list(tensors)[:3])
        raise LayoutError(f"{path} holds no {arch}: of its {len(wanted)} names, as {first}, it has few; it has {shown}")
    root, layout, taken = chosen(path, tensors, roots)
    inside = {name.removeprefix(root): value for name, value in tensors.items() if name.startswith(root)}
    left = [name for name in inside if name not in wanted]
    head = tuple(name for name in left if name.split(".")[0] in HEADS or name in names_of_classifier(arch))
    kept = {name: value for name, value in inside.items() if name not in head}
    others = tuple(name for name in tensors if not name.startswith(root))
    return Found(layout, taken, kept, head, others), _size(arch, kept) if fixed_size(arch) else None


def _size(arch: str, tensors: Mapping[str, torch.Tensor]) -> int | None:
    """Side of the images that a transformer was built for, by its position embeddings; None for the usual."""
    usual, held = shapes(arch).get("pos_embed"), tensors.get("pos_embed")
    if usual is None or held is None or held.dim() != 3 or len(usual) != 3:
        return None
    own = traits(arch)
    patches = (own.image_size // own.step) ** 2
    side = math.isqrt(max(0, held.shape[1] - (usual[1] - patches)))
    fits = side**2 == held.shape[1] - (usual[1] - patches)
    return side * own.step if side and fits else None


def check_heads(path: Path, tensors: Mapping[str, torch.Tensor], arch: str, recorded: str | None) -> None:
    """Raise LayoutError for MoCo v3's ViT-S in place of timm's, or the reverse, where the file does not say which.

    They have the same shapes, with 12 and with 6 attention heads, and so other features. MoCo v3's positions are fixed.
    """
    held = tensors.get("pos_embed")
    if recorded is not None or held is None or arch not in _ALIKE:
        return
    side = math.isqrt(held.shape[1] - 1)
    fixed = positions(side, side, held.shape[2])
    is_v3 = fixed.shape == held.shape and torch.allclose(held.float(), fixed, atol=1e-3)
    if arch == _ALIKE[0] and not is_v3:
        raise LayoutError(
            f"{path} has other position embeddings than the fixed ones of {arch}: its number of attention heads may "
            "differ, which shapes do not show; give timm's own --arch"
        )
    if arch == _ALIKE[1] and is_v3:
        raise LayoutError(
            f"{path} has the fixed position embeddings of MoCo v3, whose ViT-S has 12 attention heads where {arch} has "
            "6; give --arch moco_v3_vit_small"
        )
