"""Results: their standard error, and where a command writes them: tried before the work, written whole after it."""

from __future__ import annotations

import json
import math
import os
from itertools import islice
from pathlib import Path
from typing import Any

from shards.errors import PathError
from shards.images.formats import EXTENSIONS
from shards.storage.files import write_whole
from shards.storage.places import url_in
from shards.storage.trial import check_file, check_folder, check_readable
from shards.words import display

__all__ = [
    "check_file",
    "check_folder",
    "check_readable",
    "check_run",
    "check_run_folder",
    "classified_in_words",
    "evaluated_in_words",
    "is_run",
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


def evaluated_in_words(result: dict[str, Any]) -> str:
    """What was classified, as text: the number of images and of the classes among which they were."""
    images, classes = result["val"] - result["left_out"]["val"], f"{result['classes']} classes"
    part = f"{result['val_classes']} of " if result["evaluated"] is not None else ""
    return f"{images} images, {part}{classes}"


def classified_in_words(what: str, name: str, row: dict[str, Any], result: dict[str, Any], how: str) -> str:
    """The accuracy of a classifier as a line.

    Args:
        what: was classified by, as text.
        name: what the names of the figures begin with.
        row: the figures.
        result: what was classified.
        how: further words about the classifier.
    """

    def both(among: str = "") -> str:
        return f"top-1 {row[f'{name}_top1{among}']:.2f} %, top-5 {row[f'{name}_top5{among}']:.2f} %"

    line = f"{what} {both()}{how} ({evaluated_in_words(result)})"
    if result["evaluated"] is not None:
        line += f"; among all classes {both('_all_classes')}"
    return line + left_out_in_words(result["left_out"])


_SIGNS = ("lock", "config.json", "metrics.jsonl", "checkpoints")
"""What shows that a folder is a run's: the first of these appears seconds after the start."""
_DATA = EXTENSIONS | {b"tar", b"zip", b"npy", b"parquet"}
_LOOKED_AT = 1000  # files


def is_run(folder: Path) -> bool:
    """Whether a folder is that of a run, perhaps of one that has just begun."""
    return any((folder / sign).exists() for sign in _SIGNS)


def check_run_folder(out: Path | None) -> None:
    """Raise PathError unless the run folder can be written, and is a run's or holds nothing that a run would spoil.

    That is images, archives and features, and a config.json, which the run would replace. Other files may be there
    before the run, as logs of whatever starts it.
    """
    if out is None:
        return
    url = url_in(out)
    if url is not None:
        raise PathError(f"--out {url} is a URL; give a local folder, and --checkpoint-copy {url} for a copy there")
    check_folder("--out", out)
    check_folder("--out", out / "checkpoints")
    if os.environ.get("RANK", "0") == "0":
        what = _of_others(out)
        if what is not None:
            raise PathError(f"--out {out} is no run's folder: it holds {what}; name an empty folder")


def _of_others(out: Path) -> str | None:
    """What a folder holds that is no run's and must not be mixed with one's files; None if there is no such thing."""
    config = out / "config.json"
    if config.exists() and not any((out / sign).exists() for sign in ("lock", "metrics.jsonl")):
        try:
            recorded = json.loads(config.read_bytes())
        except ValueError:
            recorded = None
        if not isinstance(recorded, dict) or "arch" not in recorded:  # all runs record it
            return "a config.json that no run wrote"
    if not is_run(out):
        files = (Path(place, name) for place, _, names in os.walk(out) for name in names)
        data = next((path for path in islice(files, _LOOKED_AT) if _is_data(path)), None)
        return None if data is None else display(str(data.relative_to(out)))
    return None


def _is_data(path: Path) -> bool:
    return os.fsencode(path.suffix[1:]).lower() in _DATA


def check_run(out: Path | None, init: Path | None, resume: str) -> None:
    """Try the paths of a training: raise a UserError unless the run folder can be written and the files can be read."""
    check_run_folder(out)
    check_readable("--init", init)
    if resume not in ("auto", "none"):
        check_readable("--resume", Path(resume), "there is no checkpoint {}; give the path of a step-XXXXXXXX.pt")


def write_json(path: Path, result: dict[str, Any]) -> None:
    """Write a result, whole or not at all; missing folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, (json.dumps(result, indent=2) + "\n").encode())
