"""Images that lie in tars, with their labels beside them: to be packed again."""

from __future__ import annotations

import tarfile
from collections.abc import Iterable, Iterator
from typing import BinaryIO

from shards.errors import PackError
from shards.format.index import BLOCK
from shards.format.manifest import Quarantined
from shards.format.members import json_label
from shards.images.formats import EXTENSIONS
from shards.packing.sources.folder import NamedFiles
from shards.packing.sources.record import Record, Source, label_name
from shards.storage.places import is_url, joined, parent
from shards.storage.store import open_place
from shards.words import display

_LABELS = (b"cls", b"json")
_LONGEST_LABEL = 4096  # bytes
_LONGEST_JSON = 1 << 24  # bytes; what is longer is cut, and so no JSON


class TarSource(Source):
    """Images in a tar, or in the tars of a folder, in WebDataset's layout or in any other.

    The members of a sample lie one after another and share what comes before the first dot of their names. Its image
    is the first member with an image's extension after that; where there is none, as in `a.b.jpg`, each image
    is a sample of its own. `KEY.cls` holds the label of `KEY.jpg`, or else the `label` in `KEY.json` is it.

    Args:
        place: A tar, or a folder that is searched for tars; a local path or a URL.
    """

    kind = "tars"

    def __init__(self, place: str) -> None:
        single = place.lower().endswith(".tar")
        self.root = parent(place) if single else place
        self._single = place.rpartition("/")[2] if single else None

    def records(self) -> Iterator[Record | Quarantined]:
        """The images of all tars; one tar's headers are read at a time."""
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
        name = display(path)
        place = joined(self.root, path.decode("utf-8", "surrogateescape"))
        try:
            with open_place(place) as file:
                try:
                    with tarfile.open(fileobj=file, mode="r:", encoding="utf-8", errors="surrogateescape") as tar:
                        for sample in _samples(_members(tar)):
                            yield from self._sample(path, tar, sample)
                        fault = _fault_at_end(file, tar.offset)
                except tarfile.TarError as error:
                    fault = f"damaged: {error}"
        except OSError as error:
            if self._single is not None or is_url(self.root):
                raise PackError(f"cannot read {display(place)}: {error.strerror or error}") from error
            fault = f"cannot read: {error.strerror or error}"
        if fault:
            yield Quarantined(name, fault)

    def _sample(
        self, path: bytes, tar: tarfile.TarFile, members: list[tuple[bytes, tarfile.TarInfo]]
    ) -> Iterator[Record | Quarantined]:
        """The images among the members of one sample, with their labels."""
        labels = {name: member for name, member in members if _extension(name) in _LABELS}
        images = [(name, member) for name, member in members if _extension(name) in EXTENSIONS]
        plain = [(name, member) for name, member in images if _key(name) == _stem(name)]
        taken = plain[:1] or images
        self.ignored += len(members) - len(labels) - len(taken)
        for name, member in taken:
            if not member.isreg() or member.issparse():
                yield Quarantined(f"{display(path)}: {display(name)}", "not a regular file")
                continue
            if b"\0" in name:
                yield Quarantined(f"{display(path)}: {display(name)}", "bad name: it holds a zero byte")
                continue
            try:
                label = _label(tar, labels, _stem(name))
            except ValueError as error:
                yield Quarantined(f"{display(path)}: {display(name)}", f"label: cannot read its JSON member: {error}")
                continue
            yield Record(path, member.size, label_name(label), name, member.offset_data)


def _members(tar: tarfile.TarFile) -> Iterator[tuple[bytes, tarfile.TarInfo]]:
    """Name and header of each member but folders; the tar's own list of them is kept short."""
    while (member := tar.next()) is not None:
        tar.members = []  # type: ignore[attr-defined]  # tarfile would keep every header
        if not member.isdir():
            yield member.name.encode("utf-8", "surrogateescape"), member


def _samples(
    members: Iterable[tuple[bytes, tarfile.TarInfo]],
) -> Iterator[list[tuple[bytes, tarfile.TarInfo]]]:
    """Members that follow one another with the same key."""
    sample: list[tuple[bytes, tarfile.TarInfo]] = []
    for name, member in members:
        if sample and _key(name) != _key(sample[0][0]):
            yield sample
            sample = []
        sample.append((name, member))
    if sample:
        yield sample


def _key(name: bytes) -> bytes:
    """Name up to the first dot after the last slash."""
    folder, slash, base = name.rpartition(b"/")
    return folder + slash + base.partition(b".")[0]


def _stem(name: bytes) -> bytes:
    """Name without its last extension."""
    return name.rpartition(b".")[0]


def _extension(name: bytes) -> bytes:
    """What follows the last dot, in lower case; empty where there is none."""
    return name.rpartition(b"/")[2].rpartition(b".")[2].lower() if b"." in name else b""


def _label(tar: tarfile.TarFile, members: dict[bytes, tarfile.TarInfo], key: bytes) -> bytes:
    """The text of `KEY.cls`, or the label in `KEY.json`; empty where there is none. ValueError: the JSON is damaged."""
    if (member := members.get(key + b".cls")) is not None:
        return _bytes_of(tar, member, _LONGEST_LABEL).strip()
    if (member := members.get(key + b".json")) is not None and (data := _bytes_of(tar, member, _LONGEST_JSON)):
        return (json_label(data) or "").encode("utf-8", "surrogatepass").strip()
    return b""


def _bytes_of(tar: tarfile.TarFile, member: tarfile.TarInfo, most: int) -> bytes:
    file = tar.extractfile(member) if member.isreg() else None
    return b"" if file is None else file.read(most)


def _fault_at_end(file: BinaryIO, offset: int) -> str:
    """Why the headers ended at `offset`, where it is not the end of the tar: tarfile stops there silently."""
    size = file.seek(0, 2)
    if offset > size:
        return f"truncated: the last member ends at byte {offset:,}, the tar at {size:,}"
    file.seek(offset)
    if file.read(BLOCK).strip(b"\0"):
        return f"damaged: no header at byte {offset:,}; what follows is left out"
    return ""
