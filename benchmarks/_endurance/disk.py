"""A small disk of a run folder's own, which can be filled."""

from __future__ import annotations

import resource
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from _endurance.lives import Life


@contextmanager
def small_disk(folder: Path, size: int) -> Iterator[None]:
    """A file system of its own of `size` bytes at a folder, if this process may mount one."""
    line = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    mounted = subprocess.run(line, capture_output=True, check=False)
    try:
        yield
    finally:
        if mounted.returncode == 0:
            # a process that has just been killed may still hold a file
            subprocess.run(["umount", "--lazy", str(folder)], check=True)


@contextmanager
def full(folder: Path, life: Life) -> Iterator[None]:
    """Fill the small disk at a folder; without one, no process of `life` may write further than its files reach."""
    if not folder.is_mount():
        with _limited(life):
            yield
        return
    filler = folder / "filler"
    with filler.open("wb", buffering=0) as file:
        try:
            while file.write(bytes(1 << 16)):
                pass
        except OSError:
            pass
    yield
    filler.unlink()


@contextmanager
def _limited(life: Life) -> Iterator[None]:
    """Without a small disk: files may have one byte. A write beyond it fails, as on a full disk, but with EFBIG."""
    before = resource.prlimit(0, resource.RLIMIT_FSIZE)
    _set_limits(life, (1, before[1]))
    yield
    _set_limits(life, before)


def _set_limits(life: Life, limits: tuple[int, int]) -> None:
    for pid in life.processes():
        try:
            resource.prlimit(pid, resource.RLIMIT_FSIZE, limits)
        except ProcessLookupError:
            continue
