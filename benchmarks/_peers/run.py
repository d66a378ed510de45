"""Times one contestant of `imgs_per_sec.py --peers`."""

from __future__ import annotations

import os
import time
from pathlib import Path

from _peers.contestants import CONTESTANTS
from _peers.work import Batches, Work

WARM_UP = 1.0  # seconds, at least


def timed(contestant: str, folder: str, batch_size: int, image_size: int, workers: int, seconds: float) -> float:
    """Images per second of a contestant; called in a process of its own."""
    work = Work(Path(folder), batch_size, image_size, workers)
    if hasattr(os, "sched_setaffinity"):  # no contestant's main process or helpers get further cores
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:workers])
    batches = CONTESTANTS[contestant].start(work)
    images, passed = stretch(batches, workers, seconds)
    batches.close()
    return images / passed


def stretch(batches: Batches, workers: int, seconds: float) -> tuple[int, float]:
    """Take batches for at least `seconds` after a warm-up.

    Workers that each make a batch deliver them in volleys, so the clock starts and stops at the end of one: after a
    multiple of `workers` batches. The batches are not looked at, which spares the main processes of those that come
    in shared memory the reading of it.

    Returns:
        The images and the seconds between the two.
    """
    started, volleys = time.perf_counter(), 0
    while volleys < 2 or time.perf_counter() - started < WARM_UP:
        _volley(batches, workers)
        volleys += 1
    images, started = 0, time.perf_counter()
    while (passed := time.perf_counter() - started) < seconds or not images:
        images += _volley(batches, workers)
    return images, passed


def _volley(batches: Batches, workers: int) -> int:
    return sum(len(next(batches)[0]) for _ in range(workers))
