"""What lies in a tar made by others, and which members belong together.

Each JPEG is a sample. Its key is its name without the last extension, so keys may hold dots. Its label is found by
that key, or by the shorter one that ends at the first dot (WebDataset's key), anywhere in the tar.
"""

from __future__ import annotations

import io
import json
import re
import tarfile
from collections.abc import Set
from dataclasses import dataclass
from typing import BinaryIO

from shards.format.index import BLOCK
from shards.images.formats import EXTENSIONS

_CHUNK = 1 << 20
_WORD = re.compile(rb"[^\x00-\x20\x7f]+")
_LABELS = (b".cls", b".json")


@dataclass(frozen=True)
class Member:
    """One file of a tar: name, place and length of its data, and whether these lie there in one piece."""

    name: bytes
    offset: int
    size: int
    regular: bool = True

    @property
    def key(self) -> bytes:
        """Name without its last extension."""
        return self.name[: self.name.rindex(b".")]

    @property
    def short_key(self) -> bytes:
        """Name up to the first dot behind its folders."""
        return self.name[: self.name.index(b".", self.name.rfind(b"/") + 1)]

    @property
    def extension(self) -> bytes:
        """Last extension, without the dot."""
        return self.name[self.name.rindex(b".") + 1 :]

    @property
    def image(self) -> bool:
        """Whether the extension is an image's."""
        return self.extension.lower() in EXTENSIONS


def read_members(file: BinaryIO) -> tuple[list[Member], str]:
    """Members of a tar in their order, and what is wrong with the tar; empty where nothing is.

    Folders, hidden files, names without an extension and WebDataset's `__x__` are passed over.

    Raises:
        OSError: The tar cannot be read.
    """
    members: list[Member] = []
    end, size = 0, file.seek(0, io.SEEK_END)
    file.seek(0)
    try:
        with tarfile.open(fileobj=file, mode="r:", encoding="utf-8", errors="surrogateescape") as tar:
            while (info := tar.next()) is not None and tar.offset > end:
                tar.members = []  # pyright: ignore[reportAttributeAccessIssue]  (it keeps them all otherwise)
                end = tar.offset
                name = info.name.encode("utf-8", "surrogateescape")
                if info.offset_data + info.size <= size and _counts(name) and not info.isdir():
                    members.append(Member(name, info.offset_data, info.size, info.isreg() and not info.issparse()))
    except (tarfile.TarError, ValueError, OverflowError) as error:  # a damaged size may be any number
        if not end:
            return [], f"damaged: not a tar ({error})"
    return members, _ending(file, end, size)


def _counts(name: bytes) -> bool:
    base = name[name.rfind(b"/") + 1 :]
    return b"." in base and not base.startswith((b".", b"__"))


def _ending(file: BinaryIO, end: int, size: int) -> str:
    """What is wrong behind the last member; tarfile stops without an error there."""
    if end > size:
        return f"truncated: it ends at byte {size:,}, within a member"
    file.seek(end)
    if file.read(BLOCK).strip(b"\0"):
        return f"damaged: no tar header at byte {end:,}, and nothing behind it was read"
    while chunk := file.read(_CHUNK):
        if chunk.strip(b"\0"):
            return f"damaged: it goes on behind its end mark at byte {end:,}, and nothing of that was read"
    return ""


class Contents:
    """Members of a tar by name and key; the first of a name counts.

    Args:
        members: In their order.

    Attributes:
        images: Members that are images by their names.
        repeated: Images whose names had been there before.
    """

    def __init__(self, members: list[Member]) -> None:
        self._names: dict[bytes, Member] = {}
        self._by_key: dict[bytes, list[Member]] = {}
        self.images: list[Member] = []
        self.repeated: list[Member] = []
        for member in members:
            if self._names.setdefault(member.name, member) is not member:
                self.repeated += [member] if member.image else []
                continue
            self.images += [member] if member.image else []
            for key in {member.key, member.short_key}:
                self._by_key.setdefault(key, []).append(member)

    def label(self, image: Member) -> Member | None:
        """The member that holds an image's label."""
        names = (key + suffix for key in (image.key, image.short_key) for suffix in _LABELS)
        return next((self._names[name] for name in names if name in self._names), None)

    def components(self, image: Member, keys: Set[bytes]) -> list[tuple[bytes, int, int, bytes]]:
        """An image and what belongs to it, as `index.idx_text` takes it.

        Args:
            image: The image.
            keys: Those of all samples of the tar.
        """
        found = {image.extension: image}
        for member in self._by_key[image.key]:
            extension = member.name[len(image.key) + 1 :]
            others = member.key != image.key and member.key in keys
            if member.regular and not others and _WORD.fullmatch(extension):
                found.setdefault(extension, member)
        label = self.label(image)
        if label is not None and label.regular:
            found.setdefault(label.extension, label)
        return [(extension, member.offset, member.size, member.name) for extension, member in found.items()]

    def without_image(self) -> list[tuple[bytes, list[bytes]]]:
        """Keys to which no image belongs, each with its members' extensions."""
        known = {key for image in self.images for key in (image.key, image.short_key)}
        alone: dict[bytes, list[bytes]] = {}
        for member in self._names.values():
            if member.key not in known and member.short_key not in known:
                alone.setdefault(member.key, []).append(member.extension)
        return list(alone.items())


def json_label(data: bytes) -> str | None:
    """The value of `label` in a JSON object, a number or a text; None where there is none.

    Raises:
        ValueError: It is no JSON, or its label is neither number nor text.
    """
    try:
        values = json.loads(data)
    except RecursionError as error:
        raise ValueError(str(error)) from None
    value = values.get("label") if isinstance(values, dict) else None
    if isinstance(value, bool) or not isinstance(value, str | int | None):
        raise ValueError("its label is neither number nor text")
    return None if value is None else str(value)
