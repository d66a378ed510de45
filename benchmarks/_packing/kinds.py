"""The same images as a folder and as each other kind of source."""

from __future__ import annotations

import io
import os
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

Image = tuple[str, bytes]
"""Name (`CLASS/00000001.jpg`) and content."""


def images_in(folder: Path) -> Iterator[Image]:
    """The images of a folder of class folders, class by class."""
    for path in sorted(folder.glob("*/*")):
        yield path.relative_to(folder).as_posix(), path.read_bytes()


def tar(images: Iterator[Image], path: Path) -> None:
    """A tar."""
    _tar(images, path, "w")


def tar_of_tars(images: Iterator[Image], path: Path) -> None:
    """A tar with a tar for each class, as ILSVRC2012's training set is."""
    with tarfile.open(path, "w") as outer:
        for name, of_class in groupby(images, key=lambda image: image[0].partition("/")[0]):
            inner = io.BytesIO()
            with tarfile.open(fileobj=inner, mode="w") as file:
                for member, content in of_class:
                    _add(file, os.path.basename(member), content)
            _add(outer, f"{name}.tar", inner.getvalue())


def tar_gz(images: Iterator[Image], path: Path) -> None:
    """A compressed tar."""
    _tar(images, path, "w:gz")


def zip_stored(images: Iterator[Image], path: Path) -> None:
    """A zip without compression."""
    _zip(images, path, zipfile.ZIP_STORED)


def zip_deflated(images: Iterator[Image], path: Path) -> None:
    """A zip as most programs write it."""
    _zip(images, path, zipfile.ZIP_DEFLATED)


def parquet(images: Iterator[Image], path: Path) -> None:
    """A Parquet file of Hugging Face's form, in row groups of 100, compressed as pyarrow does by default."""
    from pyarrow import parquet

    parquet.write_table(_table(images), path, row_group_size=100)


def parquet_plain(images: Iterator[Image], path: Path) -> None:
    """The same without compression, as recent versions of `datasets` write images."""
    from pyarrow import parquet

    parquet.write_table(_table(images), path, row_group_size=100, compression="none", use_dictionary=False)


def arrow(images: Iterator[Image], path: Path) -> None:
    """An Arrow file of Hugging Face's form, in batches of 100."""
    import pyarrow

    table = _table(images)
    with pyarrow.OSFile(str(path), "wb") as file, pyarrow.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table, max_chunksize=100)


def lmdb(images: Iterator[Image], path: Path) -> None:
    """An LMDB database with an image file for each key, as LSUN's."""
    import lmdb

    with lmdb.open(str(path), map_size=1 << 40) as database, database.begin(write=True) as transaction:
        for name, content in images:
            transaction.put(name.encode(), content)


KINDS: dict[str, tuple[str, Callable[[Iterator[Image], Path], None]]] = {
    "tar": ("images.tar", tar),
    "tar of tars": ("classes.tar", tar_of_tars),
    "zip, stored": ("stored.zip", zip_stored),
    "zip, deflated": ("deflated.zip", zip_deflated),
    "tar.gz": ("images.tar.gz", tar_gz),
    "Parquet": ("images.parquet", parquet),
    "Parquet, not compressed": ("plain.parquet", parquet_plain),
    "Arrow": ("images.arrow", arrow),
    "LMDB": ("images.lmdb", lmdb),
}
"""Name of the file of each kind, and what writes it."""


def _tar(images: Iterator[Image], path: Path, mode: Any) -> None:
    with tarfile.open(path, mode) as file:
        for name, content in images:
            _add(file, name, content)


def _add(file: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    file.addfile(member, io.BytesIO(content))


def _zip(images: Iterator[Image], path: Path, method: int) -> None:
    with zipfile.ZipFile(path, "w", method) as file:
        for name, content in images:
            file.writestr(name, content)


def _table(images: Iterator[Image]) -> Any:
    import pyarrow

    return pyarrow.Table.from_pylist([{"image": {"bytes": content, "path": name}} for name, content in images])
