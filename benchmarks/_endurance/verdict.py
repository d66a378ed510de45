"""What the slices of two runs say: speed, and growth of memory and open files."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

from _endurance.turns import Slice

MEMORY_LIMIT = 10.0  # kB per minute of training: 400 MB in four weeks
FILES_LIMIT = 0.001  # open files per minute: 40 in four weeks
FEWEST = 8
"""Slices of each run without a fault, below which nothing is judged."""
_SETTLING = 4  # slices after a process appears in which its buffers still grow


def summary(slices: Sequence[Slice]) -> dict[str, Any]:
    """Speed and growth of each run.

    Returns:
        For each run its images per second in slices without a fault (mean, standard deviation, number), and for all
        slices; growth of memory in kB and of open files per minute, with standard errors.
    """
    found: dict[str, Any] = {}
    for name in dict.fromkeys(one.name for one in slices):
        # the last is cut short by the run's end, and the first starts the processes
        ours = [one for one in slices if one.name == name]
        calm = [one.rate for before, one in pairwise(ours[:-1]) if not one.fault and not before.fault]
        spread = statistics.stdev(calm) if len(calm) > 1 else 0.0
        found[name] = {
            "images_per_s": statistics.mean(calm) if calm else 0.0,
            "spread": spread,
            "calm_slices": len(calm),
            "images_per_s_all": sum(one.images for one in ours) / sum(one.seconds for one in ours),
            "faults": sum(bool(one.fault) for one in ours),
            "memory_kb_per_min": growth(ours, lambda one: {pid: size / 1000 for pid, size in one.memory.items()}),
            "files_per_min": growth(ours, lambda one: one.files),
        }
    return found


def growth(slices: Sequence[Slice], read: Any) -> tuple[float, float]:
    """Mean growth per minute of all processes from slice to slice, and its standard error.

    Args:
        slices: of one run, in order.
        read: what is measured in a slice, by process id.

    A process is measured from its fifth slice on, as long as it lives.
    """
    seen: dict[int, int] = {}
    each = []
    for before, after in pairwise(slices):
        old, new = read(before), read(after)
        changes = []
        for pid in old.keys() & new.keys():
            seen[pid] = seen.get(pid, 0) + 1
            if seen[pid] > _SETTLING and new[pid]:
                changes.append((new[pid] - old[pid]) / (after.seconds / 60))
        if changes:
            each.append(sum(changes))
    return _mean(each)


def _mean(values: Sequence[float]) -> tuple[float, float]:
    if len(values) < 2:
        return 0.0, float("inf")
    return statistics.mean(values), statistics.stdev(values) / len(values) ** 0.5


def judged(result: dict[str, Any]) -> tuple[list[str], int]:
    """Lines that say what holds, and the exit code: 1 if something does not."""
    calm, tried = result["undisturbed"], result["with faults"]
    lines, wrong = [], bool(result["differences"])
    low, high = (calm["images_per_s"] + sign * 2 * calm["spread"] for sign in (-1, 1))
    inside = low <= tried["images_per_s"] <= high
    lines.append(
        f"{tried['images_per_s']:.1f} images/s between faults, {tried['images_per_s_all']:.1f} with them and the "
        f"starts; {'inside' if inside else 'outside'} of two deviations of the undisturbed run, "
        f"{calm['images_per_s']:.1f} ± {calm['spread']:.1f}"
    )
    enough = min(calm["calm_slices"], tried["calm_slices"]) >= FEWEST
    for name, about in (("undisturbed", calm), ("with faults", tried)):
        for what, key, limit in _GROWTHS:
            slope, error = about[key]
            grows = slope - 3 * error > limit
            wrong = wrong or (enough and grows)
            verdict = "grows" if grows else "does not grow"
            lines.append(f"{name}: {what} {verdict}: {slope:+.3f} ± {error:.3f} per minute; the limit is {limit:g}")
    wrong = wrong or (enough and not inside)
    if not enough:
        lines.append(f"speed and growth are not judged: fewer than {FEWEST} slices without a fault; use more --minutes")
    return lines, int(wrong)


_GROWTHS: Iterable[tuple[str, str, float]] = (
    ("memory (kB)", "memory_kb_per_min", MEMORY_LIMIT),
    ("number of open files", "files_per_min", FILES_LIMIT),
)
