"""Values of an LMDB database by their keys; needs lmdb (the extra `lmdb`)."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from typing import Any

from shards.errors import PackError
from shards.images.encode import Rejected
from shards.words import display

DATA = "data.mdb"  # the file with the data in the folder of a database


class DamagedDatabase(Exception):
    """A database is damaged; the message says how."""


def _open(path: str) -> Any:
    """The lmdb.Environment of a file."""
    try:
        import lmdb
    except ImportError:
        raise PackError(f"reading --src {display(path)} needs lmdb: pip install 'fastmoco[lmdb]'") from None
    size = os.stat(path).st_size
    try:
        # Without locks, which need a folder that can be written to. Images are read in a random order, so that what
        # follows one of them is of no use.
        environment = lmdb.open(path, subdir=False, readonly=True, lock=False, readahead=False, create=False)
    except lmdb.Error as error:
        raise DamagedDatabase(str(error).removeprefix(f"{path}: ")) from None
    whole = (environment.info()["last_pgno"] + 1) * environment.stat()["psize"]
    if size < whole:  # a page that is mapped and not there would kill the process
        environment.close()
        raise DamagedDatabase(f"truncated: {size:,} of {whole:,} bytes are there")
    return environment


def items(path: str) -> Iterator[tuple[bytes, memoryview]]:
    """Keys and values of a database in the order of the keys. A value is mapped, and valid until the next one.

    Raises:
        PackError: lmdb is not installed.
        DamagedDatabase: The file is no database, or it is damaged.
        OSError: It cannot be read.
    """
    with _open(path) as environment:
        import lmdb

        try:
            with environment.begin(buffers=True) as transaction, transaction.cursor() as cursor:
                for key, value in cursor:
                    yield bytes(key), value
        except lmdb.Error as error:
            raise DamagedDatabase(str(error)) from None


class Values:
    """Values of one database at a time, which stays open in between; LMDB lets a process open each one once."""

    def __init__(self) -> None:
        self._path = ""
        self._environment: Any = None

    def __enter__(self) -> Values:
        return self

    def __exit__(self, *_: object) -> None:
        if self._environment is not None:
            self._environment.close()
        self._environment = None

    def get(self, path: str, key: bytes) -> bytes:
        """The value of a key.

        Raises:
            Rejected: The database has no such key.
            OSError: The database cannot be read, or is damaged.
        """
        try:
            if self._environment is None or path != self._path:
                self.__exit__()
                self._environment, self._path = _open(path), path
            import lmdb

            try:
                with self._environment.begin() as transaction:
                    value = transaction.get(key)
            except lmdb.Error as error:
                raise DamagedDatabase(str(error)) from None
        except DamagedDatabase as damage:
            raise OSError(errno.EIO, f"the database is damaged ({damage})", path) from None
        if value is None:
            raise Rejected("missing: the database no longer has a value of this key")
        return value
