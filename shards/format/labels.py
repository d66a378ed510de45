"""The rules for labels of images in tars and tables: how they are read and how they are numbered."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

import numpy as np

from shards import words
from shards.errors import PackError
from shards.format.layout import MAX_CLASSES
from shards.format.manifest import parse_json
from shards.words import display

_REMEDY = "number the classes 0, 1, 2, ..., or name them, as in rating-0.5"
EXTENSIONS = (b"cls", b"json")  # members with labels, by precedence
_BLANK = b" \t\r\n\v\f\0"
_WHOLE = re.compile(rb"\+?0*([0-9]+)(?:\.0*)?")  # 10.0, too: programs turn a column with gaps into floats
_NUMBER = re.compile(rb"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
_LONGEST_URL = 4000  # bytes; the names of a set have room for it
_LONGEST = {b"cls": 4096, b"json": 1 << 24}  # bytes; a longer member is something else


def check_length(size: int, extension: bytes) -> None:
    """Raise ValueError if a member of `size` bytes is too long for a label."""
    if size > _LONGEST[extension]:
        raise ValueError(f"it has {size:,} bytes, over {_LONGEST[extension]:,}")


def is_no_label(text: bytes) -> bool:
    """Whether a field means that there is no label: it is empty, -1, or how programs write a missing value."""
    text = text.strip(_BLANK)
    return text in (b"", b"-1", b"-1.0", b"None", b"<NA>") or text.lower() in (b"nan", b"null")


def number_text(value: float) -> bytes | None:
    """A label that is stored as a float as text: that of the integer; None for NaN.

    Raises:
        ValueError: It is not a whole number.
    """
    if math.isnan(value):
        return None
    if not math.isfinite(value) or value != int(value):
        raise ValueError(f"label {value} is not a whole number; {_REMEDY}")
    return b"%d" % int(value)


def one_form(name: bytes) -> bytes:
    """`words.one_form` of a name in bytes."""
    if name.isascii():
        return name
    return words.one_form(name.decode("utf-8", "surrogateescape")).encode("utf-8", "surrogateescape")


def label_text(data: bytes, extension: bytes, key: str = "") -> str | None:
    """The label in a `.cls` member (its whole content) or a `.json` member (one of its fields), as printable text.

    Args:
        data: The member's content.
        extension: `cls` or `json`.
        key: The field; `a.b` is the field of that name, or else the field `b` of the object `a`. Empty: `label`.

    Returns:
        None if there is no label: JSON without the field, or what `is_no_label` says.

    Raises:
        ValueError: It is not JSON, or its label is neither a number nor text.
    """
    data = data.strip(_BLANK)
    if extension == b"json" and data:
        values = parse_json(data)
        value = field_of(values, key or "label")
        if isinstance(value, bool) or not isinstance(value, str | int | float | None):  # a bool is an int, too
            raise ValueError(f"its {key or 'label'} is neither a number nor text")
        if isinstance(value, float):
            return None if (number := number_text(value)) is None or is_no_label(number) else number.decode()
        # JSON may hold half of a surrogate pair (`"\ud800"`); `display` escapes its bytes.
        data = b"" if value is None else str(value).encode("utf-8", "surrogatepass").strip(_BLANK)
    return None if is_no_label(data) else display(data)


def url_in(data: bytes, extension: bytes) -> bytes:
    """The field `url` of a `.json` member, if it is a text of at most 4,000 bytes in one line; else empty."""
    if extension != b"json" or b'"url"' not in data:
        return b""
    try:
        url = field_of(parse_json(data.strip(_BLANK)), "url")
    except ValueError:  # which is said of its label
        return b""
    return kept_url(url)


def kept_url(url: object) -> bytes:
    """A URL as a set keeps it: a text of at most 4,000 bytes in one line; else empty."""
    return url.encode() if isinstance(url, str) and url.isprintable() and len(url.encode()) <= _LONGEST_URL else b""


def field_of(values: object, key: str) -> object:
    """A field of decoded JSON, perhaps within others (`a.b`); None if it is missing."""
    if not isinstance(values, dict):
        return None
    if key in values:
        return values[key]
    first, dot, rest = key.partition(".")
    return field_of(values.get(first), rest) if dot else None


def number_labels(names: Sequence[bytes]) -> tuple[list[bytes], list[int]]:
    """Class names by label, and the label of each name.

    If all names are whole numbers, they are the labels: `003` and `3.0` are 3 whatever the other labels are, so that a
    training and a validation set agree. Otherwise names are numbered in sorted order.

    Raises:
        PackError: A number is too large for a label, or all are numbers but not all of them whole.
    """
    whole = [_WHOLE.fullmatch(name) for name in names]
    if names and all(whole):
        digits = [found.group(1) for found in whole if found]
        largest = max(digits, key=lambda text: (len(text), text))
        if len(largest) > len(str(MAX_CLASSES - 1)):  # int() refuses thousands of digits
            raise PackError(
                f"label {display(largest[:32])} is over {MAX_CLASSES - 1:,}; number the classes from 0, or use names"
            )
        return [b"%d" % number for number in range(int(largest) + 1)], [int(text) for text in digits]
    fraction = next((name for name, found in zip(names, whole, strict=True) if not found and b"." in name), None)
    if fraction is not None and all(map(_NUMBER.fullmatch, names)):
        raise PackError(f"label {display(fraction)} is not a whole number; {_REMEDY}")
    return number_names(names)


def number_names(names: Sequence[bytes]) -> tuple[list[bytes], list[int]]:
    """Class names in sorted order, and the label of each name. Unicode forms of one name are one class."""
    same = [one_form(name) for name in names]
    classes = sorted(set(same))
    label_of = {name: label for label, name in enumerate(classes)}
    return classes, [label_of[name] for name in same]


def labels_in(classes: Sequence[str], names: Sequence[str]) -> np.ndarray:
    """int32[N + 1]: the label of each of N names in a set with these classes, then -1, so that index -1 gives -1.

    Raises:
        KeyError: A name is not among the classes.
    """
    # `003` is its own class among names, but class `3` if all labels of the set are numbers.
    label_of = {name: label for label, name in enumerate(classes)}
    numbers = [label_of[name if name in label_of else _canonical(name)] for name in names]
    return np.array([*numbers, -1], dtype=np.int32)


def _canonical(name: str) -> str:
    whole = _WHOLE.fullmatch(name.encode())
    return whole.group(1).decode() if whole else words.one_form(name)
