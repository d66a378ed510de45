"""Local paths and fsspec URLs."""

from __future__ import annotations

import os
import re
from pathlib import Path
from urllib.parse import unquote

WEB = ("http://", "https://")
"""What the URLs of web servers begin with."""


def is_url(place: str | Path) -> bool:
    """Whether a place is an fsspec URL (`s3://bucket/prefix`) rather than a local path."""
    return "://" in os.fspath(place)


def url_in(path: Path) -> str | None:
    """The URL that a path was made of: pathlib keeps one of its slashes (`s3:/bucket/run`). None if it was none."""
    found = re.match("([A-Za-z][A-Za-z0-9+.:-]+):/", os.fspath(path))
    if found is None:
        return None
    return f"{found[1]}:{'///' if found[1] == 'file' else '//'}{os.fspath(path)[found.end() :]}"


def local(place: str) -> str:
    """The path that a `file:///` URL means, in which `%20` is a space; any other place unchanged."""
    found = re.fullmatch("file://(?:localhost)?(/.*)", place, re.DOTALL)
    return unquote(found[1], errors="surrogateescape") if found else place


def parent(place: str) -> str:
    """The folder of a file."""
    if not is_url(place):
        return os.path.dirname(place) or "."
    folder = place.rpartition("/")[0]
    return f"{folder}/" if folder.endswith("/") else folder  # one slash at the end of a folder has no meaning


def joined(root: str, path: str) -> str:
    """`path` relative to `root`; unchanged if it is absolute or a URL. Names of objects may have empty parts."""
    path = local(path)
    if is_url(path):
        return path
    if is_url(root):
        return f"{root.removesuffix('/')}/{path}"
    return path if root == "." else os.path.join(root, path)  # as the user wrote it, not ./PATH
