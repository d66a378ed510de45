"""One line of the doctor's answer."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

Level = Literal["ok", "note", "warn", "stop"]


@dataclass(frozen=True)
class Finding:
    """What was found about one topic.

    Attributes:
        topic: One or two words.
        text: What was found, with its units.
        level: `ok`; `note`: something that some uses need is missing; `warn`: training runs, but slower or only
            partly; `stop`: training cannot run.
        remedy: What to do; empty only if there is nothing to do.
    """

    topic: str
    text: str
    level: Level = "ok"
    remedy: str = ""


def version_numbers(version: str) -> tuple[int, ...]:
    """The leading numbers of a version: (2, 14, 1) of `2.14.1+cu130`."""
    found = re.match(r"\d+(\.\d+)*", version)
    return tuple(map(int, found[0].split("."))) if found else ()


def gib(size: float) -> str:
    """Bytes in words: `23.5 GiB`."""
    return f"{size / 2**30:.1f} GiB"
