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


@contextmanager
def packages(kit: Path | None) -> Iterator[Path | None]:
    """Make the packages of a kit importable, here and in the processes started from here.

    Args:
        kit: folder of packages, as `pip install --target` makes it, or of archives (.tar.xz) of such folders; an
            archive may be split into parts NAME.tar.xz.aa, NAME.tar.xz.ab, ... None for no kit.

    Yields:
        The folder of packages.

    Raises:
        BenchmarkError: the folder is missing, or an archive is damaged or incomplete.
    """
    if kit is None:
        yield None
        return
    if not kit.is_dir():
        raise BenchmarkError(f"--kit {kit} is not a folder; make one by pip install --target {kit} PACKAGES")
    with tempfile.TemporaryDirectory(prefix="gpu_suite-kit-") as unpacked:
        archives = sorted(kit.glob("*.tar.xz*"))
        for name, parts in groupby(archives, lambda path: path.name.partition(".tar.xz")[0]):
            try:
                _unpack(list(parts), Path(unpacked))
            except (tarfile.TarError, EOFError, OSError) as error:
                raise BenchmarkError(
                    f"--kit {kit}: {name}.tar.xz cannot be unpacked ({error}); copy it again"
                ) from None
        folder = Path(unpacked) if archives else kit.absolute()
        sys.path.insert(0, str(folder))
        before = os.environ.get("PYTHONPATH")
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(folder), before]))
        yield folder


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
