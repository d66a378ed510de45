"""Which files of a source are packed: without hidden and system names, and without what --exclude names."""

from __future__ import annotations

import fnmatch
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence

from shards.errors import PackError
from shards.format.hidden import group_of, is_hidden, summary


class Selection:
    """The rules of one packing, and the counts of what they left out.

    Args:
        exclude: Shell patterns (`*`, `?`, `[...]`; `*` also matches slashes). One without a slash is compared with the
            name of each folder and file, one with a slash with the whole path relative to the source. What is below a
            folder that matches is left out as well.
        include_hidden: Pack hidden and system files and folders.

    Attributes:
        hidden: Number of hidden folders, and of images in hidden files, by `group_of` their name.
        excluded: Number of files and folders that matched, by pattern.
        remarks: Further lines for `notes`.

    Raises:
        PackError: A pattern is empty.
    """

    def __init__(self, exclude: Sequence[str] = (), include_hidden: bool = False) -> None:
        self.include_hidden = include_hidden
        self.remarks: list[str] = []
        self.hidden: Counter[str] = Counter()
        self.excluded: Counter[str] = Counter(dict.fromkeys(exclude, 0))
        self._patterns = [(pattern, *_compiled(pattern)) for pattern in self.excluded]

    def afresh(self) -> Selection:
        """The same rules, with nothing counted."""
        return Selection(tuple(self.excluded), self.include_hidden)

    def excludes(self, path: bytes) -> bool:
        """Whether --exclude leaves out a path or one of its folders; counts it."""
        if not self._patterns:
            return False
        text = os.fsdecode(path).lstrip("/")
        names = text.split("/")
        paths = ["/".join(names[:end]) for end in range(1, len(names) + 1)]
        for pattern, matches, whole in self._patterns:
            if any(map(matches.match, paths if whole else names)):
                self.excluded[pattern] += 1
                return True
        return False

    def is_hidden(self, name: bytes) -> bool:
        """Whether a file or folder is left out as hidden; does not count it."""
        return not self.include_hidden and is_hidden(name)

    def hide(self, part: bytes, is_folder: bool) -> None:
        """Count something hidden that is left out."""
        self.hidden[group_of(part, is_folder)] += 1

    def notes(self) -> Iterator[str]:
        """Lines about what was left out."""
        if self.hidden:
            yield f"left out {summary(self.hidden)}; --include-hidden packs them"
        for pattern, count in self.excluded.items():
            what = "file or folder" if count == 1 else "files and folders"
            yield f"--exclude {pattern!r} {f'left out {count:,} {what}' if count else 'matches nothing'}"
        yield from self.remarks


def _compiled(pattern: str) -> tuple[re.Pattern[str], bool]:
    """A pattern, and whether it is compared with whole paths."""
    text = pattern.removeprefix("./").rstrip("/")
    if not text:
        raise PackError(f"--exclude {pattern!r} is empty; give a pattern such as '*.gif' or 'val/*'")
    return re.compile(fnmatch.translate(text.lstrip("/"))), "/" in text
