"""Sentences about results. They follow from the numbers, errors included."""

from __future__ import annotations

import math
from collections.abc import Sequence

from fastmoco.report.record import Accuracy

SURE = 2.0
"""Standard errors of a difference beyond which it is taken for real: 95 % for a normal distribution."""
_NEAR_CHANCE = 0.02
"""Distance from the loss at chance within which an encoder has learned next to nothing."""


def compared(before: Accuracy, after: Accuracy) -> int:
    """1 if the second accuracy is higher than the first by more than the error, -1 if lower, 0 if neither is shown."""
    difference = after.percent - before.percent
    # the errors are added as if both were of different images; of the same images the difference is known better
    error = math.hypot(before.error or 0.0, after.error or 0.0)
    if abs(difference) <= SURE * error or difference == 0:
        return 0
    return 1 if difference > 0 else -1


def times(before: Accuracy, after: Accuracy) -> str:
    """How many times the second accuracy is the first, `2.5 times`; empty where that says nothing.

    That is where it is not clearly higher, less than half higher, or the first is itself not clearly above zero.
    """
    if compared(before, after) < 1 or before.percent <= SURE * (before.error or 0.0):
        return ""
    ratio = after.percent / before.percent
    return f"{ratio:.1f} times" if ratio >= 1.5 else ""


def verdict(before: Accuracy, after: Accuracy) -> str:
    """What training did to the kNN accuracy."""
    change = f"{before} before training, {after} after it"
    way = compared(before, after)
    if way == 0:
        return (
            f"kNN top-1 is {change}: equal within the standard error, so this run does not show that training improved "
            "the features. Train longer, or on more images."
        )
    if way < 0:
        return (
            f"kNN top-1 is {change}: training made the features worse for this task. "
            "Train longer, on more images, or with a lower learning rate."
        )
    ratio = times(before, after)
    return f"kNN top-1 is {change}" + (f", {ratio} as much." if ratio else ".")


def about_loss(losses: Sequence[float], chance: float | None, fill: float | None) -> str:
    """What a loss curve shows.

    Args:
        losses: in order.
        chance: the loss if all logits were equal; None where that is not known.
        fill: share of the queue that holds keys of images, the others random vectors; None without a queue.
    """
    if not losses:
        return "There are no figures yet."
    if chance is None:
        return f"The loss is {losses[-1]:.2f} at the end, {losses[0]:.2f} at the start."
    last, below = losses[-1], chance - losses[-1]
    if fill is not None and fill < 1:
        return (
            f"The loss is {last:.2f}. The queue still contains random vectors, which are easy to tell from images, so "
            f"it says little yet; chance, once the queue is full, is {chance:.2f} (dashed)."
        )
    if below > _NEAR_CHANCE:
        said = f"The loss ends at {last:.2f}, {below:.2f} below chance (dashed)"
        said += ": the encoder tells the views of an image from those of others."
    elif below > -_NEAR_CHANCE:
        said = f"The loss ends at {last:.2f}, which is chance (dashed)"
        said += ": the encoder does not tell the views of an image from those of others yet."
    else:
        said = f"The loss ends at {last:.2f}, {-below:.2f} above chance (dashed): nothing was learned yet."
    if fill is not None and losses[0] < max(losses) - 0.1:
        said += " It starts low because the queue contains random vectors at first, and rises as images replace them."
    return said
