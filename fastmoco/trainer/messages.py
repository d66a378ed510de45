"""Log messages of pretraining."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import torch

from fastmoco.config import Config
from fastmoco.kernels import batchnorm, implementation
from fastmoco.precision import warn_if_slower
from fastmoco.ranks.world import World
from fastmoco.results import standard_error
from fastmoco.runs.warnings import passed, warn
from fastmoco.settings import OptimisationSettings
from fastmoco.trainer import schedule
from fastmoco.trainer.data import Data
from fastmoco.trainer.monitor import Accuracy
from fastmoco.trainer.rollback import WINDOW, Rollback
from fastmoco.trainer.soundness import Unsound
from pipelines import TwoViewPipeline
from shards.storage.places import is_url
from shards.words import counted

log = logging.getLogger(__name__)

LONG = 3600.0  # seconds
COLLAPSED_SPREAD = 0.02  # features that fill the sphere have a spread near 1


def say_what_runs(
    config: Config,
    here: World,
    dtype: torch.dtype | None,
    pipeline: TwoViewPipeline,
    data: Data,
    total_steps: int,
    shuffles: bool,
) -> None:
    """Log what will run where, the loss at chance, and settings that have no effect or do harm.

    Args:
        config: the settings.
        here: this rank.
        dtype: of autocast; None for float32.
        pipeline: the pipeline of the views.
        data: the images.
        total_steps: length of the run.
        shuffles: whether the model shuffles its keys.
    """
    precision = "float32" if dtype is None else f"autocast to {str(dtype).removeprefix('torch.')}"
    log.info("%s: %s on %d × %s, %s", config.recipe, config.arch, here.size, here.device.type, precision)
    warn_if_slower(config.precision, here.device)
    stored = getattr(torch, config.queue_dtype)
    if config.mechanism == "batch":
        log.info("loss by torch, over the keys of the batch")
    else:
        log.info(
            "loss and queue by %s, keys in %s",
            *(implementation(here.device, stored, config.feature_dim), config.queue_dtype),
        )
    if config.batch_norm == "shuffle" and config.mechanism != "memory-bank" and not shuffles:
        log.info("--arch %s has no BatchNorm: keys need no shuffle", config.arch)
    if config.cuda_graphs:
        log.info("the encoders' passes are CUDA graphs")
    if config.deterministic:
        log.info("deterministic algorithms only")
    if config.batch_norm_kernel == "fused":
        log.info("fused BatchNorm by %s", batchnorm.implementation(here.device, dtype or torch.float32))
    if config.channels != data.channels:
        log.info(
            "all images are grey; their value is repeated in three channels (--channels 1: an encoder of one channel)"
        )
    log.info("pipeline %s: %s", pipeline.backend, pipeline.reason)
    for line in data.sets:
        log.info("%s", line)
    steps, samples = pipeline.steps_per_epoch, data.samples
    log.info(
        "%s in %s order, %s of %d images per epoch, %s in total",
        *(counted(samples, "sample"), pipeline.order, counted(steps, "step"), config.batch_size),
        counted(total_steps, "step"),
    )
    if config.accumulate > 1:
        log.info(
            "%d micro-batches a step, each of %s on each rank",
            *(config.accumulate, counted(config.batch_size // here.size // config.accumulate, "image")),
        )
    log.info("%s", schedule.in_words(config, steps, total_steps))
    if config.early_sizes:
        log.info("%s", schedule.sizes_in_words(config, total_steps))
    if config.schedule != "step" and config.milestones != OptimisationSettings.milestones:
        log.warning("--milestones has no effect: it applies to --schedule step, not %s", config.schedule)
    if config.mechanism == "batch":
        log.info("negatives are the keys of the batch's other %d images", config.negatives)
    elif config.mechanism == "end-to-end":
        log.info("negatives are the batch's other %d: --queue-size and --momentum-key have no effect", config.negatives)
    elif config.mechanism == "memory-bank":
        log.info("keys are the bank's entries, updated with --bank-momentum: --momentum-key has no effect")
    scaled = "" if config.loss_scale == 1 else f"{config.loss_scale:g} "
    log.info("chance is a loss of %sln(K+1) = %.3f", scaled, config.chance)
    if config.mechanism == "queue" and config.queue_size >= samples:
        log.warning(
            "--queue-size %d is not below the %d samples of the set, so earlier keys of the query's own image are "
            "among its negatives; a smaller queue learns better",
            *(config.queue_size, samples),
        )


def say_what_has_grown(data: Data, before: Data, folder: Path) -> None:
    """Log that a run continues without the images that were appended since it began."""
    log.warning(
        "%s has grown from %d to %d images since this run began, which continues on the first %d; to train on all of "
        "them, begin a new run from its weights: --init %s and another --out",
        *(data.place, before.images, data.images, before.images, folder),
    )


def slow_first_step(config: Config, here: World) -> str:
    """What the first step waits for, as text."""
    remote = any(is_url(str(place)) for place in ([config.stream] if config.stream else config.sets))
    reasons = ["downloads the first images" if remote else "reads the first images"]
    if here.device.type == "cuda":
        reasons.append("compiles its kernels by Triton")
    if config.compile:
        reasons.append("compiles the encoders by torch.compile, which takes minutes")
    return f"the first step takes longer than others: it {' and '.join(reasons)}"


def demo_hint(config: Config, here: World, seconds: float) -> str:
    """Beside the length of a training that is long on a CPU: a shorter way to see what training does."""
    if here.device.type != "cpu" or seconds < LONG or config.recipe == "demo":
        return ""
    return "; fastmoco demo shows a whole training in about 4 minutes on two cores"


def logged(figures: dict[str, float], lr: float, scaled: bool) -> dict[str, float]:
    """The figures of a log step as metrics.jsonl has them.

    Args:
        figures: of `Window.start_reading`.
        lr: the learning rate.
        scaled: whether the gradients are scaled, as with fp16: then `skipped` is the share of steps that were not
            applied because the gradient had overflowed, and `scale` the factor.
    """
    of_all = {
        name: value for name, value in figures.items() if name not in ("overflowed", "spoilt", "scale", "variance")
    }
    of_fp16 = {"skipped": figures["overflowed"], "scale": figures["scale"]} if scaled else {}
    return {"lr": lr, "queue_fill": of_all.pop("queue_fill"), **of_all, **of_fp16}


def unsound_in_words(found: Unsound, sound: tuple[Path, int] | None, config: Config, forbidden: str | None) -> str:
    """The error of a run that ends because its state is not finite.

    Args:
        found: what was found.
        sound: path and step of the last sound checkpoint.
        config: the run's settings.
        forbidden: why it may not go back once more.
    """
    text = f"{found}"
    text += f", after {forbidden} (--max-rollbacks {config.max_rollbacks})" if forbidden else ""
    remedies = ["a lower --lr", "--precision bf16 or fp32"]
    remedies += ["--on-nan rollback, which skips the batches since"] if config.on_nan == "stop" else []
    if sound is None:
        return f"{text}; there is no sound checkpoint yet: begin again with {' or '.join(remedies)}"
    path, step = sound
    return f"{text}; the last sound checkpoint is {path} (step {step}): continue from it with {', or '.join(remedies)}"


def warn_of_rollback(rollbacks: Sequence[Rollback], found: Unsound, path: Path, config: Config) -> None:
    """Say what was undone, and from where the run continues."""
    last = rollbacks[-1]
    warn(
        f"rollback_{len(rollbacks)}",
        f"{found}: went back to {path} (step {last.to}); {counted(last.undone, 'step')} undone, and as many batches "
        f"are skipped. It is rollback {len(rollbacks)} of this run; --max-rollbacks {config.max_rollbacks} within "
        f"{WINDOW:,} steps. If they recur, lower --lr",
    )


def probed(accuracy: Accuracy | None) -> tuple[dict[str, float | None], str]:
    """The figures of a kNN probe as metrics.jsonl has them, and as text; None: it could not be made."""
    if accuracy is None:
        return {"knn_top1": None, "knn_images": 0}, "no kNN probe this time"
    top1, images, left_out = accuracy
    line = f"kNN top-1 {top1:.2f} ± {standard_error(top1, images):.2f} %"
    if left_out:
        return {
            "knn_top1": top1,
            "knn_images": images,
            "knn_left_out": left_out,
        }, f"{line}, {left_out} bad images left out"
    return {"knn_top1": top1, "knn_images": images}, line


def warn_of_no_probe(reason: str, step: int, run: Path) -> None:
    """Warn that a probe could not be made; training goes on."""
    warn(
        "probe",
        f"no kNN probe at step {step}: {reason}. Training goes on, and the next probe is tried; for the accuracy of a "
        f"checkpoint, run fastmoco knn --checkpoint {run} once the cause is mended",
    )


def line_of(figures: dict[str, float]) -> str:
    """The figures of a log step as text."""
    return "  ".join(
        [
            f"loss {figures['loss']:.4f}",
            f"accuracy {100 * figures['accuracy']:.1f} %",
            f"lr {figures['lr']:.4g}",
            f"{figures['imgs_per_sec']:.0f} images/s",
            f"data wait {100 * figures['data_wait']:.0f} %",
            f"queue {100 * figures['queue_fill']:.0f} %",
            f"spread {figures['spread']:.2f}",
        ]
    )


def warn_of_collapse(figures: dict[str, float], step: int) -> bool:
    """Warn if the keys of a batch are nearly equal; returns whether they are."""
    # from the first line on: a new encoder's spread is 0.4 to 0.5, whatever the queue holds
    collapsed = figures["spread"] < COLLAPSED_SPREAD
    if collapsed:
        warn(
            "collapse",
            f"feature spread is {figures['spread']:.4f} at step {step}: the keys of a batch are nearly equal, so the "
            "features have collapsed; try a lower --lr, a higher --momentum-key, or --bn-splits on one device",
        )
    else:
        passed("collapse")
    return collapsed
