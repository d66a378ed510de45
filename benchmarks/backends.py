"""Differences between the backends' views, and between each operation and torchvision's, in levels of 255.

    python benchmarks/backends.py --shards SHARDS [--images N] [--json OUT]

All backends use the same draws. Each comparison reports mean and maximum difference of red, green and blue, and the
share of values that differ by more than one level.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision.transforms.v2.functional as TF
from PIL import Image

from _command import script
from _environment import environment
from _results import write_beside, write_json
from fastmoco.flags import at_least
from pipelines import PipelineOptions, ViewPair, ViewSpec, draw
from pipelines._threads import worker_pool
from pipelines.augmentation import AUGMENTATIONS
from pipelines.choice import installed
from pipelines.colour import colour_map, finish
from pipelines.decode import decode
from pipelines.torch_cpu import TorchBackend
from pipelines.views import ColourFactors, ViewParams, gaussian
from shards import ShardSet

Maker = Callable[[ViewPair, ThreadPoolExecutor], Any]  # of a backend of `pipelines`, with `views` and `close`
Rows = Iterator[tuple[str, torch.Tensor]]  # name, and absolute differences [N, H, W, 3] in levels

_TURNED = {"flip": 0.5, "vertical_flip": 0.5, "turns": 0.75}


@dataclass(frozen=True)
class Args:
    """Compare the views of the backends with each other and with torchvision."""

    shards: Path
    """Shard set with the images."""
    images: int = 128
    """Number of images."""
    sizes: tuple[int, ...] = (64, 224)
    """Sides of the views in pixels."""
    json: Path | None = None
    """File for the rows and the environment; the table (.md) is written beside it."""


def run(args: Args) -> None:
    """Compare, print the table, and write rows and table."""
    at_least(1, args, "images", "sizes")
    with ShardSet(args.shards) as shards:
        count = min(args.images, len(shards))
        encoded = [shards.read(number) for number in range(count)]
        sizes = shards.sizes(np.arange(count))
    rows = []
    for size in args.sizes:
        others: dict[str, Maker] = {"torch, scaled decoding": lambda pair, pool: TorchBackend(pair, pool, pinned=False)}
        if installed():
            others["DALI"] = dali(len(encoded), torch.device("cpu"), PipelineOptions.decoder_load)
        for name, difference in (*compared(encoded, sizes, size, others), *_torchvision(encoded, sizes, size)):
            rows.append(_row(name, size, difference))
            print(rows[-1], file=sys.stderr)
    text = _markdown(rows, count)
    print(text, end="")
    if args.json:
        write_json(args.json, {"environment": environment(), "images": count, "rows": rows})
        write_beside(args.json, text)


def _row(name: str, size: int, difference: torch.Tensor) -> dict[str, object]:
    channels = difference.flatten(0, 2)
    return {
        "what": name,
        "size": size,
        "mean": [round(value, 3) for value in channels.mean(dim=0).tolist()],
        "maximum": [round(value, 1) for value in channels.amax(dim=0).tolist()],
        "over_one_level": round(float((channels > 1).double().mean()), 5),
    }


def _markdown(rows: list[dict], count: int) -> str:
    lines = [
        f"Levels of 255 on {count} photographs; red, green, blue.",
        "",
        "| what | pixels | mean | largest | over one level |",
        "| --- | --: | --- | --- | --: |",
    ]
    for row in rows:
        mean, maximum = (" ".join(f"{value:g}" for value in row[key]) for key in ("mean", "maximum"))
        lines.append(f"| {row['what']} | {row['size']} | {mean} | {maximum} | {row['over_one_level']:.3%} |")
    return "\n".join(lines) + "\n"


def compared(encoded: list[bytes], sizes: np.ndarray, size: int, others: Mapping[str, Maker]) -> Rows:
    """Views of other backends against those of the torch backend with full decoding, from the same draws.

    Args:
        encoded: the images.
        sizes: int32[N, 2], height and width of each.
        size: side of a view in pixels.
        others: for each backend's name a function of both views' augmentation and a pool of threads that makes it.
    """
    # single operations before the whole recipes, so that a difference can be assigned to one of them
    plain = replace(ViewSpec.moco_v1(size), flip=0.0)
    operations = {
        "crop and resize": plain,
        "crop, resize, flip": replace(plain, flip=1.0),
        "crop, resize, flips and turns": replace(plain, **_TURNED),
        "crop, resize, blur": replace(ViewSpec.moco_v2(size), blur=1.0),
    }
    recipes = {name: make(size) for name, make in AUGMENTATIONS.items()}
    pool = worker_pool(2, "backends")
    for name, pair in ({name: ViewPair.of(spec) for name, spec in operations.items()} | recipes).items():
        params = _draws(pair, sizes)
        whole = TorchBackend(pair, pool, pinned=False, scaled=False).views(encoded, sizes, params)
        for other, make in others.items():
            backend = make(pair, pool)
            found = [view.cpu() for view in backend.views(encoded, sizes, params)]
            backend.close()
            pairs = [(a.float(), b.float()) for a, b in zip(whole, found, strict=True)]
            yield f"{other}: {name}", torch.cat([(a - b).abs() for a, b in pairs])
            # the jitter scales the differences of the views, and training sees them after it
            if name in recipes:
                done = [[_levels(finish(v, p, spec), spec) for v, p, spec in zip(side, params, pair, strict=True)]
                        for side in (whole, found)]  # fmt: skip
                yield f"{other}: {name}, after colours", torch.cat([(a - b).abs() for a, b in zip(*done, strict=True)])
    pool.shutdown()


def dali(batch: int, device: torch.device, decoder_load: float) -> Maker:
    """Makes DALI backends for `compared`."""
    from pipelines.dali import DaliBackend  # here, because DALI may be missing

    return lambda pair, pool: DaliBackend(pair, batch, device, pool, 2, decoder_load)


def unusual(images: list[bytes]) -> dict[str, list[bytes]]:
    """The images as grey and as progressive JPEGs, which decoders treat apart, by kind."""
    found: dict[str, list[bytes]] = {"grey": [], "progressive": []}
    for data in images:
        image = Image.open(io.BytesIO(data))
        for kind, options in (("grey", {}), ("progressive", {"progressive": True})):
            out = io.BytesIO()
            (image.convert("L") if kind == "grey" else image.convert("RGB")).save(out, "JPEG", quality=90, **options)
            found[kind].append(out.getvalue())
    return found


def _draws(spec: ViewSpec | ViewPair, sizes: np.ndarray) -> tuple[ViewParams, ViewParams]:
    place = {"seed": 0, "epoch": 0, "ids": np.arange(len(sizes)), "sizes": sizes}
    query, key = (draw(each, **place, view=view) for view, each in enumerate(ViewPair.of(spec)))
    return query, key


def _levels(views: torch.Tensor, spec: ViewSpec) -> torch.Tensor:
    """Normalised views [N, 3, H, W] as levels [N, H, W, 3]."""
    mean, std = (255 * torch.tensor(values).view(1, 3, 1, 1) for values in (spec.mean, spec.std))
    return (views * std + mean).permute(0, 2, 3, 1)


def _torchvision(encoded: list[bytes], sizes: np.ndarray, size: int) -> Rows:
    """Each operation of the torch backend against torchvision's on uint8."""
    # every view blurred and none flipped: torchvision is called with the same boxes and sigmas, image by image
    spec = replace(ViewSpec.moco_v2(size), blur=1.0, flip=0.0)
    plain = replace(spec, blur=0.0)
    pool = worker_pool(2, "backends")
    turned = replace(plain, **_TURNED)
    blurred, sharp, upturned = (
        TorchBackend(s, pool, pinned=False, scaled=False).views(encoded, sizes, _draws(s, sizes))[0].clone()
        for s in (spec, plain, turned)
    )
    pool.shutdown()
    params = _draws(spec, sizes)[0]
    images = [torch.from_numpy(decode(data)).permute(2, 0, 1) for data in encoded]
    crops = [
        TF.resized_crop(image, top, left, height, width, [size, size])
        for image, (top, left, height, width) in zip(images, params.box.tolist(), strict=True)
    ]
    yield "torchvision: crop and resize", _difference(sharp, crops)
    orientations = _draws(turned, sizes)[0]
    yield (
        "torchvision: crop, resize, flips and turns",
        _difference(upturned, [_oriented(crop, orientations, slot) for slot, crop in enumerate(crops)]),
    )
    sigmas: list[float] = params.sigma.tolist()
    soft = [
        TF.gaussian_blur(c, [len(gaussian(sigma))] * 2, [sigma] * 2) for c, sigma in zip(crops, sigmas, strict=True)
    ]
    yield "torchvision: crop, resize, blur", _difference(blurred, soft)
    # the strongest factors that the recipes draw: 1 + 0.4, and a hue of 0.4 in v1 and 0.1 in v2
    operations = {
        "brightness 1.4": ({"brightness": 1.4}, lambda x: TF.adjust_brightness(x, 1.4)),
        "contrast 1.4": ({"contrast": 1.4}, lambda x: TF.adjust_contrast(x, 1.4)),
        "saturation 1.4": ({"saturation": 1.4}, lambda x: TF.adjust_saturation(x, 1.4)),
        "hue 0.1": ({"hue": 0.1}, lambda x: TF.adjust_hue(x, 0.1)),
        "hue 0.4": ({"hue": 0.4}, lambda x: TF.adjust_hue(x, 0.4)),
        "grey": ({"grey": True}, lambda x: TF.rgb_to_grayscale(x, 3)),
        "solarization": ({"solarize": True}, lambda x: TF.solarize(x, 128)),
    }
    for name, (values, theirs) in operations.items():
        ours = _levels(finish(sharp, _colours(len(sharp), values), spec), spec)
        yield f"torchvision: {name}", _difference(ours, [theirs(view.permute(2, 0, 1)) for view in sharp])


def _colours(count: int, values: dict[str, float]) -> ViewParams:
    neutral = {"brightness": 1.0, "contrast": 1.0, "saturation": 1.0, "hue": 0.0, "grey": False, "solarize": False}
    arrays = {name: np.full(count, value) for name, value in (neutral | values).items()}
    solarize = arrays.pop("solarize")
    linear, mean_gain = colour_map(ColourFactors(**arrays))
    boxes, sigma, none = np.zeros((count, 4), np.int32), np.zeros(count, np.float32), np.zeros(count, bool)
    return ViewParams(boxes, sigma, none, none, none, linear, mean_gain, solarize)


def _oriented(crop: torch.Tensor, params: ViewParams, slot: int) -> torch.Tensor:
    """A crop, uint8[3, H, W], flipped and turned by torchvision."""
    flip, vertical, quarter = (bool(each[slot]) for each in (params.flip, params.vertical_flip, params.transpose))
    if quarter:  # a transposition is a quarter turn to the left after a flip
        crop = TF.rotate(TF.horizontal_flip(crop), 90)
        flip, vertical = vertical, flip
    crop = TF.horizontal_flip(crop) if flip else crop
    return TF.vertical_flip(crop) if vertical else crop


def _difference(ours: torch.Tensor, theirs: list[torch.Tensor]) -> torch.Tensor:
    return (ours.float() - torch.stack(theirs).permute(0, 2, 3, 1).float()).abs()


if __name__ == "__main__":
    script(Args, run)
