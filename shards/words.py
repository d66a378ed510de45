"""Text for messages: printable names, counts, sizes, durations."""

from __future__ import annotations

import os
import unicodedata


def display(name: str | bytes) -> str:
    r"""File name as printable text: undecodable bytes become `\xNN`, control characters are escaped."""
    text = os.fsencode(name).decode("utf-8", "backslashreplace")
    if text.isprintable():
        return text
    # Control and format characters only: to Python a no-break space is not printable either, but it does no harm.
    return "".join(
        c if c.isprintable() or unicodedata.category(c)[0] != "C" else c.encode("unicode_escape").decode() for c in text
    )


def one_form(name: str) -> str:
    """A name in Unicode's form NFC: macOS and Linux write `é` differently, and mean one class."""
    return unicodedata.normalize("NFC", name)


def in_words(error: OSError) -> str:
    """The files that an error names, and its cause."""
    if error.strerror is None:
        return str(error) or type(error).__name__
    names = [display(os.fspath(name)) for name in (error.filename, error.filename2) if isinstance(name, str | bytes)]
    return f"{' -> '.join(names)}: {error.strerror}" if names else error.strerror


def counted(count: int, noun: str) -> str:
    """Number and noun: `1 shard`, `2,000 shards`, `3 classes`."""
    plural = "" if count == 1 else "es" if noun.endswith("s") else "s"
    return f"{count:,} {noun}{plural}"


def human_bytes(count: float) -> str:
    """Size in decimal units: `179 MB`."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if abs(count) < 999.5 or unit == "TB":  # what would be rounded to 1000 is 1.0 of the next unit
            break
        count /= 1000
    return f"{count:.0f} {unit}" if unit == "B" or count >= 99.95 else f"{count:.1f} {unit}"


def duration(seconds: float) -> str:
    """A duration: `42 s`, `3 min 05 s`, `2 h 05 min`, `3.1 days`."""
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes:02d} min" if hours < 48 else f"{seconds / 86_400:.1f} days"
