"""Work that each rank does alone, between exchanges with the others: if it fails on one, all of them know."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

import numpy as np

from fastmoco.probes.sets import ProbeError
from fastmoco.ranks.world import World, from_all

T = TypeVar("T")


class ElsewhereError(ProbeError):
    """Another rank failed. The message has its rank and its reason."""

    exit_code = 1
    consequence = True


def attempt(here: World, act: Callable[[], T]) -> T:
    """Do a rank's own work, and raise on all ranks if it fails on one: none is left waiting for the others.

    All ranks call it. `is_agreed` tells its errors from those of an exchange, after which ranks are not in step.

    Args:
        here: this rank.
        act: the work; it makes no exchange with other ranks.

    Raises:
        Exception: what `act` raises.
        ElsewhereError: it has raised on another rank.
    """
    raised: Exception | None = None
    result: list[T] = []
    try:
        result.append(act())
    except Exception as error:
        raised = error
    texts = from_all(here, None if raised is None else in_one_line(raised))
    if raised is None:
        for rank, other in enumerate(texts):
            if other is not None:
                raised = ElsewhereError(f"rank {rank}: {other}")
                break
    if raised is None:
        return result[0]
    with suppress(AttributeError):
        raised.of_all_ranks = True  # pyright: ignore[reportAttributeAccessIssue]
    raise raised


def is_agreed(error: Exception, here: World) -> bool:
    """Whether all ranks have raised an error at the same place, so that they can go on together."""
    return here.size == 1 or getattr(error, "of_all_ranks", False)


def in_one_line(error: Exception) -> str:
    """The first line of an error's text; its type where it has none."""
    return next(iter(str(error).splitlines()), "") or type(error).__name__


def of_all_ranks(numbers: np.ndarray, here: World) -> np.ndarray:
    """The different numbers (int64) of all ranks, sorted. All ranks call it."""
    return np.unique(np.concatenate(from_all(here, numbers)))
