"""A folder of images as a sorted list of files, with everything that was passed over and why."""

from __future__ import annotations

import errno
import os
import stat
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from shards.errors import PackError
from shards.files import display
from shards.manifest import Quarantined

# Files that are taken for images by their name; with formats that cannot be decoded, so that these are reported.
EXTENSIONS = frozenset(
    b"jpg jpeg jpe jfif jif mpo png apng webp gif bmp dib tif tiff avif avifs jp2 j2k jpc jpf jpx j2c "
    b"ppm pgm pbm pnm pfm tga qoi ico heic heif hif jxl".split()
)
SPLITS = frozenset(("train", "training", "val", "valid", "validation", "test", "testing"))
_SNIFF = 16


@dataclass(frozen=True)
class ImageFile:
    """One file: path relative to the source folder, as the file system has it, and size in bytes."""

    path: bytes
    size: int


@dataclass
class Source:
    """What lies in a source folder.

    Attributes:
        root: The folder.
        files: Images by name or by first bytes, sorted by path.
        problems: Links, folders and files that cannot be read, sorted by path.
        ignored: Number of other files.
    """

    root: Path
    files: list[ImageFile] = field(default_factory=list)
    problems: list[Quarantined] = field(default_factory=list)
    ignored: int = 0

    def classes(self) -> list[bytes]:
        """Top folders that hold images, sorted, where there are at least two; otherwise none."""
        tops = {file.path.split(b"/", 1)[0] for file in self.files if b"/" in file.path}
        return sorted(tops) if len(tops) > 1 else []


def scan(root: Path, skip: Path | None = None) -> Source:
    """List the images below `root`, links followed.

    Args:
        root: Folder to search.
        skip: Folder to leave out (the output, where it lies in the source).

    Raises:
        PackError: `root` is no folder that can be read, or holds no images.
    """
    source = Source(root)
    try:
        top = os.stat(root)
        os.scandir(root).close()
    except OSError as error:
        raise PackError(f"cannot read --src {display(str(root))}: {error.strerror}") from None
    skipped = _identity(skip.stat()) if skip is not None and skip.exists() else None
    _scan_folder(source, skipped, _identity(top))
    source.files.sort(key=lambda file: file.path)
    source.problems.sort(key=lambda entry: entry.source)
    if not source.files:
        raise PackError(_nothing_found(source))
    return source


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def _scan_folder(source: Source, skip: tuple[int, int] | None, top: tuple[int, int]) -> None:
    """Walk depth first; a folder's ancestors go with it, so that a link to one of them is seen as a loop."""
    root = os.fsencode(source.root)
    pending: list[tuple[bytes, frozenset[tuple[int, int]]]] = [(b"", frozenset((top,)))]
    while pending:
        folder, ancestors = pending.pop()
        try:
            with os.scandir(os.path.join(root, folder)) as entries:
                for entry in entries:
                    path = os.path.join(folder, entry.name)
                    below = _scan_entry(source, entry, path, ancestors)
                    if below is not None and below != skip:
                        pending.append((path, ancestors | {below}))
        except OSError as error:
            _report(source, folder, f"cannot read folder: {error.strerror}")


def _scan_entry(
    source: Source, entry: os.DirEntry[bytes], path: bytes, ancestors: frozenset[tuple[int, int]]
) -> tuple[int, int] | None:
    """Take a file; identity of a folder to be searched, or None."""
    try:
        status = entry.stat()
    except OSError as error:
        if error.errno == errno.ELOOP:
            _report(source, path, "link loop: leads back to itself")
        elif error.errno == errno.ENOENT and entry.is_symlink():
            _report(source, path, f"broken link: leads to {display(os.readlink(entry.path))}")
        else:
            _report(source, path, f"cannot read: {error.strerror}")
        return None
    if stat.S_ISDIR(status.st_mode):
        if _identity(status) in ancestors:
            _report(source, path, "link loop: leads back to a folder above it")
            return None
        return _identity(status)
    if not stat.S_ISREG(status.st_mode):
        if _named_image(entry.name):
            _report(source, path, "not a regular file")
        else:
            source.ignored += 1
    elif _named_image(entry.name) or (status.st_size >= _SNIFF and _looks_like_image(entry.path)):
        source.files.append(ImageFile(path, status.st_size))
    else:
        source.ignored += 1
    return None


def _report(source: Source, path: bytes, reason: str) -> None:
    source.problems.append(Quarantined(display(path), reason))


def _named_image(name: bytes) -> bool:
    return name.rpartition(b".")[2].lower() in EXTENSIONS


def _looks_like_image(path: bytes) -> bool:
    """Whether a file without an image's name begins as one."""
    try:
        with open(path, "rb", buffering=0) as file:
            head = file.read(_SNIFF)
    except OSError:
        return False
    return (
        head.startswith((b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF87a", b"GIF89a", b"II*\0", b"MM\0*"))
        or (head[:4] == b"RIFF" and head[8:12] == b"WEBP")
        or head[4:12] in (b"ftypavif", b"ftypheic")
    )


def _nothing_found(source: Source) -> str:
    text = f"no images found in --src {display(str(source.root))}"
    if source.problems:
        causes = Counter(entry.reason.split(":")[0] for entry in source.problems)
        text += "; " + ", ".join(f"{count} x {cause}" for cause, count in causes.most_common())
    if source.ignored:
        text += f"; {source.ignored:,} other files are there, none an image by its name or first bytes"
    return text


def labels(source: Source) -> Iterator[int]:
    """Label of each file of `source`, in its order; -1 where there is none."""
    label_of = {name: label for label, name in enumerate(source.classes())}
    for file in source.files:
        top, slash, _ = file.path.partition(b"/")
        yield label_of.get(top, -1) if slash else -1
