"""Labels in place of a source's own: from the images' paths (`--label-from`) or from a file (`--labels`)."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator

from shards.errors import PackError
from shards.format.manifest import Quarantined
from shards.packing.sources.record import Record, Source
from shards.words import counted, display

_ARCHIVE = re.compile(rb"\.(tar|tar\.gz|tgz|zip)$", re.IGNORECASE)
_SHOWN = 3  # names in a note
VOCABULARY = "auto, none, folder, folder:N, parent, archive, json:KEY, re:PATTERN"


class FirstFew:
    """The number of names that something is said of, and the first of them as text."""

    def __init__(self) -> None:
        self.count = 0
        self.first: list[str] = []

    def add(self, name: bytes) -> None:
        """Count a name."""
        self.count += 1
        if len(self.first) < _SHOWN:
            self.first.append(display(name))

    def __str__(self) -> str:
        return ", ".join(self.first) + (", ..." if self.count > len(self.first) else "")


class Labeller(ABC):
    """Gives images their labels.

    Attributes:
        least_classes: See Source.
        numbered: See Source.
    """

    least_classes = 1
    numbered = True

    @abstractmethod
    def label(self, record: Record) -> bytes | None:
        """Label of an image; None if it has none."""

    def classes(self) -> Collection[bytes]:
        """See Source.classes."""
        return ()

    def check(self, images: int, whole: bool) -> None:  # noqa: B027 (a path is never wrong)
        """Raise PackError if the labels do not fit the images; `whole`: all images of the source have been seen."""

    def notes(self) -> Iterator[str]:
        """Lines about images without a label."""
        yield from ()


class Labelled(Source):
    """A source with other labels than its own."""

    def __init__(self, source: Source, labeller: Labeller) -> None:
        self.kind, self.root, self.selection = source.kind, source.root, source.selection
        self.least_classes, self.numbered = labeller.least_classes, labeller.numbered
        self._source, self._labeller = source, labeller

    def records(self) -> Iterator[Record | Quarantined]:
        """The source's records with other labels."""
        label, images = self._labeller.label, 0
        for found in self._source.records():
            if isinstance(found, Record):
                images += 1
                found = found._replace(label=label(found))
            yield found
        self.ignored, self.size, self.fingerprint = self._source.ignored, self._source.size, self._source.fingerprint
        self._labeller.check(images, self._source.whole and not self.selection.excluded.total())

    @property
    def base(self) -> Source:
        """See Source.base."""
        return self._source

    def classes(self) -> Collection[bytes]:
        """See Source.classes."""
        return self._labeller.classes()

    def notes(self) -> Iterator[str]:
        """See Source.notes."""
        yield from self._source.notes()
        yield from self._labeller.notes()


class NoLabels(Labeller):
    """`--label-from none`."""

    def label(self, record: Record) -> None:
        """No label."""


class FromPath(Labeller):
    """Labels from the path of each image.

    Args:
        rule: `folder:N`, the Nth folder from the top; `parent`, the folder that holds the image; `archive`, the name of
            the tar or zip that holds it, without its extension; or `re:PATTERN`, a regular expression that is searched
            for in the whole path, with one group. Folders are those within the innermost archive.
        asked: Whether the user asked for it. If not, the only class of all images is none.

    Raises:
        PackError: The rule is not one of these.
    """

    def __init__(self, rule: str, asked: bool = True) -> None:
        self._rule = rule
        self._asked = asked
        self.least_classes = 1 if asked else 2
        self.numbered = rule.startswith("re:")  # folders are never numbers, here as in a folder of images
        self._without = FirstFew()
        self._tops: dict[bytes, None] = {}  # the first two folders at the top
        name, _, argument = rule.partition(":")
        self._depth, self._pattern = 0, None
        if name == "folder":
            self._depth = int(argument or 1) if (argument or "1").isdecimal() else 0
        elif name == "re":
            self._pattern = _pattern(argument)
        known = self._depth > 0 if name == "folder" else self._pattern or rule in ("parent", "archive")
        if not known:
            raise PackError(f"unknown --label-from {rule!r}; known: {VOCABULARY}")

    def label(self, record: Record) -> bytes | None:
        """Label from the path of an image."""
        found = self._found(record)
        if not found:
            self._without.add(record.path + b"/" + record.member if record.member else record.path)
        return found or None

    def _found(self, record: Record) -> bytes | None:
        if self._pattern is not None:
            path = record.path + b"/" + record.member if record.member else record.path
            match = self._pattern.search(path.decode("utf-8", "surrogateescape"))
            return match[1].encode("utf-8", "surrogateescape") if match and match[1] else None
        archive, folders = _split(record)
        if self._rule == "archive":
            return archive
        if len(self._tops) < 2 and folders:
            self._tops[folders[0]] = None
        if self._rule == "parent":
            return folders[-1] if folders else None
        return folders[self._depth - 1] if len(folders) >= self._depth else None

    def check(self, images: int, whole: bool) -> None:
        """See Labeller.check."""
        if self._asked and images and self._without.count == images:
            first = self._without.first[0]
            raise PackError(f"--label-from {self._rule} gives no image a label; their paths are like {first}")

    def notes(self) -> Iterator[str]:
        """See Labeller.notes."""
        if self._asked and self._without.count:
            without = self._without
            yield f"--label-from {self._rule} gives no label to {counted(without.count, 'image')}: {without}"
        if not self._asked and not self._without.count and len(self._tops) == 1:
            (top,) = self._tops
            yield f"no labels: all images are in one folder, {display(top)}; for those in it: --label-from folder:2"


def _pattern(text: str) -> re.Pattern[str]:
    try:
        found = re.compile(text)
    except re.error as error:
        raise PackError(f"--label-from re:{text} is no regular expression: {error}") from None
    if found.groups != 1:
        raise PackError(
            f"--label-from re:{text} has {counted(found.groups, 'group')}; the label is one, as in '^([a-z]+)_'"
        )
    return found


def _split(record: Record) -> tuple[bytes | None, list[bytes]]:
    """Name of the innermost archive without its extension, and the folders within it, from the top."""
    if not record.member:
        return None, _folders(record.path)
    archive, *folders = record.path.rpartition(b"/")[2], *_folders(record.member)
    for place, name in enumerate(folders):
        if _ARCHIVE.search(name):  # a tar in a tar
            archive, folders = name, folders[place + 1 :]
            break
    return _ARCHIVE.sub(b"", archive), folders


def _folders(path: bytes) -> list[bytes]:
    return [name for name in path.split(b"/")[:-1] if name not in (b"", b".")]
