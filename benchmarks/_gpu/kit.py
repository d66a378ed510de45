"""Packages for a machine without network access: a folder of them, or archives of such a folder."""

from __future__ import annotations

import os
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from typing import BinaryIO

from _command import BenchmarkError

ROOT = Path(__file__).resolve().parents[2]


@contextmanager
def packages(kit: Path | None) -> Iterator[None]:
    """Make the packages of a kit importable here and, with this project and this suite, in processes started from here.

    Args:
        kit: folder of packages, as `pip install --target` makes it, or of archives (.tar.xz) of such folders; an
            archive may be split into parts NAME.tar.xz.aa, NAME.tar.xz.ab, ... None for no kit.

    Raises:
        BenchmarkError: the folder is missing, or an archive is damaged or incomplete.
    """
    with tempfile.TemporaryDirectory(prefix="gpu_suite-kit-") as unpacked:
        found = [] if kit is None else [_unpacked(kit, Path(unpacked))]
        sys.path[:0] = map(str, found)
        before = os.environ.get("PYTHONPATH")
        # for processes that are started, tests among them, the checkout as well, and for the fork server the suite
        project = str(ROOT), str(ROOT / "benchmarks")
        os.environ["PYTHONPATH"] = os.pathsep.join([*map(str, found), *filter(None, [before]), *project])
        yield


def _unpacked(kit: Path, folder: Path) -> Path:
    """The kit's packages: itself, or what its archives hold, unpacked to `folder`."""
    if not kit.is_dir():
        raise BenchmarkError(f"--kit {kit} is not a folder; make one by pip install --target {kit} PACKAGES")
    archives = sorted(kit.glob("*.tar.xz*"))
    for name, parts in groupby(archives, lambda path: path.name.partition(".tar.xz")[0]):
        try:
            _unpack(list(parts), folder)
        except (tarfile.TarError, EOFError, OSError) as error:
            raise BenchmarkError(f"--kit {kit}: {name}.tar.xz cannot be unpacked ({error}); copy it again") from None
    return folder if archives else kit.absolute()


def _unpack(parts: list[Path], folder: Path) -> None:
    with tempfile.TemporaryFile() as joined:
        for part in parts:
            with part.open("rb") as file:
                _copy(file, joined)
        joined.seek(0)
        with tarfile.open(fileobj=joined, mode="r:xz") as archive:
            archive.extractall(folder, filter="tar")


def _copy(source: BinaryIO, target: BinaryIO) -> None:
    while block := source.read(1 << 20):
        target.write(block)
