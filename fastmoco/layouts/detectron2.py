"""An encoder's weights under detectron2's names."""

from __future__ import annotations

import numpy as np
import torch

_MODULES = {
    **{f"conv{n}": f"conv{n}" for n in (1, 2, 3)},
    **{f"bn{n}": f"conv{n}.norm" for n in (1, 2, 3)},
    "downsample.0": "shortcut",
    "downsample.1": "shortcut.norm",
}


def detectron2_name(name: str) -> str:
    """Convert torchvision's name of a tensor to detectron2's: `layer1.0.bn2.bias` is `res2.0.conv2.norm.bias`.

    Detectron2's ResNet has a `stem` and the stages `res2` to `res5`; a BatchNorm is the `norm` of its convolution.
    """
    module, leaf = name.rsplit(".", 1)
    place = "stem"
    if module.startswith("layer"):
        stage, block, module = module.split(".", 2)
        # detectron2 counts the stem as res1
        place = f"res{int(stage.removeprefix('layer')) + 1}.{block}"
    return f"{place}.{_MODULES[module]}.{leaf}"


def detectron2_arrays(weights: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
    """Convert weights under torchvision's names to arrays under detectron2's."""
    return {detectron2_name(name): value.numpy() for name, value in weights.items()}
