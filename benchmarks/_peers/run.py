"""Times one contestant of `imgs_per_sec.py --peers` in a process of its own: python -m _peers.run JSON.

A process of its own, so that no contestant finds threads, memory or settings that another one left.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

from _peers.contestants import CONTESTANTS
from _peers.work import Batches, Work

WARM_UP = 1.0  # seconds, at least


def main() -> None:
    """Print {"images", "seconds"} of a stretch as the last line."""
    given = json.loads(sys.argv[1])
    work = Work(Path(given["folder"]), given["batch_size"], given["image_size"], given["workers"])
    if hasattr(os, "sched_setaffinity"):  # no contestant's main process or helpers get further cores
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: work.workers])
    batches = CONTESTANTS[given["name"]].start(work)
    images, seconds = stretch(batches, work.workers, given["seconds"])
    batches.close()
    print(json.dumps({"images": images, "seconds": seconds}))


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


if __name__ == "__main__":
    main()
