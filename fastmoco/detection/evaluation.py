"""Evaluation of a detector: detections on all ranks, and the metrics computed from them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn
from torchvision.models.detection.roi_heads import paste_masks_in_image

from fastmoco.detection._tools import masks as mask_tools
from fastmoco.detection.batches import read_ahead
from fastmoco.detection.coco_metric import as_results, coco_metrics
from fastmoco.detection.errors import BrokenImage, NoEvaluation
from fastmoco.detection.images import Reader, Sample
from fastmoco.detection.photos import Photo, PhotoSet
from fastmoco.detection.step import as_input
from fastmoco.detection.voc_metric import Detections, voc_metrics
from fastmoco.ranks.world import World, from_all
from fastmoco.results import too_many_bad
from fastmoco.runs.progress import tracked
from fastmoco.runs.signals import agree_on_stop, stop_is_asked
from shards.words import counted

_AHEAD = 8
Broken = dict[int, str]
"""Why photographs cannot be read, by their number in the set."""


@torch.no_grad()
def detect(
    detector: nn.Module, photo_set: PhotoSet, reader: Reader, here: World, threads: int, dtype: torch.dtype | None
) -> tuple[list[Detections], Broken]:
    """Detections in the photographs of a set, in its order, and those that cannot be read.

    The ranks divide the work, and all return the same.

    Args:
        detector: as `build_detector` returns it; in evaluation mode during the call.
        photo_set: the test set.
        reader: reads the photographs.
        here: this rank.
        threads: number of reading threads.
        dtype: autocast type, None for float32.

    Raises:
        NoEvaluation: too many photographs cannot be read.
    """

    def read(photo: Photo) -> Sample | tuple[int, str]:
        try:
            return reader.testing(photo)
        except BrokenImage as error:
            return photo.id, str(error)

    own = photo_set.photos[here.rank :: here.size]
    training = detector.training
    detector.eval()
    found: list[Detections | tuple[int, str]] = []
    samples = read_ahead(read, own, threads, _AHEAD)
    # of this rank's photographs: the other ranks are about as far
    for sample in tracked(samples, "detections", len(own), "{:,} of {:,} photographs"):
        if stop_is_asked():
            break
        if isinstance(sample, tuple):
            found.append(sample)
            continue
        # one photograph at a time, so that no detection depends on a batch's padding
        with torch.autocast(here.device.type, dtype, enabled=dtype is not None):
            (result,) = detector([as_input(sample, here.device)])
        # in float32: NumPy has no bfloat16
        found.append(_detections(sample, {name: value.float().cpu() for name, value in result.items()}))
    detector.train(training)
    agree_on_stop()
    # as objects: the numbers of detections and the lengths of mask codes differ between ranks
    gathered, count = from_all(here, found), len(photo_set.photos)
    in_order = [gathered[place % here.size][place // here.size] for place in range(count)]
    broken = dict(one for one in in_order if isinstance(one, tuple))
    if too_many_bad(len(broken), count):
        first = next(iter(broken.values()))
        raise NoEvaluation(f"{len(broken):,} of {count:,} photographs of {photo_set.name} cannot be read; {first}")
    return [one for one in in_order if isinstance(one, Detections)], broken


def without(photo_set: PhotoSet, broken: Broken) -> PhotoSet:
    """The set without the photographs that could not be read, whose objects nothing could detect."""
    return replace(photo_set, photos=tuple(photo for photo in photo_set.photos if photo.id not in broken))


def _detections(sample: Sample, result: dict[str, torch.Tensor]) -> Detections:
    """Detections in pixels of the image in the file."""
    (height, width), (seen_height, seen_width) = sample.size, sample.image.shape[1:]
    scale = torch.tensor([width / seen_width, height / seen_height] * 2)
    boxes = result["boxes"] * scale
    codes = _codes(result["masks"], boxes, height, width) if "masks" in result else None
    labels = result["labels"].long().numpy()
    return Detections(sample.photo.id, boxes.numpy(), result["scores"].numpy(), labels, codes)


def _codes(masks: torch.Tensor, boxes: torch.Tensor, height: int, width: int) -> tuple[dict, ...]:
    """Run-length codes of the masks, pasted into the image and thresholded at one half."""
    encode, codes = mask_tools().encode, []
    for mask, box in zip(
        masks, boxes, strict=True
    ):  # one at a time: together they are as large as the image times its objects
        pasted = paste_masks_in_image(mask[None], box[None], (height, width))[0, 0]
        # pycocotools reads masks by columns; its codes are bytes, which JSON does not have
        code = encode(np.asfortranarray((pasted >= 0.5).numpy().astype(np.uint8)))
        codes.append({"size": code["size"], "counts": code["counts"].decode("ascii")})
    return tuple(codes)


def evaluate(photo_set: PhotoSet, detections: list[Detections], masks: bool) -> dict[str, Any]:
    """All metrics, in percent.

    Returns:
        `AP`, `AP50`, `AP75`: of boxes, to compare with the papers': VOC's metric of 2007 for VOC-format sets, else
        pycocotools'. `coco`: pycocotools' metrics of `bbox` and, with masks, `segm`. `voc`, for VOC-format sets: VOC's
        metrics by `11-point` and `area`.
    """
    results = as_results(photo_set, detections)
    kinds = ("bbox", "segm") if masks else ("bbox",)
    metrics: dict[str, Any] = {"coco": {kind: coco_metrics(photo_set, results, kind) for kind in kinds}}
    chosen = metrics["coco"]["bbox"]
    if photo_set.layout == "voc":
        metrics["voc"] = voc_metrics(photo_set, detections)
        chosen = metrics["voc"]["11-point"]
    return {name: chosen[name] for name in ("AP", "AP50", "AP75")} | metrics


def figures_of(metrics: dict[str, Any] | None, masks: bool) -> tuple[dict[str, float | None], str]:
    """The figures of an evaluation as metrics.jsonl has them, and as text; None: it could not be made."""
    names = ("AP", "AP50", "AP75")
    figures = {name: metrics[name] if metrics else None for name in names}
    if masks:
        figures |= {f"segm_{name}": metrics["coco"]["segm"][name] if metrics else None for name in names}
    if metrics is None:
        return figures, "no evaluation this time"
    line = "  ".join(f"{name} {as_text(metric)}" for name, metric in figures.items())
    if left_out := metrics["left_out"]:
        return figures | {"left_out": left_out}, f"{line}, {counted(left_out, 'photograph')} left out"
    return figures, line


def as_text(metric: float | None) -> str:
    """A metric in percent with two decimals; `none` where it is undefined."""
    return "none" if metric is None else f"{metric:.2f}"
