"""Labels of a data set's items as numbers, and what is said of an item that cannot be used."""

from __future__ import annotations

from collections import Counter
from typing import Any

from shards.format.layout import MAX_CLASSES
from shards.words import display


class Unfit(ValueError):
    """An item that is no image or has no label that can be used."""


class Labels:
    """Labels as numbers, and the names of the classes."""

    def __init__(self, given: list[str] | None) -> None:
        self._given = given
        self._number_of = {name: number for number, name in enumerate(given or ())}
        self._largest, self._named = -1, False

    def number(self, label: Any) -> int:
        """The number of a label: a whole number, a name, or None or -1 for none."""
        if hasattr(label, "item"):
            try:
                label = label.item()  # NumPy's scalars, and arrays and tensors of one number
            except (RuntimeError, ValueError):
                raise Unfit(_no_label(label)) from None
        if isinstance(label, float) and (label != label or label.is_integer()):
            label = None if label != label else int(label)
        if label is None or (isinstance(label, int) and label == -1):
            return -1
        if isinstance(label, str):
            return self._of_name(display(label))
        if not isinstance(label, int):
            raise Unfit(_no_label(label))
        if self._named and self._given is None:
            raise Unfit(f"its label is the number {label}, but the labels before are names; give one kind")
        if not 0 <= label < (len(self._given) if self._given is not None else MAX_CLASSES):
            allowed = (
                f"of {len(self._given):,} classes" if self._given is not None else f"from 0 to {MAX_CLASSES - 1:,}"
            )
            raise Unfit(f"its label {label} is not one {allowed}")
        self._largest = max(self._largest, int(label))
        return int(label)

    def _of_name(self, name: str) -> int:
        if name not in self._number_of:
            if self._given is not None:
                raise Unfit(f"its label {name!r} is not one of the {len(self._given):,} classes")
            if self._largest >= 0 and not self._named:
                raise Unfit(f"its label is the name {name!r}, but the labels before are numbers; give one kind")
            if len(self._number_of) == MAX_CLASSES:
                raise Unfit(f"its label {name!r} is one of more than {MAX_CLASSES:,}; is it a class?")
            self._number_of[name], self._named = len(self._number_of), True
        self._largest = max(self._largest, self._number_of[name])
        return self._number_of[name]

    def names(self) -> tuple[str, ...]:
        """Names of the classes by label; empty if there was no label."""
        if self._largest < 0:
            return ()
        if self._given is not None:
            return tuple(self._given)
        return tuple(self._number_of) if self._named else tuple(map(str, range(self._largest + 1)))


def told_apart(names: list[str]) -> list[str]:
    """Names of classes as printable text; those that occur twice are told apart by their label."""
    names = [display(name) for name in names]
    count = Counter(names)
    return [f"{name} ({label})" if count[name] > 1 else name for label, name in enumerate(names)]


def kind_of(value: Any) -> str:
    """The type of a value, for messages."""
    name = type(value).__qualname__
    return f"an object of the type {name}" if type(value).__module__ != "builtins" else f"a value of the type {name}"


def _no_label(label: Any) -> str:
    return (
        f"its label is {kind_of(label)}; give (image, label) with a number or a name, or the image alone, as in "
        "[image for image, _ in data]"
    )
