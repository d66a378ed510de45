"""Folders of one user: what other users could have written is not read."""

from __future__ import annotations

import errno
import os
import pwd
import stat
from pathlib import Path


def private_folder(path: Path) -> None:
    """Make a folder that this user alone may use (0700), or check that an existing one is this user's.

    Its parents are made as usual, and may belong to anybody: in a folder that several users share each has one.

    Raises:
        PermissionError: It belongs to another user, other users may write to it, or it is a link; or it cannot be made
            because its parent belongs to another user. `strerror` says whose it is.
        OSError: It cannot be made.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.mkdir(mode=0o700, exist_ok=True)
    except PermissionError as error:
        place = next(parent for parent in path.parents if parent.exists())
        whose = f"{place} belongs to {_user(place.stat().st_uid)}"
        raise PermissionError(error.errno, f"{error.strerror} ({whose})", str(path)) from error
    found = os.lstat(path)
    if not stat.S_ISDIR(found.st_mode):
        raise PermissionError(errno.EPERM, "it is a link, which may lead anywhere", str(path))
    if found.st_uid != os.geteuid():
        raise PermissionError(errno.EPERM, f"it belongs to {_user(found.st_uid)}", str(path))
    if found.st_mode & 0o022:
        raise PermissionError(errno.EPERM, f"other users may write to it: chmod 700 {path}", str(path))


def own_of(path: Path) -> Path:
    """`path`, or where another user has taken that name in a shared folder, the same name with this user's number."""
    try:
        taken = path.stat().st_uid != os.geteuid()
    except FileNotFoundError:
        taken = False
    return path.with_name(f"{path.name}-{os.geteuid()}") if taken else path


def is_own(descriptor: int) -> bool:
    """Whether an open file belongs to this user."""
    return os.fstat(descriptor).st_uid == os.geteuid()


def _user(number: int) -> str:
    try:
        return f"the user {pwd.getpwuid(number).pw_name}"
    except KeyError:
        return f"the user {number}"
