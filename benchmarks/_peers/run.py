"""Times one contestant of `imgs_per_sec.py --peers`."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import torch

from _peers.contestants import CONTESTANTS
from _peers.work import Batches, Work

WARM_UP = 1.0  # minimum, in seconds


def timed(
    contestant: str, folder: str, batch_size: int, image_size: int, workers: int, device: str, seconds: float
) -> float:
    """Images per second of a contestant; runs in a separate process."""
    work = Work(Path(folder), batch_size, image_size, workers, device)
    if hasattr(os, "sched_setaffinity"):  # main process and helpers of every contestant are limited to the same cores
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:workers])
    batches = CONTESTANTS[device][contestant].start(work)
    images, passed = stretch(batches, workers, seconds, torch.cuda.synchronize if device == "cuda" else None)
    batches.close()
    return images / passed


def stretch(
    batches: Batches, workers: int, seconds: float, settle: Callable[[], None] | None = None
) -> tuple[int, float]:
    """Load batches for at least `seconds` after a warm-up.

    Workers that each produce a batch deliver them in volleys, so the clock starts and stops at the end of a volley:
    after a multiple of `workers` batches. The batches are not read: those in shared memory would cost the main process
    time.

    Args:
        batches: to load.
        workers: batches of a volley.
        seconds: minimum duration.
        settle: waits for the device before the clock starts and before it stops.

    Returns:
        Number of images, and seconds.
    """
    started, volleys = time.perf_counter(), 0
    # the first volley includes the start of the workers or threads
    while volleys < 2 or time.perf_counter() - started < WARM_UP:
        _volley(batches, workers)
        volleys += 1
    settle = settle or (lambda: None)
    settle()
    images, started = 0, time.perf_counter()
    while time.perf_counter() - started < seconds or not images:
        images += _volley(batches, workers)
    settle()
    return images, time.perf_counter() - started


def _volley(batches: Batches, workers: int) -> int:
    return sum(len(next(batches)[0]) for _ in range(workers))
