"""Weighted k-nearest-neighbour probe of frozen features.

python -m fastmoco.knn --checkpoint RUN/checkpoints/step-XXXXXXXX.pt --train SHARDS --val SHARDS
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import tyro
from torch import nn
from torch.nn import functional as F

from fastmoco.distributed import World, all_gather_uneven, world
from fastmoco.trainer.checkpoint import CheckpointError, load_backbone
from pipelines import LabelledPipeline
from shards import ShardSet, ShardSetError

CHUNK = 1024


class ProbeError(ValueError):
    """A probe that cannot be made. The message names the reason and a remedy."""


def resize_for(image_size: int) -> int:
    """Short side before a centre crop of `image_size`: 8/7 of it (256 for 224), to the nearest multiple of 8."""
    return round(image_size * 8 / 7 / 8) * 8


@torch.no_grad()
def extract_features(encoder: nn.Module, pipeline: LabelledPipeline) -> tuple[torch.Tensor, torch.Tensor]:
    """Features of every sample of a pipeline, with the encoder as it is (put it into evaluation mode first).

    Returns:
        Features of unit length, float32 [N, D], and labels, int64 [N], both on the encoder's device.
    """
    features, labels = [], []
    for batch in pipeline:
        features.append(F.normalize(encoder(batch.images).float(), dim=1))
        labels.append(batch.labels.to(batch.images.device))
    return torch.cat(features), torch.cat(labels)


@torch.no_grad()
def knn_top1(
    train_features_ND: torch.Tensor,
    train_labels_N: torch.Tensor,
    val_features_MD: torch.Tensor,
    val_labels_M: torch.Tensor,
    k: int = 20,
    temperature: float = 0.07,
) -> float:
    """Share of validation samples that their neighbours name rightly, in percent.

    Each of the k nearest by cosine votes for its class with weight exp(similarity / temperature), after
    arXiv 1805.01978, section 3.4.

    Args:
        train_features_ND: float32 [N, D] of unit length.
        train_labels_N: int64 [N].
        val_features_MD: float32 [M, D] of unit length.
        val_labels_M: int64 [M].
        k: neighbours; at most N are taken.
        temperature: the sharpness of the weights.
    """
    classes = int(torch.cat([train_labels_N, val_labels_M]).max()) + 1
    right = 0
    for features_CD, labels_C in zip(val_features_MD.split(CHUNK), val_labels_M.split(CHUNK), strict=True):
        similarity, index = (features_CD @ train_features_ND.T).topk(min(k, len(train_features_ND)), dim=1)
        votes = torch.zeros(len(features_CD), classes, device=features_CD.device)
        votes.scatter_add_(1, train_labels_N[index], ((similarity - 1) / temperature).exp())
        right += int((votes.argmax(1) == labels_C).sum())
    return 100 * right / len(val_labels_M)


class Probe:
    """The same kNN probe again and again, on whatever encoder it is given.

    Under several ranks each takes its share of the images, and all get the same answer.

    Raises:
        ProbeError: where a set has no labels or the two sets differ in their classes.
    """

    def __init__(
        self, train: str | Path, val: str | Path, image_size: int, resize: int, here: World, batch_size: int = 128
    ) -> None:
        self.train, self.val = ShardSet(train), ShardSet(val)
        self.image_size, self.resize, self.here, self.batch_size = image_size, resize, here, batch_size
        for flag, path, shard_set in (("train", train, self.train), ("val", val, self.val)):
            if not shard_set.classes:
                raise ProbeError(
                    f"the {flag} set {path} has no labels; pack a folder with one subfolder for each class"
                )
        if self.train.classes != self.val.classes:
            odd = sorted(set(self.train.classes) ^ set(self.val.classes))
            raise ProbeError(
                f"{train} and {val} differ in their classes, by {', '.join(odd[:5])}; pack folders with the same"
            )

    def features(self, encoder: nn.Module, shard_set: ShardSet) -> tuple[torch.Tensor, torch.Tensor]:
        """Features [N, D] and labels [N] of all samples of a set that have a label, over all ranks."""
        labelled = np.flatnonzero(shard_set.labels(np.arange(len(shard_set))) >= 0)
        mine = labelled[self.here.rank :: self.here.size]
        pipeline = LabelledPipeline(
            shard_set, resize=self.resize, crop=self.image_size, batch_size=self.batch_size,
            device=self.here.device, ids=mine,
        )  # fmt: skip
        features, labels = extract_features(encoder, pipeline)
        return all_gather_uneven(features), all_gather_uneven(labels)

    def __call__(self, encoder: nn.Module, k: int = 20, temperature: float = 0.07) -> float:
        """Top-1 accuracy of the encoder's features in percent; the encoder's mode is put back."""
        training = encoder.training
        encoder.eval()
        try:
            train, val = self.features(encoder, self.train), self.features(encoder, self.val)
        finally:
            encoder.train(training)
        return knn_top1(*train, *val, k=k, temperature=temperature)


@dataclass(frozen=True)
class Args:
    """Classify one shard set by its nearest neighbours in another, in a trained encoder's features."""

    checkpoint: Path
    """Checkpoint of a training run."""
    train: str | Path
    """Labelled shard set that gives the neighbours."""
    val: str | Path
    """Labelled shard set to classify."""
    json: Path | None = None
    """File to write the result to."""
    k: int = 20
    """Neighbours that vote."""
    temperature: float = 0.07
    """Temperature of the votes' weights."""
    image_size: int | None = None
    """Side of the centre crop; default: the training's view size."""
    resize: int | None = None
    """Short side before the crop; default: 8/7 of the crop, to the nearest multiple of 8."""
    batch_size: int = 128
    """Images at a time."""


def main() -> None:
    """Entry of the command."""
    args = tyro.cli(Args)
    try:
        run(args)
    except (CheckpointError, ProbeError, ShardSetError) as error:
        sys.exit(f"fastmoco.knn: {error}")


def run(args: Args) -> dict[str, object]:
    """Probe, print, and write the result; returns it."""
    encoder, config = load_backbone(args.checkpoint)
    size = args.image_size or config.image_size
    resize = args.resize or resize_for(size)
    with world() as here:
        probe = Probe(args.train, args.val, size, resize, here, args.batch_size)
        top1 = probe(encoder.to(here.device), args.k, args.temperature)
        result = {
            "knn_top1": top1, "k": args.k, "temperature": args.temperature, "image_size": size, "resize": resize,
            "checkpoint": str(args.checkpoint), "train": len(probe.train), "val": len(probe.val),
            "classes": len(probe.train.classes),
        }  # fmt: skip
        if here.is_main:
            print(f"kNN top-1 {top1:.2f} % ({len(probe.val)} images, {len(probe.train.classes)} classes, k {args.k})")
            if args.json:
                args.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return result


if __name__ == "__main__":
    main()
