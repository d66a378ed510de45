"""Contents of one tar written by another program: images, their labels and their other components."""

from __future__ import annotations

import re
from collections.abc import Callable, Set
from typing import BinaryIO

from shards.format.labels import EXTENSIONS, check_length, label_text, url_in
from shards.format.members import ImageFinder, Member, samples_of
from shards.format.tar_reader import DamagedTar, TarInput, TarReader
from shards.words import display

# Extensions are fields of an `.idx` line, which spaces separate; only names are percent-encoded there.
_WORD = re.compile(rb"[^\x00-\x20\x7f]+")


class Contents:
    """All members of a tar. Needs about half a kilobyte of memory per member.

    Attributes:
        images: The images in order; they may be links, and of any format.
        duplicates: Images to leave out because another one has their key, each with the reason.
        damage: Why the tar could not be read to its end, as `cause: detail`; empty if it could.
        others: Number of files that are neither images, duplicates nor labels.
        tars: Those of the others that are tars.
        has_labels: Whether it has labels.
        hidden: See `TarReader.hidden`.
        hidden_text: See `TarReader.hidden_text`.
    """

    def __init__(self) -> None:
        self.images: list[Member] = []
        self.duplicates: list[tuple[Member, str]] = []
        self.damage = ""
        self.others = 0
        self.tars: list[Member] = []
        self.has_labels = False
        self.hidden: dict[bytes, bool] = {}
        self.hidden_text = ""
        self._names: dict[bytes, Member] = {}  # of several with one name, the first
        self._by_key: dict[bytes, list[Member]] = {}
        self._labels: dict[bytes, str | ValueError | None] = {}
        self._urls: dict[bytes, bytes] = {}

    @classmethod
    def read(
        cls,
        file: BinaryIO | TarInput,
        include_hidden: bool = False,
        excludes: Callable[[bytes], bool] = lambda name: False,
        within: tuple[int, int] | None = None,
        label_key: str = "",
    ) -> Contents:
        """Read a tar; of a damaged one, what comes before the damage.

        Labels are read in the same pass: a second one would fetch a remote tar twice.

        Args:
            file: The tar.
            include_hidden: Do not skip hidden files and folders.
            excludes: Whether to leave out a member of this name.
            within: Offset and size of the tar in the file; None: it is the whole file. Offsets of members count from
                the tar's first byte.
            label_key: See `label_text`; with one, `.cls` members are no labels.

        Raises:
            OSError: The tar cannot be read.
        """
        contents = cls()
        extensions = (b"json",) if label_key else EXTENSIONS
        tar = file if isinstance(file, TarInput) else TarInput(file, *(within or ()))
        reader = TarReader(tar, include_hidden)
        finder = ImageFinder()
        members: list[Member] = []
        try:
            for member in reader:
                if excludes(member.name):
                    continue
                members.append(member)
                if member.extension in extensions and member.name not in contents._labels:
                    data = _read_text(reader, member)
                    contents._labels[member.name] = _label(data, member, label_key)
                    if isinstance(data, bytes) and (url := url_in(data, member.extension)):
                        contents._urls[member.name] = url
        except DamagedTar as damage:
            contents.damage = str(damage)
        contents.hidden, contents.hidden_text = reader.hidden, reader.hidden_text()
        for sample in samples_of(members):
            found, duplicates = finder.find(sample)
            contents.images += found
            contents.duplicates += duplicates
        for member in members:
            if contents._names.setdefault(member.name, member) is member:
                for key in {member.key, member.short_key}:
                    contents._by_key.setdefault(key, []).append(member)
        contents.tars = [member for member in members if member.extension.lower() == b"tar" and not member.fault]
        contents.has_labels = any(found is not None for found in contents._labels.values())
        labels = sum(member.is_label for member in members)
        contents.others = reader.passed_over + len(members) - labels - len(contents.images) - len(contents.duplicates)
        return contents

    def label(self, image: Member) -> str | None:
        """The label of an image as printable text; None if it has none.

        Raises:
            ValueError: The label cannot be read; the message is the reason to leave the image out.
        """
        member = self._label_member(image)
        found = None if member is None else self._labels[member.name]
        if isinstance(found, ValueError):
            raise found
        return found

    def url(self, image: Member) -> bytes:
        """The field `url` of `KEY.json`, as img2dataset writes it; empty if there is none."""
        names = (b"%s.json" % key for key in (image.key, image.short_key))
        return next((self._urls[name] for name in names if name in self._urls), b"")

    def _label_member(self, image: Member) -> Member | None:
        """`KEY.cls` or `KEY.json`, anywhere in the tar, or else those of the short key."""
        names = (b"%s.%s" % (key, ext) for key in (image.key, image.short_key) for ext in EXTENSIONS)
        return next((self._names[name] for name in names if name in self._labels), None)

    def components(self, image: Member, keys: Set[bytes]) -> list[tuple[bytes, int, int, bytes]]:
        """An image and the other members of its sample, in the form for `index.idx_text`.

        Args:
            image: The image.
            keys: Keys of all samples of the tar.
        """
        # The image first, as `idx_keys` takes the key from the first name on a line.
        found = {image.extension: image}
        for member in self._by_key[image.key]:
            extension = member.name[len(image.key) + 1 :]
            # `7.b.cls` has the short key of `7.jpg`, but belongs to `7.b.jpg` if that is a sample of its own.
            others = member.key != image.key and member.key in keys
            if not member.fault and not others and _WORD.fullmatch(extension):
                found.setdefault(extension, member)
        label = self._label_member(image)
        if label is not None and not label.fault:
            found.setdefault(label.extension, label)
        return [(extension, member.offset, member.size, member.name) for extension, member in found.items()]

    def by_offset(self) -> dict[int, Member]:
        """All members by the offset of their data."""
        return {member.offset: member for member in self._names.values()}

    def without_image(self) -> list[tuple[bytes, list[bytes]]]:
        """Keys without an image, each with the extensions of its members."""
        known = {key for member in self._names.values() if member.is_image for key in (member.key, member.short_key)}
        alone: dict[bytes, list[bytes]] = {}
        for member in self._names.values():
            if member.key not in known and member.short_key not in known:
                alone.setdefault(member.key, []).append(member.extension)
        return list(alone.items())


def _read_text(reader: TarReader, member: Member) -> bytes | ValueError:
    """The content of a member with a label, or why it cannot be read."""
    try:
        if member.fault:
            raise ValueError(member.fault)
        check_length(member.size, member.extension)
        return reader.read(member)
    except ValueError as error:
        return error


def _label(data: bytes | ValueError, member: Member, key: str) -> str | ValueError | None:
    """The label in a member, or the reason to leave out its image."""
    try:
        if isinstance(data, ValueError):
            raise data
        return label_text(data, member.extension, key)
    except ValueError as error:
        return ValueError(f"label: cannot read {display(member.name)}: {error}")
