"""The rules for labels of images in tars and tables: how they are read and how they are numbered."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from shards.errors import PackError
from shards.format.layout import MAX_CLASSES
from shards.format.manifest import parse_json
from shards.words import display

EXTENSIONS = (b"cls", b"json")  # members with labels, by precedence
_BLANK = b" \t\r\n\v\f\0"
_LONGEST = {b"cls": 4096, b"json": 1 << 24}  # bytes; a longer member is something else


def check_length(size: int, extension: bytes) -> None:
    """Raise ValueError if a member of `size` bytes is too long for a label."""
    if size > _LONGEST[extension]:
        raise ValueError(f"it has {size:,} bytes, over {_LONGEST[extension]:,}")


def label_text(data: bytes, extension: bytes) -> str | None:
    """The label in a `.cls` member (its whole content) or a `.json` member (its field `label`), as printable text.

    Returns:
        None if there is no label: an empty member, JSON without `label`, or -1.

    Raises:
        ValueError: It is not JSON, or its label is neither a number nor text.
    """
    data = data.strip(_BLANK)
    if extension == b"json" and data:
        values = parse_json(data)
        value = values.get("label") if isinstance(values, dict) else None
        if isinstance(value, bool) or not isinstance(value, str | int | None):  # a bool is an int, too
            raise ValueError("its label is neither a number nor text")
        # JSON may hold half of a surrogate pair (`"\ud800"`); `display` escapes its bytes.
        data = b"" if value is None else str(value).encode("utf-8", "surrogatepass").strip(_BLANK)
    return None if data in (b"", b"-1") else display(data)


def number_labels(names: Sequence[bytes]) -> tuple[list[bytes], list[int]]:
    """Class names by label, and the label of each name.

    If all names are whole numbers, with or without leading zeros, they are the labels: `003` is 3 whatever the other
    labels are, so that a training and a validation set agree. Otherwise names are numbered in sorted order.

    Raises:
        PackError: A number is too large for a label.
    """
    if names and all(name.isdigit() for name in names):
        digits = [name.lstrip(b"0") or b"0" for name in names]
        largest = max(digits, key=lambda text: (len(text), text))
        if len(largest) > len(str(MAX_CLASSES - 1)):  # int() refuses thousands of digits
            raise PackError(
                f"label {display(largest[:32])} is over {MAX_CLASSES - 1:,}; number the classes from 0, or use names"
            )
        return [b"%d" % number for number in range(int(largest) + 1)], [int(text) for text in digits]
    return number_names(names)


def number_names(names: Sequence[bytes]) -> tuple[list[bytes], list[int]]:
    """Class names in sorted order, and the label of each name."""
    classes = sorted(set(names))
    label_of = {name: label for label, name in enumerate(classes)}
    return classes, [label_of[name] for name in names]


def labels_in(classes: Sequence[str], names: Sequence[str]) -> np.ndarray:
    """int32[N + 1]: the label of each of N names in a set with these classes, then -1, so that index -1 gives -1.

    Raises:
        KeyError: A name is not among the classes.
    """
    # `003` is its own class among names, but class `3` if all labels of the set are numbers.
    label_of = {name: label for label, name in enumerate(classes)}
    numbers = [label_of[name if name in label_of else name.lstrip("0") or "0"] for name in names]
    return np.array([*numbers, -1], dtype=np.int32)
