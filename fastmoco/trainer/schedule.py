"""Learning rate, the key encoder's momentum, and the sizes of views, as functions of the step."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import numpy as np

from fastmoco.config import Config
from fastmoco.views import early_sizes
from shards.words import counted


def peak_lr(config: Config) -> float:
    """Peak learning rate: --lr as given, else --base-lr by the linear scaling rule (arXiv 1706.02677, section 2.1)."""
    if config.lr is not None:
        return config.lr
    return config.base_lr * config.batch_size / config.base_batch_size


def lr_at(config: Config, step: int, total_steps: int) -> float:
    """Learning rate of step 0 … total_steps − 1.

    `cosine` decays from the peak to zero along half a cosine (arXiv 2003.04297, section 3), at every step; the paper's
    code does so once per epoch. `warmup-cosine` does so from the end of the warm-up on (arXiv 2104.02057, section 4.1),
    where `cosine` is multiplied with it. `step` multiplies by `decay` at each milestone (arXiv 1911.05722, section 4:
    120 and 160 of 200 epochs). `exponential` multiplies by `decay` every `decay_steps` steps (same section,
    Instagram-1B). Over the first fraction `warmup` of the run the rate rises linearly to its schedule (arXiv
    1706.02677, section 2.2).
    """
    rise = min(1.0, (step + 1) / max(1, _warmup_steps(config, total_steps)))
    return _scheduled(config, step, total_steps) * rise


def _warmup_steps(config: Config, total_steps: int) -> int:
    return round(config.warmup * total_steps)


def _scheduled(config: Config, step: int, total_steps: int) -> float:
    peak = peak_lr(config)
    if config.schedule == "cosine":
        return peak * 0.5 * (1 + math.cos(math.pi * step / total_steps))
    if config.schedule == "warmup-cosine":
        warmup_steps = _warmup_steps(config, total_steps)
        return peak * 0.5 * (1 + math.cos(math.pi * max(0, step - warmup_steps) / max(1, total_steps - warmup_steps)))
    if config.schedule == "exponential":
        return peak * config.decay ** (step // config.decay_steps)
    return peak * config.decay ** sum(step >= milestone for milestone in milestone_steps(config, total_steps))


def milestone_steps(config: Config, total_steps: int) -> list[int]:
    """The steps at which `--schedule step` lowers the rate."""
    return [round(fraction * total_steps) for fraction in config.milestone_fractions()]


def in_words(config: Config, steps_per_epoch: int, total_steps: int) -> str:
    """The learning rate over the run, for the log."""
    peak = f"learning rate {peak_lr(config):g}"
    if config.warmup:
        peak += f" after a warm-up of {counted(_warmup_steps(config, total_steps), 'step')}"
    if config.schedule in ("cosine", "warmup-cosine"):
        return f"{peak}, along half a cosine to 0 at step {total_steps}"
    if config.schedule == "exponential":
        return f"{peak}, × {config.decay:g} every {config.decay_steps} steps"
    steps = milestone_steps(config, total_steps)
    if not steps:
        return f"{peak}, constant"
    epochs = " and ".join(f"{step / steps_per_epoch:.4g}" for step in steps)
    at = " and ".join(map(str, steps))
    return f"{peak}, × {config.decay:g} at epochs {epochs} of {total_steps / steps_per_epoch:.4g} (steps {at})"


def momentum_key_at(config: Config, step: int, total_steps: int) -> float:
    """Momentum m of the key encoder at step 0 … total_steps − 1.

    `cosine` rises from --momentum-key to 1: m = 1 − (1 − m₀)(1 + cos(π step / total)) / 2 (arXiv 2006.07733,
    section 3.2).
    """
    if config.momentum_key_schedule == "constant":
        return config.momentum_key
    return 1 - (1 - config.momentum_key) * 0.5 * (1 + math.cos(math.pi * step / total_steps))


def view_sizes(config: Config, total_steps: int) -> list[tuple[int, int]]:
    """The sizes of a run's views in order: the number of the first batch of each, from 0 on, and the side in pixels.

    Batches and not steps: those that a rollback skips count as well, as they are made ahead of the steps.
    """
    found, first = [], 0
    for size, share in early_sizes(config):
        end = int(share * total_steps)  # rounded down, so that the last batch has the last size
        if end > first:  # a short run may have no batch of a size
            found.append((first, size))
            first = end
    return [*found, (first, config.image_size)]


def pixels(config: Config, total_steps: int) -> Callable[[int], float] | None:
    """The pixels of a view of each of the first N steps, summed, by N; None where all steps have as many.

    A step's time is nearly proportional to them, in convolutional encoders.
    """
    sizes = view_sizes(config, total_steps)
    if len(sizes) == 1:
        return None
    ends = [0, *(first for first, _ in sizes[1:]), total_steps]
    spent = np.cumsum(
        [0, *((end - first) * size**2 for (first, end), (_, size) in zip(pairwise(ends), sizes, strict=True))]
    )
    return lambda step: float(np.interp(step, ends, spent))


def sizes_in_words(config: Config, total_steps: int) -> str:
    """The sizes of the views over the run, for the log."""
    sizes = view_sizes(config, total_steps)
    if len(sizes) == 1:
        return f"views of {sizes[0][1]} pixels from the first step on: the run is too short for those of --early-sizes"
    parts = [f"{size} pixels up to step {end}" for (_, size), (end, _) in pairwise(sizes)]
    return f"views of {', '.join([*parts, ''])}and {sizes[-1][1]} from there on"
