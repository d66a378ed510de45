"""The options of a pipeline: the name, default, help text and range of each stand here and nowhere else.

`fastmoco.config.Config` inherits them, so a field's name is also its flag and its key in config.json, and its docstring
is the flag's help text. Flags are parsed before any library is loaded: this module imports nothing heavy.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, get_args

from pipelines.errors import PipelineError

BackendName = Literal["auto", "dali", "torch", "constant"]
Policy = Literal["auto", "global", "sharded"]

MAX_WEIGHT = 1000
"""Largest weight of a set."""

_BAD_IMAGES = 100  # fewer than 1 % of a small set are no sign of a damaged one


@dataclass(frozen=True)
class PipelineOptions:
    """How batches are ordered and prepared, as the user set it.

    Raises:
        PipelineError: an option is out of its range.
    """

    pipeline: BackendName = "auto"
    """Backend that decodes and augments. auto: DALI on a CUDA device, unless it is missing or the CPU cores keep up
    with the GPU; torch otherwise; the log names the choice and its reason. constant: repeat one batch, to time the
    model alone."""
    order: Policy = "auto"
    """Order of a shard set: global shuffles all samples together every epoch; sharded reads shard after shard, for sets
    larger than a node's disk; auto is global up to 16 million samples and sharded beyond."""
    weights: tuple[float, ...] = ()
    """Weights of several sets of --shards, one for each: how often an epoch takes an image of the set, on average. 0.5:
    half of the images, and the other half in the next epoch; 2: each image twice, with other views. Default: 1."""
    order_window: int = 4096  # about two shards of the default size
    """Samples per shuffle window of --order sharded, in each lane."""
    order_lanes: int = 64
    """Lanes of --order sharded, each with its own shards: up to this many ranks or nodes read disjoint shards."""
    shuffle_buffer: int = 4096
    """Images in a rank's shuffle buffer with --stream."""
    threads: int | None = None
    """Reading and decoding threads per rank; default: the node's cores divided by its ranks, on CUDA less two."""
    prefetch: int = 2
    """Batches prepared ahead of the step."""
    decoder_load: float = 0.65  # DALI's own default for hw_decoder_load
    """Share of a batch, 0 to 1, that DALI decodes on the GPU's hardware JPEG decoder, if the GPU has one."""

    max_bad_images: float | None = None
    """Distinct bad images that training bears, over all ranks and restarts, before it stops and names their causes: a
    number, or below 1 a share of the set; default: 1 % of the set, but at least 100."""

    def __post_init__(self) -> None:
        for name, allowed in self.out_of_range():
            raise PipelineError(f"{name}={getattr(self, name)!r}: it must be {allowed}")

    def out_of_range(self) -> Iterator[tuple[str, str]]:
        """Name and range of each option that is outside its range."""
        for name, known in (("pipeline", get_args(BackendName)), ("order", get_args(Policy))):
            if getattr(self, name) not in known:
                yield name, f"one of {', '.join(known)}"
        for name in ("order_window", "order_lanes", "shuffle_buffer", "threads", "prefetch"):
            value = getattr(self, name)
            if value is not None and value < 1:
                yield name, "at least 1"
        if not all(0 < weight <= MAX_WEIGHT for weight in self.weights):  # NaN is not, either
            yield "weights", f"above 0 and at most {MAX_WEIGHT:,}, each of them"
        if not 0 <= self.decoder_load <= 1:
            yield "decoder_load", "in 0..1"
        bad = self.max_bad_images
        if bad is not None and not (0 <= bad < 1 or (bad >= 1 and bad == bad // 1)):
            yield "max_bad_images", "a whole number, or a share of the set below 1"

    def bad_images_of(self, samples: int) -> int:
        """The number of distinct bad images that a run on so many samples bears."""
        bad = self.max_bad_images
        if bad is None:
            return max(_BAD_IMAGES, samples // 100)
        return int(bad * samples if bad < 1 else bad)
