"""Hidden and system names, which packing, `fastmoco index` and streams leave out. docs/format.md has the list."""

from __future__ import annotations

from collections import Counter

from shards.words import display

# Folders that programs leave among images, beside those whose names begin with a dot. In lower case: the file systems
# they come from do not distinguish it.
SYSTEM = frozenset(
    (
        b"__macosx",
        b"$recycle.bin",
        b"recycler",
        b"system volume information",
        b"lost+found",
        b"@eadir",  # Synology's thumbnails
        b"#recycle",
        b"#snapshot",
        b"@recycle",  # QNAP's
        b"@recently-snapshot",
        b".@__thumb",
        b"network trash folder",
        b"temporary items",
        b"thumbs.db",
        b"ehthumbs.db",
        b"desktop.ini",
    )
)


def is_hidden(name: bytes) -> bool:
    """Whether the name of a file or folder begins with a dot or is a system's."""
    return (name.startswith(b".") and name not in (b".", b"..")) or name.lower() in SYSTEM


def hidden_part(path: bytes) -> bytes:
    """A path as far as its first hidden or system name; empty if it has none."""
    end = -1
    for name in path.split(b"/"):
        end += 1 + len(name)
        if is_hidden(name):
            return path[:end]
    return b""


def group_of(part: bytes, is_folder: bool) -> str:
    """Under which name something hidden is counted: a folder's own; files share a pattern, as there may be many."""
    name = part[part.rfind(b"/") + 1 :]
    if is_folder or not name.startswith(b"."):
        return display(name)
    return "._*" if name.startswith(b"._") else ".*"


def summary(groups: Counter[str]) -> str:
    """What was left out: `3 hidden or system folders and files (2 .ipynb_checkpoints, 1 @eaDir)`; empty if nothing."""
    if not groups:
        return ""
    most = sorted(groups.items(), key=lambda item: (-item[1], item[0]))[:5]
    names = ", ".join(f"{count:,} {name}" for name, count in most) + (", ..." if len(groups) > len(most) else "")
    total = groups.total()
    what = "hidden or system folder or file" if total == 1 else "hidden or system folders and files"
    return f"{total:,} {what} ({names})"
