"""Pictures of views for visual checks: pairs of one batch, or the same images' views by every available backend."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw

from pipelines.assembly import build
from pipelines.augmentation import ViewPair, ViewSpec
from pipelines.choice import installed
from pipelines.contract import TwoViews
from pipelines.draws import draw
from pipelines.options import PipelineOptions
from pipelines.order.mixture import Mixture, ids_of
from pipelines.order.policy import epoch_orders
from pipelines.views import TWO_VIEWS, ViewParams
from shards import ShardSet
from shards.joined import JoinedSet, joined
from shards.storage.files import whole_file

_GAP = 4
_HEADER = 16


def sheet(batch: TwoViews, spec: ViewSpec | ViewPair, path: Path, count: int = 16, columns: int = 4) -> None:
    """Write a PNG of view pairs, query beside key.

    Args:
        batch: of which the first images are drawn.
        spec: mean and standard deviation.
        path: of the PNG; its folder is made if missing.
        count: number of pairs, at most.
        columns: pairs in a row.
    """
    pair = ViewPair.of(spec)
    query, key = (pictures(views[:count], each) for views, each in zip((batch.query, batch.key), pair, strict=True))
    pairs = [np.concatenate(pair, axis=1) for pair in zip(query, key, strict=True)]
    rows = [pairs[first : first + columns] for first in range(0, len(pairs), columns)]
    _save(rows, path)


def compare(
    shards: ShardSet | JoinedSet | Sequence[ShardSet],
    spec: ViewSpec | ViewPair,
    path: Path,
    *,
    weights: tuple[float, ...] = (),
    count: int = 8,
    seed: int = 0,
    epoch: int = 0,
) -> list[str]:
    """Write a PNG with a row for each image: its query and key views by every available backend, side by side.

    Args:
        shards: the packed set, or several.
        spec: the augmentation, or one for each view; the titles have the name of a pair.
        path: of the PNG; its folder is made if missing.
        weights: of several sets, as of `PipelineOptions.weights`.
        count: number of images.
        seed: of order and draws.
        epoch: of order and draws.

    Returns:
        A line for each view, with the parameters that were drawn for it.
    """
    shards, pair, options = joined(shards), ViewPair.of(spec), PipelineOptions(weights=weights)
    mixture = Mixture.of([len(each) for each in shards.sets], options.weights)
    count = min(count, len(shards) if mixture is None else mixture.samples)
    batches = {}
    for backend in ("torch", "dali") if installed() and shards.bits == 8 else ("torch",):
        with build(shards, pair, replace(options, pipeline=backend), global_batch=count, seed=seed) as pipeline:
            batches[pipeline.backend] = next(iter(pipeline.epoch(epoch)))
    views = [
        pictures(v, each) for batch in batches.values() for v, each in zip((batch.query, batch.key), pair, strict=True)
    ]
    titles = [f"{backend}: {view} {pair.name}".rstrip() for backend in batches for view in TWO_VIEWS]
    _save([[view[row] for view in views] for row in range(count)], path, titles)
    ids = next(iter(batches.values())).ids.numpy()
    planned = epoch_orders(shards, options, global_batch=count, rank=0, world_size=1, seed=seed)(epoch).entries(0)
    return _drawn(shards, pair, np.where(ids_of(planned) == ids, planned, ids), seed, epoch)  # a bad one is replaced


def pictures(views: torch.Tensor, spec: ViewSpec) -> np.ndarray:
    """uint8[B, H, W, 3] of normalised views [B, C, H, W]."""
    mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (spec.mean, spec.std))
    levels = (views.detach().cpu().float() * std + mean).mul(255).round().clamp(0, 255)
    return levels.to(torch.uint8).expand(-1, 3, -1, -1).permute(0, 2, 3, 1).contiguous().numpy()


def _drawn(shards: ShardSet | JoinedSet, pair: ViewPair, entries: np.ndarray, seed: int, epoch: int) -> list[str]:
    lines = []
    ids = ids_of(entries)
    sizes = shards.sizes(ids)
    for view, (name, spec) in enumerate(zip(TWO_VIEWS, pair, strict=True)):
        params = draw(spec, seed=seed, epoch=epoch, ids=entries, sizes=sizes, view=view)
        for row, sample in enumerate(ids.tolist()):
            top, left, height, width = params.box[row].tolist()
            blur = f"blur {params.sigma[row]:.2f}" if params.sigma[row] > 0 else "no blur"
            image = f"{sizes[row, 1]}x{sizes[row, 0]}"
            words = ", ".join([f"{width}x{height}+{left}+{top} of {image}", blur, *_done(params, row)])
            lines.append(f"row {row}, sample {sample}, {name}: {words}")
    return sorted(lines, key=lambda line: int(line.split()[1].rstrip(",")))


_ORIENTATIONS = {
    (True, False, False): "flipped",
    (False, True, False): "flipped vertically",
    (True, True, False): "turned by 180",
    (True, False, True): "turned by 90",
    (False, True, True): "turned by 270",
    (False, False, True): "flipped, turned by 90",
    (True, True, True): "flipped, turned by 270",
}
"""What the flips and the transposition of `ViewParams` amount to, in degrees to the left."""


def _done(params: ViewParams, row: int) -> list[str]:
    orientation = bool(params.flip[row]), bool(params.vertical_flip[row]), bool(params.transpose[row])
    # a grey view's three channels are the same sum of the pixel's channels
    grey = np.ptp(params.linear[row], axis=0).max() < 1e-6
    done = [_ORIENTATIONS.get(orientation), "grey" if grey else None, "solarized" if params.solarize[row] else None]
    return [word for word in done if word]


def _save(rows: Sequence[Sequence[np.ndarray]], path: Path, titles: Sequence[str] = ()) -> None:
    """Write rows of pictures of one size (uint8[h, w, 3]) as a PNG, with titles above the columns."""
    height, width, _ = rows[0][0].shape
    columns = max(len(row) for row in rows)
    top = _HEADER if titles else 0
    size = (columns * (width + _GAP) - _GAP, top + len(rows) * (height + _GAP) - _GAP)
    canvas = Image.new("RGB", size, "white")
    for y, row in enumerate(rows):
        for x, picture in enumerate(row):
            canvas.paste(Image.fromarray(picture), (x * (width + _GAP), top + y * (height + _GAP)))
    pen = ImageDraw.Draw(canvas)
    for x, title in enumerate(titles):
        pen.text((x * (width + _GAP) + 2, 2), title, fill="black")
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as file:
        canvas.save(file, format="PNG")
