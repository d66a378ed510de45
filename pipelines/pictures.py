"""Pictures of views for visual checks: pairs of one batch, or the same images' views by every available backend."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw

from pipelines.assembly import build
from pipelines.choice import installed
from pipelines.contract import TwoViews
from pipelines.draws import draw
from pipelines.options import PipelineOptions
from pipelines.order.mixture import Mixture, ids_of
from pipelines.order.policy import epoch_orders
from pipelines.views import ViewSpec
from shards import ShardSet
from shards.joined import JoinedSet, joined
from shards.storage.files import whole_file

_GAP = 4
_HEADER = 16


def sheet(batch: TwoViews, spec: ViewSpec, path: Path, count: int = 16, columns: int = 4) -> None:
    """Write a PNG of view pairs, query beside key.

    Args:
        batch: of which the first images are drawn.
        spec: mean and standard deviation.
        path: of the PNG; its folder is made if missing.
        count: number of pairs, at most.
        columns: pairs in a row.
    """
    query, key = (pictures(views[:count], spec) for views in (batch.query, batch.key))
    pairs = [np.concatenate(pair, axis=1) for pair in zip(query, key, strict=True)]
    rows = [pairs[first : first + columns] for first in range(0, len(pairs), columns)]
    _save(rows, path)


def compare(
    shards: ShardSet | JoinedSet | Sequence[ShardSet],
    spec: ViewSpec,
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
        spec: the augmentation.
        path: of the PNG; its folder is made if missing.
        weights: of several sets, as of `PipelineOptions.weights`.
        count: number of images.
        seed: of order and draws.
        epoch: of order and draws.

    Returns:
        A line for each view, with the parameters that were drawn for it.
    """
    shards = joined(shards)
    mixture = Mixture.of([len(each) for each in shards.sets], weights)
    count = min(count, len(shards) if mixture is None else mixture.samples)
    options = PipelineOptions(weights=weights)
    batches = {}
    for backend in ("torch", "dali") if installed() else ("torch",):
        with build(shards, spec, replace(options, pipeline=backend), global_batch=count, seed=seed) as pipeline:
            batches[pipeline.backend] = next(iter(pipeline.epoch(epoch)))
    views = [pictures(v, spec) for batch in batches.values() for v in (batch.query, batch.key)]
    titles = [f"{backend} {view}" for backend in batches for view in ("query", "key")]
    _save([[view[row] for view in views] for row in range(count)], path, titles)
    ids = next(iter(batches.values())).ids.numpy()
    planned = epoch_orders(shards, options, global_batch=count, rank=0, world_size=1, seed=seed)(epoch).entries(0)
    return _drawn(shards, spec, np.where(ids_of(planned) == ids, planned, ids), seed, epoch)  # a bad one is replaced


def pictures(views: torch.Tensor, spec: ViewSpec) -> np.ndarray:
    """uint8[B, H, W, 3] of normalised views [B, 3, H, W]."""
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (spec.mean, spec.std))
    levels = (views.detach().cpu().float() * std + mean).mul(255).round().clamp(0, 255)
    return levels.to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()


def _drawn(shards: ShardSet | JoinedSet, spec: ViewSpec, entries: np.ndarray, seed: int, epoch: int) -> list[str]:
    lines = []
    ids = ids_of(entries)
    sizes = shards.sizes(ids)
    for view, name in ((0, "query"), (1, "key")):
        params = draw(spec, seed=seed, epoch=epoch, ids=entries, sizes=sizes, view=view)
        for row, sample in enumerate(ids.tolist()):
            top, left, height, width = params.box[row].tolist()
            blur = f"blur {params.sigma[row]:.2f}" if params.sigma[row] > 0 else "no blur"
            # a grey view's three channels are the same sum of the pixel's channels
            grey = ", grey" if np.ptp(params.linear[row], axis=0).max() < 1e-6 else ""
            flip = ", flipped" if params.flip[row] else ""
            image = f"{sizes[row, 1]}x{sizes[row, 0]}"
            lines.append(
                f"row {row}, sample {sample}, {name}: {width}x{height}+{left}+{top} of {image}, {blur}{flip}{grey}"
            )
    return sorted(lines, key=lambda line: int(line.split()[1].rstrip(",")))


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
