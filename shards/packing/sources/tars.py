"""Images in existing tars, with the labels beside them, and in tars of tars."""

from __future__ import annotations

from concurrent.futures import CancelledError
from typing import BinaryIO

from shards.format.contents import Contents
from shards.format.manifest import Quarantined
from shards.format.members import Member
from shards.format.tar_reader import TarInput
from shards.packing.plan import source_name
from shards.packing.sources.archives import Archives, Found
from shards.packing.sources.record import Record
from shards.packing.sources.selection import Selection
from shards.storage.store import open_place


class TarSource(Archives):
    """Images in a tar, or in the tars of a folder; `shards.format.members` decides which members are images.

    A tar that holds tars and no image of its own, as ILSVRC2012's training set does, is a tar of tars: the inner tars
    are the classes, unless they have labels of their own. Tars are not compressed, so an image of an inner tar is a
    range of the outer one's bytes.

    Args:
        place: A tar, or a folder that is searched for tars; a local path or a URL.
        selection: Which tars and which of their members are packed; None: all but hidden ones.
        label_key: Field of `KEY.json` with the label, perhaps within others (`annotation.label`); empty: a `.cls`
            member, or else the field `label`.
    """

    kind = "tars"
    noun = "tar"
    extensions = (b"tar",)

    def __init__(self, place: str, selection: Selection | None = None, label_key: str = "") -> None:
        super().__init__(place, selection)
        self._label_key = label_key

    def _read(self, path: bytes, place: str) -> Found:
        with open_place(place) as file:
            contents = self._contents(file)
        if contents.tars and not contents.images:
            self.ignored -= len(contents.tars)
        yield from self._found(path, contents)
        if contents.tars and not contents.images:
            # All of a remote tar passes through planning: one connection would take half an hour for ImageNet's 138 GB.
            yield from self._each(type(self)._inner, ((path, place, tar) for tar in contents.tars))

    def _inner(self, of: tuple[bytes, str, Member]) -> Found:
        """The images of a tar within a tar."""
        path, place, tar = of
        with open_place(place) as file:
            yield from self._found(path, self._contents(file, tar), tar)

    def _contents(self, file: BinaryIO | TarInput, tar: Member | None = None) -> Contents:
        inside = b"" if tar is None else tar.name + b"/"

        def excludes(name: bytes) -> bool:
            if self.stop is not None and self.stop.is_set():
                raise CancelledError
            return self.selection.excludes(inside + name)

        return Contents.read(
            file,
            self.selection.include_hidden,
            excludes,
            within=None if tar is None else (tar.offset, tar.size),
            label_key=self._label_key,
        )

    def _found(self, path: bytes, contents: Contents, tar: Member | None = None) -> Found:
        """The images of a tar, or of a tar within it, and what is wrong with it."""
        inside, offset = (b"", 0) if tar is None else (tar.name + b"/", tar.offset)
        of_tar: bytes | None = None
        if tar is not None and not contents.has_labels and not self._label_key:
            of_tar = tar.key.rpartition(b"/")[2]
            self._classes.add(of_tar)
        for image in contents.images:
            name = inside + image.name
            try:
                if image.fault:
                    raise ValueError(image.fault)
                if b"\0" in name:  # it would terminate the name in the plan
                    raise ValueError("bad name: it holds a zero byte")
                label = contents.label(image)
            except ValueError as error:
                yield Quarantined(source_name(path, name), str(error))
            else:
                text = of_tar if label is None else label.encode()
                yield Record(path, image.size, text, name, offset + image.offset, contents.url(image))
        for member, reason in contents.duplicates:
            yield Quarantined(source_name(path, inside + member.name), reason)
        for part, is_folder in contents.hidden.items():
            self.selection.hide(part, is_folder)
        if contents.damage:
            yield self._damage(source_name(path, b"" if tar is None else tar.name), contents.damage)
        self.ignored += contents.others
