"""A trained encoder as a torch module, with the transform of its images."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

from fastmoco.layouts.encoders import read_encoder
from fastmoco.model.encoders import Backbone, usual_size
from fastmoco.probes.encoders import transform_of
from pipelines.transform import CentreTransform


class LoadedEncoder(NamedTuple):
    """An encoder and the transform of its images: `encoder, transform = fastmoco.load_encoder(PATH)`.

    Attributes:
        encoder: float32 images [B, C, S, S] to pooled features float32 [B, D], in evaluation mode, on the CPU. C is
            `encoder.channels`, 3 or 1, and D `encoder.out_dim`.
        transform: An image to its tensor float32 [C, S, S], as in the evaluations (kNN, linear probe). That of an
            encoder of 16-bit images takes uint16 arrays, and scales them as the training did.
    """

    encoder: Backbone
    transform: CentreTransform


def load_encoder(
    path: str | os.PathLike[str], *, arch: str | None = None, image_size: int | None = None
) -> LoadedEncoder:
    """The encoder in a file, or in the newest checkpoint of a run.

    Args:
        path: A file in any layout of docs/evaluation.md, the folder of a run, or a `fastmoco.Run`.
        arch: Its architecture; None for the file's, recorded or found by its shapes.
        image_size: Side S of the crop in pixels; None for that of the views in training, or 224 where the file does
            not record it. The short side before the crop is 8/7 of it, to a multiple of 8.

    Raises:
        UserError: The file cannot be read, or holds no encoder of that architecture.
    """
    weights = read_encoder(Path(path), arch, image_size)
    encoder = weights.encoder()
    side = image_size or weights.image_size or usual_size(weights.arch)
    return LoadedEncoder(encoder, transform_of(encoder, side))
