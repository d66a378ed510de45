"""Making the plan: the source is read once, hashed, and sorted on disk into the global order."""

from __future__ import annotations

import hashlib
import shutil
import struct
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import groupby, islice
from pathlib import Path

from shards.errors import PackError
from shards.format.labels import number_labels, number_names, one_form
from shards.format.layout import MAX_CLASSES, MAX_SHARDS
from shards.format.manifest import Quarantined
from shards.packing.options import PackOptions
from shards.packing.plan import OFFSETS, ORDER, PROBLEMS, URL, Entry, Plan
from shards.packing.sorting import BucketSort
from shards.packing.sources import Source
from shards.words import counted, display

_RANK = 8  # bytes of the keyed hash that is the sort key
_TAIL = struct.Struct("<iqq")  # number of the class in order of appearance, or -1; size; offset
_HASHES = 1 << 256
_LEADING_ZEROS = int.from_bytes(hashlib.sha256(b"labels are numbers").digest(), "big")


def make_plan(options: PackOptions, source: Source, folder: Path, known: Sequence[str] = ()) -> Plan:
    """Plan of a packing; writes its order and the source's problems to files in `folder`.

    Images are sorted by a keyed hash of the path, so the order is a pure function of seed and names. Memory grows with
    the number of classes, not with that of images.

    Args:
        options: What to pack and how.
        source: Where the images come from.
        folder: Local folder, emptied first. Its disk needs room for the names of all images, twice.
        known: Classes of the set that the images are appended to, which keep their labels; others get the next ones.

    Raises:
        PackError: The source cannot be read, holds no images, has too many classes, or needs more shards than keys
            can number.
        OSError: The folder cannot be written.
    """
    shutil.rmtree(folder, ignore_errors=True)
    for name in ("order", "problems"):
        (folder / name).mkdir(parents=True)
    survey = _Survey(options, source, folder)
    survey.read()
    names, label_of = survey.labels(1 if known else source.least_classes)
    classes = list(dict.fromkeys([*known, *map(display, names)]))
    if len(classes) > MAX_CLASSES:
        raise PackError(f"the set would have {len(classes):,} classes; it may have {MAX_CLASSES:,}")
    if known:
        place = {name: label for label, name in enumerate(classes)}
        label_of = [place[display(names[label])] if label >= 0 else -1 for label in label_of]
    images, input_bytes, shards = survey.write_order(folder, label_of)
    survey.write_problems(folder)
    return Plan(
        options=options.deciding(),
        source={"images": survey.images, "bytes": survey.bytes, "hash": f"{survey.hash:064x}"},
        classes=tuple(classes),
        images=images,
        input_bytes=input_bytes,
        shards=shards,
        problems=sum(survey.causes.values()),
    )


class _Survey:
    """What is known of a source while it is read."""

    def __init__(self, options: PackOptions, source: Source, folder: Path) -> None:
        self._options = options
        self._source = source
        self._key = options.seed.to_bytes(8, "little")
        self._order = BucketSort(folder / "order")
        self._problems = BucketSort(folder / "problems")
        self._classes: dict[bytes, int] = {}
        self._met: list[bytes] = []
        self._named = False  # whether a table gives names
        self.causes: Counter[str] = Counter()
        self._first_problem = ""
        self.images = self.bytes = self.hash = 0

    def read(self) -> None:
        """Read all records. The source's hash is a sum, so that it does not depend on their order."""
        # Local names: the loop runs once for each image, up to a billion times in one process.
        key, order, classes = self._key, self._order, self._classes
        images = size_of_all = total = 0
        named = False
        for found in self._source.records():
            if isinstance(found, Quarantined):
                self._report(found)
                continue
            path, size, label, member, offset, url, called = found
            images += 1
            size_of_all += max(size, 0)
            text = b"%s\0%s\0%d\0%s\0" % (path, member, size, b"" if label is None else label)
            if url:
                text += url + b"\0"
            if called and not member:  # of a row's image the member has it
                text += b"name\0%s\0" % called
            total += int.from_bytes(hashlib.sha256(text).digest(), "big")
            number = -1 if label is None else classes.setdefault(label, len(classes))
            if number >= MAX_CLASSES:
                raise PackError(f"more than {MAX_CLASSES:,} different labels; is --label-column a class?")
            name = b"%s\0%s" % (path, member) if member else path
            rank = hashlib.blake2b(name, digest_size=_RANK, key=key).digest()
            if called and not member:
                member, named = called, True
            elif url or URL in member:
                member += URL + url
            order.add(b"%s%s\0%s\0%s" % (rank, path, member, _TAIL.pack(number, size, offset)))
        self._named = named
        if self._source.fingerprint:
            total += int.from_bytes(hashlib.sha256(self._source.fingerprint).digest(), "big")
        self.images, self.bytes, self.hash = images, size_of_all, total % _HASHES
        if not images:
            raise PackError(self._nothing_found())
        size, packed = self._options.shard_size, min(images, self._options.limit or images)
        if -(-packed // size) > MAX_SHARDS:
            need = -(-packed // MAX_SHARDS)
            raise PackError(f"--shard-size {size} makes {-(-packed // size):,} shards; use at least {need}")

    def _report(self, problem: Quarantined) -> None:
        self._first_problem = self._first_problem or f"{problem.source}: {problem.reason}"
        self.causes[problem.reason.partition(":")[0]] += 1
        name = problem.source.encode()
        rank = hashlib.blake2b(name, digest_size=_RANK, key=self._key).digest()
        self._problems.add(rank + name + b"\0" + problem.line().encode())

    def labels(self, least: int) -> tuple[list[bytes], list[int]]:
        """Class names by label, and the label of each class in order of appearance; none of fewer than `least`."""
        met = list(self._classes)
        self._met = [*met, b""]  # so that -1 stands for no class
        # Classes without an image shift the numbers of the others, so they are part of what the source is.
        for name in sorted(set(self._source.classes()) - set(met)):
            self.hash = (self.hash + int.from_bytes(hashlib.sha256(b"class\0" + name).digest(), "big")) % _HASHES
            met.append(name)
        if len(met) > MAX_CLASSES:
            raise PackError(f"{len(met):,} classes, more than {MAX_CLASSES:,}")
        if len(set(map(one_form, met))) < least:
            return [], [-1] * len(met)
        if names := self._source.class_names:
            return [name.encode() for name in names], [int(number) for number in met]
        classes, labels = (number_labels if self._source.numbered else number_names)(met)
        if any(name != classes[label] for name, label in zip(met, labels, strict=True)):
            # 001 and 1.0 are 1. Earlier versions numbered such labels in sorted order. The hash makes theirs another
            # source, so that no packing of theirs is resumed with different labels.
            self.hash = (self.hash + _LEADING_ZEROS) % _HASHES
        self._remark_forms(met)
        return classes, labels

    def _remark_forms(self, met: list[bytes]) -> None:
        forms = Counter(one_form(name) for name in met if not name.isascii())
        several = [display(name) for name, count in forms.items() if count > 1]
        if several:
            names = ", ".join(several[:5]) + (", ..." if len(several) > 5 else "")
            verb = "is" if len(several) == 1 else "are"
            self._source.selection.remarks.append(
                f"{counted(len(several), 'class')} {verb} spelt in several Unicode forms (NFC, NFD): {names}"
            )

    def write_order(self, folder: Path, label_of: list[int]) -> tuple[int, int, int]:
        """Write ORDER and OFFSETS; returns the numbers of images, their bytes, and shards."""
        size, images, input_bytes = self._options.shard_size, 0, 0
        offsets = array("Q", (0,))
        entries = islice(self._unique(), self._options.limit)
        with open(folder / ORDER, "wb") as file:
            while block := list(islice(entries, size)):
                for name, (number, length, offset) in block:
                    label = label_of[number] if number >= 0 else -1
                    file.write(b"%d\0%d\0%d\0%s" % (label, length, offset, name))
                    input_bytes += max(length, 0)
                images += len(block)
                offsets.append(file.tell())
        (folder / OFFSETS).write_bytes(struct.pack(f"<{len(offsets)}Q", *offsets))
        shutil.rmtree(folder / "order")  # as large as the plan, on the same disk
        input_bytes = input_bytes or self._source.size * images // self.images
        return images, input_bytes, len(offsets) - 1

    def _unique(self) -> Iterator[tuple[bytes, tuple[int, int, int]]]:
        """Names (path and member, NUL-terminated) in order with their numbers; of duplicates the first."""
        width = -_TAIL.size
        # Duplicates have equal hashes, so they are adjacent after sorting; no set of all names is needed.
        key = _path if self._named else lambda record: record[_RANK:width]
        for _, same in groupby(self._order.records(), key=key):
            found = [(record[_RANK:width], _TAIL.unpack(record[width:])) for record in same]
            yield found[0] if len(found) == 1 else self._first(found)

    def _first(self, found: list[tuple[bytes, tuple[int, int, int]]]) -> tuple[bytes, tuple[int, int, int]]:
        """The record to pack among several of one image; does not depend on their order in the source."""
        met = self._met
        first, *_ = found = sorted(found, key=lambda each: (each[1][2], each[1][1], met[each[1][0]], each[0]))
        reason = f"duplicate: listed {len(found):,} times, packed once"
        labels = [display(label) or "none" for label in sorted({met[number] for _, (number, *_) in found})]
        if len(labels) > 1:
            reason += f", with label {display(met[first[1][0]]) or 'none'} of {', '.join(labels)}"
        names = sorted({_entry(name, tail).source for name, tail in found})
        if len(names) > 1:
            reason += f", as {_entry(*first).source} of {', '.join(names)}"
        self._report(Quarantined(_entry(*first).source, reason))
        return first

    def write_problems(self, folder: Path) -> None:
        """Write PROBLEMS, ordered by a keyed hash like the images."""
        with open(folder / PROBLEMS, "wb") as file:
            for record in self._problems.records():
                file.write(record[_RANK:].partition(b"\0")[2])
        shutil.rmtree(folder / "problems")

    def _nothing_found(self) -> str:
        source = self._source
        text = f"no images found in --src {display(str(self._options.src))}"
        if self.causes:
            causes = ", ".join(f"{count:,} x {cause}" for cause, count in self.causes.most_common(5))
            text += f"; {causes}, such as {self._first_problem}"
        if source.ignored:
            of_folder = ", none of them an image by name or first bytes" if source.kind == "folder" else ""
            text += f"; {counted(source.ignored, 'file')} of other kinds{of_folder}"
        return "; ".join([text, *source.selection.notes()])


def _path(record: bytes) -> bytes:
    """The path in a record of the sort: rows of a table with one path are one image, whatever they call it."""
    return record[_RANK : record.index(b"\0", _RANK)]


def _entry(name: bytes, tail: tuple[int, int, int]) -> Entry:
    path, member, _ = name.split(b"\0")
    return Entry(path, member=member, offset=tail[2])
