"""A folder for the Hugging Face hub in timm's layout: weights, config.json and a model card."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import safetensors

from fastmoco.architectures import TIMM, by_timm
from fastmoco.channels import usual_normalisation
from fastmoco.layouts.files import MADE_BY, LayoutError, as_safetensors
from fastmoco.layouts.original import is_imported
from fastmoco.layouts.readers import by_class_alone
from fastmoco.model.encoders import usual_size
from fastmoco.model.timm_encoders import arguments_of, first_conv_and_classifier, traits
from fastmoco.scalings import plain
from fastmoco.views import resize_for
from shards.format.scaling import Scaling
from shards.storage.files import write_whole
from shards.words import counted

if TYPE_CHECKING:
    from fastmoco.layouts.encoders import EncoderWeights

_HOW = {
    "queue": "Momentum Contrast (MoCo)",
    "batch": "Momentum Contrast (MoCo)",
    "end-to-end": "contrastive learning end to end",
    "memory-bank": "contrastive learning with a memory bank",
}
"""How an encoder was trained, by --mechanism."""
_CARD = "card_sha256"  # of the README.md, in the metadata of the weights

log = logging.getLogger(__name__)


def write_for_hub(weights: EncoderWeights, folder: Path) -> None:
    """Write model.safetensors, config.json and README.md, which timm loads as `local-dir:FOLDER` or from the hub.

    They replace those of an earlier export, but for a README.md that was edited since.

    Raises:
        LayoutError: timm has no encoder by this name, its model cannot have the classifier, or the folder holds files
            of these names that no export wrote.
        ConfigError: timm is not installed.
    """
    before = _earlier_export(folder)
    tensors, about = weights.under_timms_names(), _config(weights)
    card = _card(weights, about).encode()
    folder.mkdir(parents=True, exist_ok=True)
    contents = {
        "model.safetensors": as_safetensors(tensors, weights.metadata() | {_CARD: hashlib.sha256(card).hexdigest()}),
        "README.md": card,
        # last: a folder without it is not loaded
        "config.json": f"{json.dumps(about, indent=2, ensure_ascii=False)}\n".encode(),
    }
    with contextlib.suppress(FileNotFoundError):
        if before and hashlib.sha256((folder / "README.md").read_bytes()).hexdigest() != before.get(_CARD):
            del contents["README.md"]
            log.warning("%s was edited and stays as it is; move it away to have a new one", folder / "README.md")
    for name, content in contents.items():
        write_whole(folder / name, content)


def _earlier_export(folder: Path) -> dict[str, str]:
    """Metadata of the weights that an earlier export wrote here; empty where there are none.

    Raises:
        LayoutError: an export would replace what is not one's, as the config.json of a run or another program's model.
    """
    held = [name for name in ("config.json", "README.md", "model.safetensors") if (folder / name).exists()]
    if not held:
        return {}
    try:
        with safetensors.safe_open(folder / "model.safetensors", "pt") as file:
            found = file.metadata() or {}
    except (OSError, safetensors.SafetensorError):
        found = {}
    if MADE_BY not in found:
        raise LayoutError(f"--out {folder} holds a {held[0]} that no export wrote; name an empty folder")
    return found


def _config(weights: EncoderWeights) -> dict[str, Any]:
    """What timm reads to build the encoder, load its weights and prepare images."""
    if by_class_alone(weights.arch):
        none = f"--format hf-hub needs a name by which timm builds a {weights.arch}, and it has none"
        raise LayoutError(f"{none}; use --format timm")
    arch = weights.arch if by_timm(weights.arch) else TIMM + weights.arch
    size = weights.image_size or usual_size(weights.arch)
    name, arguments = arguments_of(arch, size, weights.channels)
    classes = () if weights.head is None else weights.head.classes
    about: dict[str, Any] = {
        "architecture": name.partition(".")[0], "num_classes": len(classes), "num_features": weights.encoder().out_dim,
    }  # fmt: skip
    if arguments:
        about["model_args"] = arguments
    if classes:
        about["label_names"] = list(classes)
    first, classifier = first_conv_and_classifier(arch)
    mean, std = usual_normalisation(weights.channels)
    about["pretrained_cfg"] = {
        "input_size": [weights.channels, size, size], "fixed_input_size": traits(arch).fixed,
        "interpolation": "bilinear",
        "crop_pct": _crop(size), "crop_mode": "center", "mean": list(weights.mean or mean),
        "std": list(weights.std or std), "num_classes": len(classes), "first_conv": first,
        "classifier": classifier,
    }  # fmt: skip
    if weights.scaling is not None:
        about["scaling"] = plain(weights.scaling)  # timm leaves it aside
    return about


def _crop(size: int) -> float:
    """Side of the crop by the short side that images are resized to, as the evaluations have it."""
    share = size / resize_for(size)
    while int(size / share) < resize_for(size):  # timm rounds the quotient down, which may be just below a whole number
        share = math.nextafter(share, 0.0)
    return share


def _card(weights: EncoderWeights, about: dict[str, Any]) -> str:
    """The model card: what is known of the encoder, and nothing else."""
    pretrained, classes = about["pretrained_cfg"], about["num_classes"]
    channels, height, width = pretrained["input_size"]
    kind = "image-classification" if classes else "image-feature-extraction"
    facts = {
        "architecture": f"`{about['architecture']}`"
        + (f" with {about['model_args']}" if "model_args" in about else ""),
        "images": f"{height} × {width} pixels, {'RGB' if channels == 3 else 'one channel (grey)'}, mean "
        f"{pretrained['mean']}, standard deviation {pretrained['std']}",
        **_values(weights.scaling, weights.bits),
        "output": f"{classes} classes" if classes else f"{about['num_features']} pooled features",
        **_training(weights),
    }
    listed = "\n".join(f"- **{name}:** {value}" for name, value in facts.items())
    return f"""---
tags:
- {kind}
- timm
pipeline_tag: {kind}
library_name: timm
---
# {about["architecture"]}

{_origin(weights)}

{listed}

```python
{_code(about, weights.bits)}
```
"""


_OF_8_BITS = """import timm

model = timm.create_model("local-dir:FOLDER", pretrained=True).eval()  # or "hf-hub:USER/NAME"
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
output = model(transform({image}).unsqueeze(0))"""
_OF_16_BITS = """import numpy as np
import timm
import torch
from torchvision.transforms import functional as F

model = timm.create_model("local-dir:FOLDER", pretrained=True).eval()  # or "hf-hub:USER/NAME"
low, high = np.float32({low}), np.float32({high})
x = ((image.astype(np.float32).reshape(*image.shape[:2], -1) - low) / (high - low)).clip(0, 1)  # of uint16 values
x = F.resize(torch.from_numpy(x).permute(2, 0, 1), [{resize}], antialias=True).expand({channels}, -1, -1)
x = F.normalize(F.center_crop(x, [{size}]), {mean}, {std})
output = model(x[None])"""


def _code(about: dict[str, Any], bits: int) -> str:
    """Lines of Python from an image to the output."""
    pretrained, scaling = about["pretrained_cfg"], about.get("scaling", {"low": "LOW", "high": "HIGH"})
    channels, size, _ = pretrained["input_size"]
    if bits == 8:
        return _OF_8_BITS.format(image="image" if channels == 3 else 'image.convert("L")')
    return _OF_16_BITS.format(
        low=scaling["low"], high=scaling["high"], resize=resize_for(size), channels=channels, size=size,
        mean=pretrained["mean"], std=pretrained["std"],
    )  # fmt: skip


def _values(scaling: Scaling | None, bits: int) -> dict[str, str]:
    """How the values of 16-bit images become those that mean and standard deviation apply to."""
    if bits == 8:
        return {}
    if scaling is None:
        each = "the low and high that each training set had by its own percentiles; take those of your images"
        return {"values": f"of 16 bits: x is scaled to clip((x - low) / (high - low), 0, 1), with {each}"}
    first, last = (f"{percent:g} %" for percent in scaling.percentiles)
    low, high = list(scaling.low), list(scaling.high)
    return {
        "values": f"of 16 bits: x is scaled to clip((x - low) / (high - low), 0, 1), with low {low} and high {high}, "
        f"up to which {first} and {last} of the training images' values are"
    }


def _origin(weights: EncoderWeights) -> str:
    """What the weights are, and how they were trained, as far as their file says it."""
    state = weights.checkpoint
    if weights.head is not None:
        return "This is a classifier of images, trained by `fastmoco finetune`."
    if state is None:
        return "This is an encoder of images. The file that fastmoco read it from does not record how it was trained."
    config = state["config"]
    how = _HOW[config.get("mechanism", "queue")]
    by = "the original MoCo's program" if is_imported(state) else "fastmoco"
    begun = f", from the weights of `{Path(config['init']).name}`" if config.get("init") else ""
    return f"This is an encoder pretrained by {how}, without labels, with {by}{begun}."


def _training(weights: EncoderWeights) -> dict[str, str]:
    """What a checkpoint of training records that a reader of the card asks for."""
    if weights.checkpoint is None:
        return {}
    config, progress = weights.checkpoint["config"], weights.checkpoint["progress"]
    if is_imported(weights.checkpoint):  # its settings are a recipe's, and its steps and images not recorded
        return {"training": counted(progress["epoch"], "epoch")} if progress["epoch"] else {}
    names = ("mechanism", "batch_size", "augmentation", "temperature", "momentum_key", "seed")
    settings = ", ".join(f"{name} {config[name]}" for name in names if config.get(name) is not None)
    views = {"views": f"`{json.dumps(config['views'])}`"} if config.get("views") else {}
    images = weights.checkpoint["data"]["samples"]
    length = f"{counted(progress['step'], 'step')}, {counted(progress['samples'], 'image')}, from a set of {images:,}"
    return {"recipe": str(config["recipe"]), "training": length, "settings": settings, **views}
