"""What sources of archives share: one archive or a folder of them, faults of one of many, and notes of damage."""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Iterator
from typing import ClassVar

from shards.errors import PackError
from shards.format.manifest import Quarantined
from shards.packing.sources.folder import NamedFiles
from shards.packing.sources.record import Record, Source
from shards.packing.sources.selection import Selection
from shards.storage.places import is_url, joined, parent
from shards.words import counted, display


class Archives(Source):
    """Images in an archive, or in the archives of a folder.

    Args:
        place: An archive, or a folder that is searched for archives; a local path or a URL.
        selection: Which archives and which of their members are packed; None: all but hidden ones.
    """

    noun: ClassVar[str]
    extensions: ClassVar[tuple[bytes, ...]]

    def __init__(self, place: str, selection: Selection | None = None) -> None:
        self.selection = selection or Selection()
        self._damaged: list[str] = []  # archives of which images may be missing, with the cause
        by_name = place.lower().endswith(tuple(f".{each.decode()}" for each in self.extensions))
        single = by_name if is_url(place) else not os.path.isdir(place)
        self.root = parent(place) if single else place
        self._single = place.rpartition("/")[2] if single else None

    @abstractmethod
    def _read(self, path: bytes, place: str) -> Iterator[Record | Quarantined]:
        """The images of the archive at `place`, which the source names `path`; OSError if it cannot be read."""

    def records(self) -> Iterator[Record | Quarantined]:
        """The images of all archives. Memory: the members of one archive."""
        if self._single is not None:
            yield from self._archive(self._single.encode("utf-8", "surrogateescape"))
            return
        files = NamedFiles(self.root, *self.extensions, selection=self.selection)
        for found in files.records():
            if isinstance(found, Quarantined):
                yield found
            else:
                yield from self._archive(found.path)
        self.ignored += files.ignored

    def _archive(self, path: bytes) -> Iterator[Record | Quarantined]:
        place = joined(self.root, path.decode("utf-8", "surrogateescape"))
        try:
            yield from self._read(path, place)
        except OSError as error:
            # One of many local archives is left out. A store that fails once may fail for all of them.
            if self._single is not None or is_url(self.root):
                raise PackError(f"cannot read {display(place)}: {error.strerror or error}") from error
            yield Quarantined(display(path), f"cannot read: {error.strerror or error}")

    def _damage(self, name: str, cause: str) -> Quarantined:
        self.whole = False
        self._damaged.append(f"{name}: {cause}")
        return Quarantined(name, cause)

    def notes(self) -> Iterator[str]:
        """See Source.notes."""
        yield from super().notes()
        if self._damaged:
            one = len(self._damaged) == 1
            more = f"; and {len(self._damaged) - 3:,} more" if len(self._damaged) > 3 else ""
            yield (
                f"{counted(len(self._damaged), self.noun)} {'is damaged; its' if one else 'are damaged; their'} images"
                f" behind the damage are missing: {'; '.join(self._damaged[:3])}{more}"
            )
