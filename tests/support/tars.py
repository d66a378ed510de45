"""The one builder of tars for tests: any format, links, names that repeat, tars that are cut off."""

from __future__ import annotations

import io
import os
import tarfile
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Link:
    """A symbolic link as a member."""

    target: str


Members = dict[str, bytes] | list[tuple[str, bytes | Link]]
"""Members in their order; pairs for links and where a name repeats."""


def tar_bytes(members: Members, kind: int = tarfile.PAX_FORMAT) -> bytes:
    """A tar of `members`; `kind` is one of tarfile's formats, of which PAX and GNU take names of any length."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=kind, errors="surrogateescape") as tar:
        for name, content in members.items() if isinstance(members, dict) else members:
            member = tarfile.TarInfo(name)
            if isinstance(content, Link):
                member.type, member.linkname = tarfile.SYMTYPE, content.target
                tar.addfile(member)
            else:
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def write_tar(path: Path, members: Members, kind: int = tarfile.PAX_FORMAT) -> Path:
    """`tar_bytes` as a file, with the folders that it needs."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(tar_bytes(members, kind))
    return path


def member_places(path: Path) -> dict[str, tarfile.TarInfo]:
    """Members of a tar by name, with `offset` (of the header), `offset_data` and `size`."""
    with tarfile.open(path) as tar:
        return {member.name: member for member in tar}


def cut_off(path: Path, length: int) -> None:
    """Keep the first `length` bytes of a tar, as an interrupted download does."""
    assert 0 < length < path.stat().st_size, f"{path.name} has {path.stat().st_size} bytes, none to cut behind {length}"
    os.truncate(path, length)
