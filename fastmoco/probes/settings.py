"""Settings that the kNN and the linear probe share, a dataclass for each group of flags."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pipelines.options import PipelineOptions

UNTRAINED = "untrained"
"""In place of a checkpoint: random weights."""


@dataclass(frozen=True)
class SourceSettings:
    """The encoder to probe, and the two labelled sets."""

    checkpoint: str
    """File with an encoder in any known layout (docs/evaluation.md), run folder, or `untrained`."""
    train: str | Path
    """Labelled shard set to learn the classes from."""
    val: str | Path
    """Labelled shard set to classify."""
    arch: str | None = None
    """Architecture; default: the file's, by its shapes. `untrained` needs it."""
    image_size: int | None = None
    """Side of the crops in pixels; default: that of the views in training, or 224."""
    resize: int | None = None
    """Short side before the centre crop; default: 8/7 of the crop, rounded to a multiple of 8."""
    cache: Path | None = None
    """Folder in which to cache features of centre crops for later calls; default: no cache."""


@dataclass(frozen=True)
class HardwareSettings:
    """Precision of the encoder, and the reading of the images."""

    precision: Literal["fp32", "bf16", "fp16", "auto"] = "fp32"
    """Precision of the encoder's forward pass; all else is computed in fp32."""
    pipeline: Literal["auto", "dali", "torch"] = "auto"
    """Backend that decodes and crops. auto: DALI on a CUDA device, unless it is missing or the CPU cores keep up with
    the GPU; torch otherwise."""
    threads: int | None = None
    """Reading and decoding threads per rank; default: the node's cores divided by its ranks, on CUDA less two."""
    decoder_load: float = PipelineOptions.decoder_load
    """Share of a batch, 0 to 1, that DALI decodes on the GPU's hardware JPEG decoder, if the GPU has one."""

    @property
    def reading(self) -> PipelineOptions:
        """The pipeline's options."""
        return PipelineOptions(pipeline=self.pipeline, threads=self.threads, decoder_load=self.decoder_load)


@dataclass(frozen=True)
class BatchSettings(HardwareSettings):
    """Precision of the encoder, the reading of the images, and batches."""

    batch_size: int = 128
    """Images per batch on each rank."""
