"""Results: their standard error, and where a command writes them: tried before the work, written whole after it."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from shards.storage.files import write_whole
from shards.storage.trial import check_file, check_folder, check_readable

__all__ = [
    "check_file",
    "check_folder",
    "check_readable",
    "check_run",
    "left_out_in_words",
    "standard_error",
    "write_json",
]


def standard_error(percent: float, images: int) -> float:
    """Binomial standard error, in percentage points, of the share of `images` images that were classified right."""
    return math.sqrt(percent * (100 - percent) / images)


ALLOWED_BAD = 0.01
"""Share of a set's images that may be bad: an accuracy without more of them would be that of another set."""
ALWAYS_ALLOWED = 10
"""Number of images that may be bad in any set: of a small one, 1 % is less than an image."""


def too_many_bad(bad: int, images: int) -> bool:
    """Whether more of a set's images are bad than an evaluation of the others may leave out, or all are."""
    return bad > max(ALLOWED_BAD * images, ALWAYS_ALLOWED) or bad == images > 0


def left_out_in_words(left_out: dict[str, int]) -> str:
    """Text about images that were left out of an evaluation, by set; empty where there were none."""
    counts = [f"{count} of {name}" for name, count in left_out.items() if count]
    return f"; bad images left out: {' and '.join(counts)}" if counts else ""


def check_run(out: Path | None, init: Path | None, resume: str) -> None:
    """Try the paths of a training: raise a UserError unless the run folder can be written and the files can be read."""
    if out is not None:
        check_folder("--out", out)
        check_folder("--out", out / "checkpoints")
    check_readable("--init", init)
    if resume not in ("auto", "none"):
        check_readable("--resume", Path(resume), "there is no checkpoint {}; give the path of a step-XXXXXXXX.pt")


def write_json(path: Path, result: dict[str, Any]) -> None:
    """Write a result, whole or not at all; missing folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, (json.dumps(result, indent=2) + "\n").encode())
