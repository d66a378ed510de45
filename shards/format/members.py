"""Members of tars: which of them are images, and under which keys. The rules are in docs/format.md."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from operator import attrgetter

from shards.format import labels
from shards.images.formats import EXTENSIONS
from shards.words import display

_LINK = "link: not a regular file of the tar"
_SPARSE = "sparse: the tar stores it in pieces; write the tar without --sparse"
_JPEG = frozenset((b"jpg", b"jpeg", b"jpe", b"jfif", b"jif"))


@dataclass(frozen=True, slots=True)
class Member:
    """One file of a tar.

    Attributes:
        name: Its path in the tar.
        offset: Offset of its data.
        size: Size of its data.
        fault: Why the data are not the bytes at `offset`: it is a link, or sparse; empty if they are.
    """

    name: bytes
    offset: int
    size: int
    fault: str = ""

    @property
    def key(self) -> bytes:
        """Name without its last extension."""
        return self.name[: self.name.rindex(b".")]

    @property
    def short_key(self) -> bytes:
        """Name up to the first dot after its folders: WebDataset's key. A leading dot is part of it."""
        return self.name[: self.name.index(b".", self.name.rfind(b"/") + 2)]

    @property
    def extension(self) -> bytes:
        """Last extension, without the dot, case kept."""
        return self.name[self.name.rindex(b".") + 1 :]

    @property
    def is_image(self) -> bool:
        """Whether the extension is an image's."""
        return self.extension.lower() in EXTENSIONS

    @property
    def is_jpeg(self) -> bool:
        """Whether the extension is a JPEG's."""
        return self.extension.lower() in _JPEG

    @property
    def is_label(self) -> bool:
        """Whether the member may hold a label."""
        return self.extension in labels.EXTENSIONS


def samples_of(members: Iterable[Member]) -> Iterator[Iterator[Member]]:
    """Runs of consecutive members with the same short key; each has to be consumed before the next is requested."""
    for _, sample in groupby(members, key=attrgetter("short_key")):
        yield sample


class ImageFinder:
    """Picks the images of one tar, sample by sample, so that a tar can be read as a stream.

    A sample's image is `KEY.EXTENSION`: the first one with a JPEG's extension, or else the first image. If there is
    none, as with `KEY.left.jpg` and `KEY.right.jpg`, each image is a sample. Any other image (a mask, a depth map) is
    part of the sample whose key it shares, even if it comes later in the tar.
    """

    def __init__(self) -> None:
        self._names: dict[bytes, bytes] = {}  # names of the images found so far, by key

    def find(self, sample: Iterable[Member]) -> tuple[list[Member], list[tuple[Member, str]]]:
        """The images among the members of the next sample, and the duplicates, each with the reason to leave it out.

        A duplicate is a second member with an image's name, or another JPEG with its key.
        """
        images = [member for member in sample if member.is_image]
        whole = [member for member in images if member.key == member.short_key]
        chosen = ([member for member in whole if member.is_jpeg] or whole)[:1] or images
        found: list[Member] = []
        duplicates: list[tuple[Member, str]] = []
        for member in images:
            other = self._names.get(member.key)
            if other == member.name:
                duplicates.append((member, "duplicate: an earlier member has the same name"))
            elif other is not None:
                if member.is_jpeg:
                    duplicates.append((member, f"duplicate: {display(other)} has the same key"))
            elif member.short_key not in self._names and any(member is image for image in chosen):
                self._names[member.key] = member.name
                found.append(member)
        return found, duplicates
