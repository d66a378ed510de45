"""The time of a training step in an undisturbed run, its loader included."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from _environment import environment
from fastmoco.config import Config
from fastmoco.trainer.loop import train

WARM_UP = 3  # steps of each run that are not measured: they fill the prefetcher and prepare kernels


def measure(configs: Mapping[str, Config], steps: int) -> list[dict[str, Any]]:
    """One round: a short run of each, one after the other, by the ordinary training loop.

    Args:
        configs: settings by the name of their work.
        steps: measured steps of each.

    Returns:
        A row for each, with the median over its steps of the seconds from one step to the next.
    """
    here = environment()
    where = {"cpu": here["cpu"], "threads": here["torch_threads"], "torch": here["packages"]["torch"]}
    where |= {"commit": here["commit"], "date": here["date"]}
    return [
        {"work": work, "steps": steps, "seconds": round(seconds_of_a_step(config, steps), 5), **where}
        for work, config in configs.items()
    ]


def seconds_of_a_step(config: Config, steps: int) -> float:
    """Train for so many steps after the warm-up; the median of the seconds from one step to the next."""
    times: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        short = replace(config, steps=WARM_UP + steps, out=Path(folder) / "run", resume="none")
        train(short, on_step=lambda *_: times.append(time.perf_counter()))
    gaps = [after - before for before, after in zip(times[WARM_UP - 1 :], times[WARM_UP:], strict=False)]
    return statistics.median(gaps)
