"""The variants of `hour.py`, and the number of steps that a budget of time buys each of them."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from _command import BenchmarkError
from _learning.experiments import PHOTOS, PROBES, Experiment, Flags, Variant
from fastmoco.config import Config
from fastmoco.views import early_sizes

# probed before and after training; on one thread as precise as the base, whatever the processor
BASE = (*PHOTOS, "--precision", "fp32", "--knn-every", "1000", "--checkpoint-minutes", "3")
ZERO_INIT = ("--zero-init-residual",)
# rate and decay of arXiv 2104.02057 for LARS; its recipe's rate is 0.6 for 256 images
LARS = (
    *("--batch-size", "512", "--optimiser", "lars", "--lr", "1.2", "--weight-decay", "1e-6", "--warmup", "0.1"),
    *("--weight-decay-on", "matrices"),
)
CHANGES: dict[str, Flags] = {
    "moco-v2": (),
    "zero-init": ZERO_INIT,
    "warmup": (*ZERO_INIT, "--warmup", "0.1"),
    "symmetric": (*ZERO_INIT, "--symmetric"),
    "lars": (*ZERO_INIT, *LARS),
    "m-cosine": (*ZERO_INIT, "--momentum-key-schedule", "cosine"),
    "early-sizes": (*ZERO_INIT, "--early-sizes", "32@0.5", "48@0.75"),
    "moco-fast": ("--recipe", "moco-fast", "--precision", "bf16"),
}
"""What each variant changes in the settings of `BASE`."""
EXPERIMENT = Experiment(
    "Accuracy in equal time",
    "",
    {"small": {name: Variant((*BASE, *flags), "MoCo", name) for name, flags in CHANGES.items()}},
    linear={"small": {"fast": PROBES["small"]["fast"]}},
    starts=True,
)
"""The variants as an experiment, for the runs and the chart; `imagenet` is not among its scales."""


@dataclass(frozen=True)
class Work:
    """What determines the time of a training step.

    Attributes:
        image_size: side of a view in pixels.
        batch_size: images of a step.
        precision: of the forward pass.
        optimiser: its name.
        symmetric: whether both views are queries and keys.
    """

    image_size: int
    batch_size: int
    precision: str
    optimiser: str
    symmetric: bool

    def __str__(self) -> str:
        text = f"{self.image_size} px, batch {self.batch_size}, {self.precision}, {self.optimiser}"
        return text + ", symmetric" * self.symmetric


def works(config: Config) -> list[tuple[Work, Config, float]]:
    """The kinds of steps of a run, each with settings of such steps alone, and its share of the run's steps."""
    alone, before, found = replace(config, knn_every=0, early_sizes=()), 0.0, []
    for size, until in (*early_sizes(config), (config.image_size, 1.0)):
        work = Work(size, config.batch_size, config.precision, config.optimiser, config.symmetric)
        found.append((work, replace(alone, image_size=size), until - before))
        before = until
    return found


def paces(rows: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """Seconds of a step by its work: the median of the rounds."""
    found: dict[str, list[float]] = {}
    for row in rows:
        found.setdefault(row["work"], []).append(row["seconds"])
    return {work: statistics.median(seconds) for work, seconds in found.items()}


def seconds_per_step(config: Config, measured: Mapping[str, float]) -> float:
    """Mean time of a step of a run; raises BenchmarkError for work that has not been measured."""
    shares = works(config)
    missing = [str(work) for work, _, _ in shares if str(work) not in measured]
    if missing:
        raise BenchmarkError(f"the time of a step of {missing[0]} has not been measured; run with --pace 3 first")
    return sum(share * measured[str(work)] for work, _, share in shares)


def steps_of(minutes: float, seconds: float) -> int:
    """Steps of a run; raises BenchmarkError if there is time for none."""
    steps = round(60 * minutes / seconds)
    if steps < 1:
        raise BenchmarkError(f"--minutes {minutes:g} are less than a step, which takes {seconds:.2f} s; give more")
    return steps


def described(flags: Sequence[str]) -> str:
    """A variant's changes as text, for a table."""
    return f"`{' '.join(flags)}`" if flags else "the base"
