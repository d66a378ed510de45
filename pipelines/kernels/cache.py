"""Where Numba keeps the loops' machine code: a folder whose name is a digest of the sources.

Numba compiles a function again when its own file has changed, but not when a file that it imports has: after an update
the old code would run.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

import numba

import shards.kernels

SOURCES = (Path(__file__).parent, Path(shards.kernels.__file__).parent)
"""The folders with all files of which the loops are made."""
_PREFIX = "fastmoco-kernels-"
_KEPT = 4  # folders, the last ones used: another checkout or environment may share the place


@contextlib.contextmanager
def caching() -> Iterator[bool]:
    """Let Numba keep machine code in the folder; yields False if no folder can be written to."""
    folder = _folder()
    before = numba.config.CACHE_DIR  # pyright: ignore[reportAttributeAccessIssue]
    numba.config.CACHE_DIR = str(folder or before)  # pyright: ignore[reportAttributeAccessIssue]
    try:
        yield folder is not None
    finally:
        numba.config.CACHE_DIR = before  # pyright: ignore[reportAttributeAccessIssue]


@cache
def _folder() -> Path | None:
    given = os.environ.get("NUMBA_CACHE_DIR")
    user = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    places = [Path(given)] if given else [SOURCES[0] / "__pycache__", Path(user) / "fastmoco"]
    return folder_of(SOURCES, [place for place in places if place.parts[0] != "~"])  # the user has no home


def folder_of(sources: Iterable[Path], places: Iterable[Path]) -> Path | None:
    """The folder for machine code made of these sources, created; all but the last few used are removed.

    Args:
        sources: Folders of Python files.
        places: Folders that may hold it; the first that can be written to does.

    Returns:
        The folder, or None if none of the places can be written to.
    """
    digest = hashlib.sha256()
    for file in sorted(file for folder in sources for file in folder.glob("*.py")):
        text = file.read_bytes()
        digest.update(f"{file.parent.parent.name}/{file.parent.name}/{file.name} {len(text)}\n".encode() + text)
    for place in places:
        folder = place / f"{_PREFIX}{digest.hexdigest()[:16]}"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=folder).close()
            os.utime(folder)
        except OSError:
            continue
        _tidy(place)
        return folder
    return None


def _tidy(place: Path) -> None:
    used: list[tuple[float, Path]] = []
    for folder in place.glob(f"{_PREFIX}*"):
        with contextlib.suppress(FileNotFoundError):  # another process tidies, too
            used.append((folder.stat().st_mtime, folder))
    for _, folder in sorted(used, reverse=True)[_KEPT:]:
        shutil.rmtree(folder, ignore_errors=True)
