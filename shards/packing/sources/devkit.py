"""ILSVRC2012's validation labels: the development kit's ground truth and synsets.

The kit (`ILSVRC2012_devkit_t12.tar.gz`) has a line for each validation image in
`data/ILSVRC2012_validation_ground_truth.txt`, its ILSVRC2012_ID, and in `data/meta.mat` the synset (WNID) of each id.
Ids are not in the order of the WNIDs, by which the classes are numbered, as those of the training set are.
"""

from __future__ import annotations

import io
import os
import re
import tarfile
import zlib
from typing import Any

from shards.errors import PackError
from shards.packing.sources.label_files import FromFile
from shards.storage.places import is_url, joined, parent
from shards.storage.store import open_place
from shards.words import counted, display

TRUTH = "ILSVRC2012_validation_ground_truth.txt"
_META = "meta.mat"
_LONGEST = 1 << 26  # bytes of either file; the kit's have 250 kB and 0.2 MB
_WNID = re.compile(r"n[0-9]{8}")
_IMAGE = re.compile(rb"val_0*([0-9]+)\.[^./]+$")


class FromTruth(FromFile):
    """Labels by the number in the name of a validation image: `ILSVRC2012_val_00000001.JPEG` is the first line's."""

    def __init__(self, place: str, root: str, labels: list[bytes], classes: list[bytes]) -> None:
        super().__init__(place, root, {b"%d" % number: label for number, label in enumerate(labels, 1)})
        self._all = classes
        self._last = 0  # highest number of an image

    def classes(self) -> list[bytes]:
        """All synsets, also those of no image, so that the classes are those of the training set."""
        return self._all

    def _name(self, member: bytes, path: bytes) -> bytes | None:
        found = _IMAGE.search(path)
        if found:
            self._last = max(self._last, int(found[1]))
        return found[1] if found and found[1] in self._labels else None

    def check(self, images: int, whole: bool) -> None:
        """See Labeller.check."""
        if images and not self._last:
            raise PackError(
                f"--labels {self._file} is a ground truth by number, but no image is named like"
                f" ILSVRC2012_val_00000001.JPEG; they are named like {self._without.first[0]}"
            )
        lines = len(self._labels)
        # By number: one line too many, or too few, may have moved all others.
        if self._last > lines or (self._last < lines and whole):
            raise PackError(
                f"--labels {self._file} has {counted(lines, 'line')}, but the last image has the number"
                f" {self._last:,}; is it the ground truth of these images?"
            )


def read_truth(place: str, synsets: str | None, root: str) -> FromTruth:
    """Labels from the development kit, packed or unpacked, or from its ground truth.

    Args:
        place: The kit as a tar, its folder, or the text file with a number on each line.
        synsets: A file with a WNID and its number on each line, in place of meta.mat, which needs scipy.
        root: See FromFile.

    Raises:
        PackError: A file is missing, cannot be read, or does not fit the other one.
    """
    try:
        files = _files(place, synsets is None)
        text = files.get(TRUTH)
        if text is None:
            raise PackError(f"--labels {display(place)} holds no {TRUTH}; is it ILSVRC2012's development kit?")
        if synsets is not None:
            with open_place(synsets) as file:
                wnids = _of_text(file.read(_LONGEST), synsets)
        elif _META in files:
            wnids = _of_meta(files[_META], place)
        else:
            raise PackError(
                f"--labels {display(place)} is a ground truth by number; give the numbers' names by --synsets FILE,"
                f" a WNID and its number on each line, or keep {_META} beside it"
            )
    except (tarfile.TarError, EOFError, zlib.error) as error:
        raise PackError(f"--labels {display(place)} is damaged or cut off: {error}") from None
    except OSError as error:
        raise PackError(f"cannot read --labels {display(error.filename or place)}: {error.strerror or error}") from None
    labels = []
    for number, line in enumerate(text.split(b"\n"), 1):
        if not (word := line.strip()):
            continue
        if not word.isdigit() or int(word) not in wnids:
            raise PackError(f"line {number} of {TRUTH} is {display(word[:40])}, not a number of one of the"
                            f" {counted(len(wnids), 'synset')}")  # fmt: skip
        labels.append(wnids[int(word)])
    return FromTruth(place, root, labels, sorted(set(wnids.values())))


def is_truth(place: str) -> bool:
    """Whether `--labels` names a development kit or a ground truth rather than a table."""
    return place.lower().endswith((".txt", ".tar.gz", ".tgz", ".tar")) or (not is_url(place) and os.path.isdir(place))


def _files(place: str, meta: bool) -> dict[str, bytes]:
    """The kit's two files by name, as far as they are there."""
    if place.lower().endswith((".tar.gz", ".tgz", ".tar")):
        found = {}
        with open_place(place) as file, tarfile.open(fileobj=file, mode="r:*") as kit:
            for member in kit:
                name = member.name.rpartition("/")[2]
                if name in (TRUTH, _META) and member.isfile() and member.size <= _LONGEST:
                    opened = kit.extractfile(member)
                    found[name] = opened.read() if opened else b""
        return found
    if place.lower().endswith(".txt"):
        return {TRUTH: _read(place), **_optional(parent(place), meta)}
    folder = joined(place, "data") if os.path.isdir(os.path.join(place, "data")) else place
    return {TRUTH: _read(joined(folder, TRUTH)), **_optional(folder, meta)}


def _read(place: str) -> bytes:
    with open_place(place) as file:
        return file.read(_LONGEST)


def _optional(folder: str, wanted: bool) -> dict[str, bytes]:
    if not wanted:
        return {}
    try:
        return {_META: _read(joined(folder, _META))}
    except FileNotFoundError:
        return {}


def _of_meta(data: bytes, place: str) -> dict[int, bytes]:
    """WNIDs by number from meta.mat: those of synsets without children, which are the classes."""
    try:
        from scipy.io import loadmat
    except ImportError:
        raise PackError(
            f"reading {_META} of {display(place)} needs scipy: pip install 'fastmoco[imagenet]'; or give --synsets"
            " FILE, a WNID and its number on each line"
        ) from None
    try:
        synsets: Any = loadmat(io.BytesIO(data), squeeze_me=True, struct_as_record=True)["synsets"]
        fields = (synsets[name].tolist() for name in ("ILSVRC2012_ID", "WNID", "num_children"))
        wnids = {
            int(number): str(wnid).encode() for number, wnid, children in zip(*fields, strict=True) if not children
        }
    except Exception as error:  # of a damaged file loadmat raises anything
        raise PackError(f"{_META} of {display(place)} is damaged: {type(error).__name__}: {error}") from None
    if not wnids:
        raise PackError(f"{_META} of {display(place)} has no synset without children")
    return wnids


def _of_text(data: bytes, place: str) -> dict[int, bytes]:
    """WNIDs by number from lines with both, in either order (`n02119789 1 kit_fox`), or with the WNID alone."""
    rows: list[tuple[bytes, int | None]] = []
    for count, line in enumerate(filter(str.strip, data.decode("utf-8", "replace").splitlines()), 1):
        words = line.replace(",", " ").split()[:2]
        wnid = next((word for word in words if _WNID.fullmatch(word)), None)
        if wnid is None:
            raise PackError(f"line {count} of --synsets {display(place)} has no WNID, as n01440764 is one")
        rows.append((wnid.encode(), next((int(word) for word in words if word.isdecimal()), None)))
    if all(number is None for _, number in rows):
        if len(rows) > 1 and rows == sorted(rows):
            # A list in another order than the numbers' would give most images a wrong label.
            raise PackError(
                f"--synsets {display(place)} is in the order of the WNIDs, which is not that of ILSVRC2012's numbers;"
                f" write each WNID's number on its line, or give the development kit, which has {_META}"
            )
        rows = [(wnid, number) for number, (wnid, _) in enumerate(rows, 1)]
    wnids = {number: wnid for wnid, number in rows if number is not None}
    if len(wnids) < len(rows) or len(set(wnids.values())) < len(rows):
        raise PackError(f"--synsets {display(place)} has to give each WNID a number of its own")
    return wnids
