"""Image files that are the values of an LMDB database, such as LSUN's."""

from __future__ import annotations

import os
from collections.abc import Iterator

from shards.errors import PackError
from shards.format.manifest import Quarantined
from shards.packing.keyed import DATA, DamagedDatabase, items
from shards.packing.plan import source_name
from shards.packing.sources.record import Record, Source
from shards.packing.sources.selection import Selection
from shards.storage.places import is_url, parent
from shards.words import display

_REMEDY = "write a database whose values are the bytes of image files"


class LmdbSource(Source):
    """The values of a database, named after their keys. Reading the records reads no image but its first bytes.

    Args:
        place: The folder of a database, with its file `data.mdb`, or the file.
        selection: Which keys are packed.
    """

    kind = "lmdb"

    def __init__(self, place: str, selection: Selection | None = None) -> None:
        if is_url(place):
            raise PackError(f"--src {place}: LMDB maps its file into memory; copy the database to a disk")
        self.selection = selection or Selection()
        folder = os.path.isdir(place)
        self.root, self._name = (place, DATA) if folder else (parent(place), os.path.basename(place))

    def records(self) -> Iterator[Record | Quarantined]:
        """The values in the order of their keys."""
        path, place = os.fsencode(self._name), os.path.join(self.root, self._name)
        try:
            for key, value in items(place):
                if self.selection.excludes(key):
                    continue
                if key.startswith(b"__") and key.endswith(b"__"):  # __len__ and __keys__ of PyTorch's databases
                    self.ignored += 1
                elif b"\0" in key:  # it would terminate the name in the plan
                    yield Quarantined(source_name(path, key), "bad name: it holds a zero byte")
                elif what := _no_file(bytes(value[:4])):
                    raise PackError(
                        f"cannot read --src {display(place)}: the value of key {display(key)!r} is {what}; {_REMEDY}"
                    )
                else:
                    yield Record(path, len(value), None, key, 0)
        except DamagedDatabase as damage:
            raise PackError(f"cannot read --src {display(place)}: the database is damaged ({damage})") from None
        except OSError as error:
            raise PackError(f"cannot read --src {display(place)}: {error.strerror}") from error


def is_database(folder: str) -> bool:
    """Whether a local folder is that of a database."""
    return os.path.isfile(os.path.join(folder, DATA))


def _no_file(head: bytes) -> str:
    """What a value is, by its first bytes, if it is of a kind that never is an image file; else empty."""
    if head[:1] == b"\x80" and head[1:2] in (b"\2", b"\3", b"\4", b"\5"):
        return "a pickle, which is not read, as it may run any code"
    if head[:1] == b"\x08" and head[1:2] in (b"\1", b"\3", b"\4") and head[2:3] == b"\x10":
        return "a Datum of Caffe, not an image file"  # its channels (field 1) and height (field 2)
    return ""
