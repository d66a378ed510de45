"""Settings that kNN, the linear probe and fine-tuning share, a dataclass for each group of flags."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fastmoco import flags
from fastmoco.architectures import check_arch
from fastmoco.settings import CheckpointSettings
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


@dataclass(frozen=True)
class CachedSettings(SourceSettings):
    """The encoder to probe, the two labelled sets, and where their features are kept."""

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


@dataclass(frozen=True)
class SGDSettings:
    """Batches of a training, and SGD."""

    batch_size: int = 256
    """Global batch size over all ranks."""
    momentum: float = 0.9
    """Momentum of SGD."""


@dataclass(frozen=True)
class RunOutput:
    """Run folder, result and log."""

    out: Path | None = None
    """Run folder; the same command resumes the run in it. Default: that of the same probe in runs/, else a new one,
    runs/linear-ARCH-DATE."""
    json: Path | None = None
    """File to write the result to."""
    log_every: int = 50
    """Steps between log lines."""
    rank_timeout: float = 10.0
    """Minutes that a rank waits for another one, which may hang; then all end with the cause, and can be restarted."""
    notify: str | None = None
    """Command that is run when the run stops, fails or finishes, and for each warning: on rank 0, without a shell, with
    FASTMOCO_EVENT and others in its environment and the status as JSON on stdin (docs/training.md)."""


@dataclass(frozen=True)
class EpochCheckpoints(CheckpointSettings):
    """When checkpoints are written, where, and which are kept."""

    checkpoint_every: int = 0
    """Steps between checkpoints; 0: one after each epoch, and by time with --checkpoint-minutes."""
    checkpoint_minutes: float | None = 0
    """Minutes between checkpoints, also besides those by steps; 0: by steps alone."""
    keep_checkpoints: int = 2  # the newest, and one before it in case that is damaged


@dataclass(frozen=True)
class ClassifierSettings(EpochCheckpoints, RunOutput, HardwareSettings, SGDSettings, SourceSettings):
    """What every training of a classifier has."""

    seed: int = 0
    """Seed of the order, the crops, the classifiers' initial weights, and an untrained encoder."""

    def __post_init__(self) -> None:
        """Check what can be checked without the data; raises ConfigError."""
        check_arch(self.arch)
        flags.at_least(1, self, "batch_size", "log_every", "image_size", "resize", "threads")
        flags.at_least(0, self, "seed")
        self.check_checkpoints()
        flags.check_sizes(self)
        flags.positive(self, "rank_timeout")
        flags.share(self, "momentum", below_one=True)
        flags.share(self, "decoder_load")
