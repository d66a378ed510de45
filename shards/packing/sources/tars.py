"""Images in existing tars, with the labels beside them."""

from __future__ import annotations

from collections.abc import Iterator

from shards.errors import PackError
from shards.format.contents import Contents
from shards.format.manifest import Quarantined
from shards.packing.plan import source_name
from shards.packing.sources.folder import NamedFiles
from shards.packing.sources.record import Record, Source
from shards.packing.sources.selection import Selection
from shards.storage.places import is_url, joined, parent
from shards.storage.store import open_place
from shards.words import display


class TarSource(Source):
    """Images in a tar, or in the tars of a folder; `shards.format.members` decides which members are images.

    Args:
        place: A tar, or a folder that is searched for tars; a local path or a URL.
        selection: Which tars and which of their members are packed; None: all but hidden ones.
    """

    kind = "tars"

    def __init__(self, place: str, selection: Selection | None = None) -> None:
        self.selection = selection or Selection()
        self._damaged: list[str] = []  # tars of which images may be missing, with the cause
        single = place.lower().endswith(".tar")
        self.root = parent(place) if single else place
        self._single = place.rpartition("/")[2] if single else None

    def records(self) -> Iterator[Record | Quarantined]:
        """The images of all tars. Memory: the headers of one tar."""
        if self._single is not None:
            yield from self._tar(self._single.encode("utf-8", "surrogateescape"))
            return
        tars = NamedFiles(self.root, b"tar", selection=self.selection)
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
                contents = Contents.read(file, self.selection.include_hidden, self.selection.excludes)
        except OSError as error:
            # One of many local tars is left out. A store that fails once may fail for all of them.
            if self._single is not None or is_url(self.root):
                raise PackError(f"cannot read {display(place)}: {error.strerror or error}") from error
            yield Quarantined(display(path), f"cannot read: {error.strerror or error}")
            return
        yield from self._images(path, contents)
        for member, reason in contents.duplicates:
            yield Quarantined(source_name(path, member.name), reason)
        for part, is_folder in contents.hidden.items():
            self.selection.hide(part, is_folder)
        if contents.damage:
            self._damaged.append(f"{display(path)}: {contents.damage}")
            yield Quarantined(display(path), contents.damage)
        self.ignored += contents.others

    def notes(self) -> Iterator[str]:
        """See Source.notes."""
        yield from super().notes()
        if self._damaged:
            tars = (
                "1 tar is damaged; its"
                if len(self._damaged) == 1
                else f"{len(self._damaged):,} tars are damaged; their"
            )
            more = f"; and {len(self._damaged) - 3:,} more" if len(self._damaged) > 3 else ""
            yield f"{tars} images behind the damage are missing: {'; '.join(self._damaged[:3])}{more}"

    def _images(self, path: bytes, contents: Contents) -> Iterator[Record | Quarantined]:
        for image in contents.images:
            try:
                if image.fault:
                    raise ValueError(image.fault)
                if b"\0" in image.name:  # it would terminate the name in the plan
                    raise ValueError("bad name: it holds a zero byte")
                label = contents.label(image)
            except ValueError as error:
                yield Quarantined(source_name(path, image.name), str(error))
            else:
                yield Record(path, image.size, None if label is None else label.encode(), image.name, image.offset)
