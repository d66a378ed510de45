"""What sources of archives share: one archive or a folder of them, faults of one of many, and notes of damage."""

from __future__ import annotations

import os
from abc import abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from copy import copy
from functools import partial
from threading import Event
from typing import Any, ClassVar, NamedTuple

from shards.errors import PackError
from shards.format.manifest import Quarantined
from shards.packing.sources.folder import NamedFiles
from shards.packing.sources.record import Record, Source
from shards.packing.sources.selection import Selection
from shards.pool import process_map, thread_map
from shards.storage.places import is_url, joined, parent
from shards.words import counted, display

Found = Iterator[Record | Quarantined]
"""Images, and what cannot be read."""
_MUCH = 10_000  # images after which processes are started: their start takes as long
_REQUESTS = 16  # archives at URLs that are read at a time


class Counts(NamedTuple):
    """What was counted while archives were read; see `Source`, `Archives` and `Selection`."""

    ignored: int
    whole: bool
    damaged: list[str]
    classes: set[bytes]
    hidden: Counter[str]
    excluded: Counter[str]


class Archives(Source):
    """Images in an archive, or in the archives of a folder.

    Args:
        place: An archive, or a folder that is searched for archives; a local path or a URL.
        selection: Which archives and which of their members are packed; None: all but hidden ones.

    Attributes:
        workers: Processes that read archives on a local disk; 0: this one reads them, also at a URL, one by one. What
            is found does not depend on it.
        stop: In a thread, what is set when nothing is to be read any more.
    """

    noun: ClassVar[str]
    extensions: ClassVar[tuple[bytes, ...]]
    workers: int = 1
    stop: Event | None = None

    def __init__(self, place: str, selection: Selection | None = None) -> None:
        self.selection = selection or Selection()
        self._damaged: list[str] = []  # archives of which images may be missing, with the cause
        self._classes: set[bytes] = set()  # of archives without an image, too, where their names are classes
        by_name = place.lower().endswith(tuple(f".{each.decode()}" for each in self.extensions))
        single = by_name if is_url(place) else not os.path.isdir(place)
        self.root = parent(place) if single else place
        self._single = place.rpartition("/")[2] if single else None

    @abstractmethod
    def _read(self, path: bytes, place: str) -> Found:
        """The images of the archive at `place`, which the source names `path`; OSError if it cannot be read."""

    def records(self) -> Found:
        """The images of all archives. Memory: the members of one archive, or of a few for each worker."""
        if self._single is not None:
            yield from self._archive(self._single.encode("utf-8", "surrogateescape"))
            return
        files = NamedFiles(self.root, *self.extensions, selection=self.selection)
        yield from self._each(type(self)._in_file, files.records())
        self.ignored += files.ignored

    def _each(self, read: Callable[[Any, Any], Found], items: Iterable[Any]) -> Found:
        """What a method finds in each of the items, in order.

        Once there is much, several processes read ahead; at a URL threads do, which wait for the network.
        """
        source, count, stop = iter(items), 0, Event()
        if is_url(self.root) and self.workers:
            results = thread_map(partial(_apart, self, read, stop=stop), source, _REQUESTS)
        else:
            for item in source:
                for found in read(self, item):
                    count += 1
                    yield found
                if count >= _MUCH and self.workers > 1:
                    break
            results = process_map(partial(_apart, self, read), source, self.workers)
        with closing(results):
            try:
                for part, counts in results:
                    self._add(counts)
                    yield from part
            finally:
                stop.set()  # what threads have begun may take minutes

    def afresh(self) -> Archives:
        """The same source for a worker, with nothing counted."""
        other = copy(self)
        other.workers, other.selection = 0, self.selection.afresh()
        other.ignored, other.whole, other._damaged, other._classes = 0, True, [], set()
        return other

    def counts(self) -> Counts:
        """What was counted."""
        selection = self.selection
        return Counts(self.ignored, self.whole, self._damaged, self._classes, selection.hidden, selection.excluded)

    def _add(self, other: Counts) -> None:
        """Count what a worker has counted."""
        self.ignored += other.ignored
        self.whole = self.whole and other.whole
        self._damaged += other.damaged
        self._classes |= other.classes
        self.selection.hidden.update(other.hidden)
        self.selection.excluded.update(other.excluded)

    def _in_file(self, found: Record | Quarantined) -> Found:
        if isinstance(found, Quarantined):
            yield found
        else:
            yield from self._archive(found.path)

    def _archive(self, path: bytes) -> Found:
        place = joined(self.root, path.decode("utf-8", "surrogateescape"))
        try:
            yield from self._read(path, place)
        except OSError as error:
            # One of many local archives is left out. A store that fails once may fail for all of them.
            if self._single is not None or is_url(self.root):
                raise PackError(f"cannot read {display(place)}: {error.strerror or error}") from error
            yield Quarantined(display(path), f"cannot read: {error.strerror or error}")

    def classes(self) -> set[bytes]:
        """See Source.classes."""
        return self._classes

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


def _apart(
    source: Archives, read: Callable[[Any, Any], Found], item: Any, stop: Event | None = None
) -> tuple[list[Record | Quarantined], Counts]:
    """What a method finds in an item, and counts, in another process or thread."""
    own = source.afresh()
    own.stop = stop
    return list(read(own, item)), own.counts()
