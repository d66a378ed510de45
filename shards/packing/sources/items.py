"""Images from Python: a data set or any iterable, as items with a label and a content to pack."""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from PIL import Image, UnidentifiedImageError

from shards.errors import PackError
from shards.images.arrays import from_array, from_tensor, pixels_16
from shards.images.convert import upright
from shards.images.encode import Encoded, Rejected, encode_pixels, encode_pixels_16
from shards.images.options import MAX_FILE, EncodeOptions
from shards.packing.fetch import FILE_ERRNOS
from shards.packing.sources.hub import adapted
from shards.packing.sources.labels import Labels, Unfit, kind_of, told_apart
from shards.words import display

T = TypeVar("T")
_SHAPES = "an image, (image, label), or a dictionary with `image` and perhaps `label` and `name`"
_IMAGES = "a PIL image, an array, a tensor, the bytes or the path of an image file"


class Pixels(NamedTuple):
    """A decoded image: mode `L` or `RGB`, size, and its pixels row by row; of 16 bits `I;16` or `RGB;16`.

    Attributes `reduced` and `own_range` are those of `Encoded`.
    """

    mode: str
    width: int
    height: int
    data: bytes
    reduced: bool = False
    own_range: bool = False

    def image(self) -> Image.Image:
        """As a PIL image."""
        return Image.frombytes(self.mode, (self.width, self.height), self.data)

    def encoded(self, options: EncodeOptions) -> Encoded:
        """As it is packed; raises Rejected."""
        if not self.mode.endswith(";16"):
            return replace(encode_pixels(self.image(), options), reduced=self.reduced, own_range=self.own_range)
        shape = (self.height, self.width) if self.mode == "I;16" else (self.height, self.width, 3)
        return encode_pixels_16(np.frombuffer(self.data, np.uint16).reshape(shape), options)


Content = bytes | Pixels | Rejected
"""An image file, decoded pixels, or why there is no image."""


class Item(NamedTuple):
    """One image of a data set.

    Attributes:
        number: Its position in the data set.
        name: Its name or path; empty if it has none.
        label: Its label as a number, or -1.
        content: The image.
    """

    number: int
    name: str
    label: int
    content: Content

    @property
    def source(self) -> str:
        """The item in messages and quarantine.jsonl: `item 17`, or `item 17 (cat.jpg)`."""
        return f"item {self.number} ({self.name})" if self.name else f"item {self.number}"

    def digest(self) -> bytes:
        """SHA-256 of all that decides what is packed of it."""
        content = self.content
        if isinstance(content, Pixels):
            kind, data = f"{content.mode} {content.width} {content.height}", content.data
        else:
            kind, data = ("left out", str(content).encode()) if isinstance(content, Rejected) else ("file", content)
        return hashlib.sha256(f"{self.source}\0{self.label}\0{kind}\0".encode() + data).digest()


class Items:
    """The items of a data set or iterable, in the order in which they are packed.

    A data set that has a length and can be indexed is read in an order shuffled by `seed`, everything else in its own.

    Args:
        source: The data set or iterable.
        classes: Names of the classes by label; None for `source.classes`, if it has them.
        shuffle: Whether to read in shuffled order; None: if the source can be indexed.
        seed: Seed of that order.
        image_column: See `hub.adapted`.
        label_column: See `hub.adapted`.
        keep_16_bit: Of images in memory take those of 16 bits alone, as they are; see EncodeOptions.

    Attributes:
        count: Number of items; None if it is not known.
        shuffled: Whether they are read in shuffled order.
        repeatable: Whether the items can be read more than once; a generator's cannot.

    Raises:
        PackError: The source is no iterable, is empty, or cannot be shuffled.
    """

    def __init__(
        self,
        source: Any,
        classes: Sequence[str] | None = None,
        shuffle: bool | None = None,
        seed: int = 0,
        image_column: str | None = None,
        label_column: str | None = None,
        keep_16_bit: bool = False,
    ) -> None:
        self._keep_16_bit = keep_16_bit
        source = adapted(source, image_column, label_column)
        self._source, self._seed = source, seed
        self.indexed = _is_indexed(source)
        if shuffle and not self.indexed:
            raise PackError("shuffle=True needs a data set with a length that can be indexed; an iterable is read once")
        if isinstance(source, Mapping) or not (self.indexed or hasattr(source, "__iter__")):
            raise PackError(f"{kind_of(source)} is no data set; give an iterable of images")
        self.repeatable = self.indexed or iter(source) is not source
        self.shuffled = self.indexed if shuffle is None else shuffle
        self.count: int | None = len(source) if self.indexed else None
        if self.count == 0:
            raise PackError("the data set is empty; it has to hold an image")
        self._labels = Labels(_class_names(source) if classes is None else list(classes))

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes by label, once the items are read; empty if none has a label."""
        return self._labels.names()

    def __iter__(self) -> Iterator[Item]:
        """Read the items.

        Raises:
            PackError: An item is no image, or cannot be read for a reason that is not the image's.
        """
        for number, given in self._indexed() if self.indexed else enumerate(self._source):
            try:
                item = self._item(number, given)
            except Unfit as error:
                raise PackError(f"item {number}: {error}") from None
            yield item

    def _indexed(self) -> Iterator[tuple[int, Any]]:
        assert self.count is not None
        numbers: Sequence[int] = range(self.count)
        if self.shuffled:  # as the paths of a folder are: by a keyed hash
            key = self._seed.to_bytes(8, "little")
            ranks = [hashlib.blake2b(b"%d" % number, digest_size=8, key=key).digest() for number in numbers]
            numbers = sorted(numbers, key=ranks.__getitem__)
        for number in numbers:
            try:
                yield number, self._source[number]
            except Exception as error:
                yield number, _of_error(number, error)

    def _item(self, number: int, given: Any) -> Item:
        label = name = None
        if isinstance(given, Mapping):
            if "image" not in given:
                raise Unfit(f"a dictionary with {', '.join(map(repr, given)) or 'no keys'}; it has to be {_SHAPES}")
            label, name, given = given.get("label"), given.get("name"), given["image"]
        elif isinstance(given, tuple | list):
            if len(given) != 2:
                raise Unfit(f"a {type(given).__name__} of {len(given)}; it has to be {_SHAPES}")
            given, label = given
        if name is None:
            name = os.fspath(given) if isinstance(given, str | os.PathLike) else ""
        return Item(number, display(str(name)), self._labels.number(label), _content(given, self._keep_16_bit))


def _is_indexed(source: Any) -> bool:
    """Whether a source has a length and can be indexed, and so can be read in any order."""
    # torch's IterableDataset inherits an index that only raises
    streams = any(kind.__name__ == "IterableDataset" for kind in type(source).__mro__)
    return hasattr(source, "__getitem__") and hasattr(source, "__len__") and not streams


def _class_names(source: Any) -> list[str] | None:
    """`source.classes`, as torchvision's data sets have it; names that occur twice are told apart by their label."""
    found = getattr(source, "classes", None)
    if not isinstance(found, list | tuple) or not all(isinstance(name, str | tuple) for name in found):
        return None
    # of torchvision's ImageNet each class has several names
    return told_apart([name if isinstance(name, str) else ", ".join(map(str, name)) for name in found])


def _content(given: Any, keep_16_bit: bool = False) -> Content:
    """The image of an item as it is packed: a file as it is, everything else as pixels of 8 bits, or of 16."""
    if isinstance(given, Rejected):
        return given
    if isinstance(given, bytes | bytearray | memoryview):
        return bytes(given)
    try:
        if isinstance(given, str | os.PathLike):
            return _file(Path(given))
        if keep_16_bit and (isinstance(given, Image.Image) or hasattr(given, "dtype")):
            pixels = _converted(pixels_16, given)
            height, width = pixels.shape[:2]
            return Pixels("I;16" if pixels.ndim == 2 else "RGB;16", width, height, pixels.tobytes())
        if isinstance(given, Image.Image):
            image = upright(given)
        elif isinstance(given, np.ndarray):
            image = _converted(from_array, given)
        elif hasattr(given, "detach") and hasattr(given, "is_floating_point"):
            image = _converted(from_tensor, given)
        else:
            raise Unfit(f"{kind_of(given)} is no image; give {_IMAGES}")
    except Unfit:
        raise
    except Exception as error:  # a PIL image may be decoded only now, and decoders raise any type
        return _cause(error)
    return Pixels(image.mode, *image.size, image.tobytes(), _is_of_16_bits(given), _has_own_range(given))


def _is_of_16_bits(given: Any) -> bool:
    if isinstance(given, Image.Image):
        return given.mode.startswith("I;16")
    return getattr(given.dtype, "name", str(given.dtype)).endswith("uint16")  # of any byte order; torch's has no name


def _has_own_range(given: Any) -> bool:
    """Whether the values of a PIL image, loaded by now, have no range but their own; arrays of floats are refused."""
    if not isinstance(given, Image.Image) or given.mode not in ("I", "F"):
        return False
    pixels = np.asarray(given)
    return bool(given.mode == "F" or pixels.min() < 0 or pixels.max() > 65535)


def _converted(convert: Callable[[Any], T], given: Any) -> T:
    try:
        return convert(given)
    except ValueError as error:
        raise Unfit(str(error)) from None


def _file(path: Path) -> bytes:
    size = path.stat().st_size
    if size > MAX_FILE:
        raise Rejected(f"too large: a file of {size:,} bytes")
    return path.read_bytes()


def _of_error(number: int, error: Exception) -> Rejected:
    """What an error of a data set means for the item: a bad image, or PackError for a fault that is not the image's."""
    bad = (UnidentifiedImageError, Image.DecompressionBombError, SyntaxError, EOFError, struct.error)
    if isinstance(error, bad) or (isinstance(error, OSError) and error.errno in (None, *FILE_ERRNOS)):
        return _cause(error)
    raise PackError(f"item {number} of the data set cannot be read: {type(error).__name__}: {error}") from error


def _cause(error: Exception) -> Rejected:
    if isinstance(error, Rejected):
        return error
    if isinstance(error, OSError) and error.errno is not None:
        if error.errno not in FILE_ERRNOS:
            raise error
        return Rejected(f"cannot read: {os.strerror(error.errno)}")
    if isinstance(error, UnidentifiedImageError):
        return Rejected("not an image: no known format")  # without its path or its object's address
    from shards.images.causes import of_error

    return Rejected(of_error(error))
