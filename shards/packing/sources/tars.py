"""Images in existing tars, with the labels beside them."""

from __future__ import annotations

from collections.abc import Iterator

from shards.errors import PackError
from shards.format.contents import Contents
from shards.format.manifest import Quarantined
from shards.format.members import NOT_REGULAR
from shards.packing.plan import source_name
from shards.packing.sources.folder import NamedFiles
from shards.packing.sources.record import Record, Source
from shards.storage.places import is_url, joined, parent
from shards.storage.store import open_place
from shards.words import display


class TarSource(Source):
    """Images in a tar, or in the tars of a folder; `shards.format.members` decides which members are images.

    Args:
        place: A tar, or a folder that is searched for tars; a local path or a URL.
    """

    kind = "tars"

    def __init__(self, place: str) -> None:
        single = place.lower().endswith(".tar")
        self.root = parent(place) if single else place
        self._single = place.rpartition("/")[2] if single else None

    def records(self) -> Iterator[Record | Quarantined]:
        """The images of all tars. Memory: the headers of one tar."""
        if self._single is not None:
            yield from self._tar(self._single.encode("utf-8", "surrogateescape"))
            return
        tars = NamedFiles(self.root, b"tar")
        for found in tars.records():
            if isinstance(found, Quarantined):
                yield found
            else:
                yield from self._tar(found.path)
        self.ignored += tars.ignored

    def _tar(self, path: bytes) -> Iterator[Record | Quarantined]:
        place = joined(self.root, path.decode("utf-8", "surrogateescape"))
        try:
            with open_place(place) as file:
                contents = Contents.read(file)
        except OSError as error:
            # One of many local tars is left out. A store that fails once may fail for all of them.
            if self._single is not None or is_url(self.root):
                raise PackError(f"cannot read {display(place)}: {error.strerror or error}") from error
            yield Quarantined(display(path), f"cannot read: {error.strerror or error}")
            return
        yield from self._images(path, contents)
        for member, reason in contents.duplicates:
            yield Quarantined(source_name(path, member.name), reason)
        if contents.damage:
            yield Quarantined(display(path), contents.damage)
        self.ignored += contents.others

    def _images(self, path: bytes, contents: Contents) -> Iterator[Record | Quarantined]:
        for image in contents.images:
            try:
                if not image.regular:
                    raise ValueError(NOT_REGULAR)
                if b"\0" in image.name:  # it would terminate the name in the plan
                    raise ValueError("bad name: it holds a zero byte")
                label = contents.label(image)
            except ValueError as error:
                yield Quarantined(source_name(path, image.name), str(error))
            else:
                yield Record(path, image.size, None if label is None else label.encode(), image.name, image.offset)
