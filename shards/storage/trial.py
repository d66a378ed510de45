"""A command's files and folders, tried before the work: nothing is changed, and nothing is left."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from shards.errors import PathError
from shards.storage.files import partial, target_of
from shards.storage.places import url_in
from shards.words import display

_RACES = 10  # attempts where other processes try, and remove, the same missing folders


def check_file(flag: str, path: Path | None, *read: str | Path | None) -> None:
    """Raise PathError where a file cannot be written. An existing one is not changed, and nothing is left.

    Under torchrun rank 0 tries: it is the one that writes.

    Args:
        flag: names the file.
        path: of the file.
        read: files and run folders that the command reads, which it must not replace.
    """
    _check_local(flag, path, "give a local file")
    for given in read:
        if path is not None and given is not None and _replaces(path, Path(given)):
            raise PathError(f"{flag} {path} would replace what is read from {given}; give another name")
    if path is None or os.environ.get("RANK", "0") != "0":
        return
    with _named(flag, path, "a file"):
        with contextlib.suppress(FileNotFoundError):
            mode = path.stat().st_mode
            if stat.S_ISDIR(mode):
                raise PathError(f"{flag} {path} is a folder; give the name of a file")
            if not stat.S_ISREG(mode):  # a device or a pipe, which a file that is written whole would replace
                raise PathError(f"{flag} {path} is not a regular file; give the name of a file")
            os.close(os.open(path, os.O_WRONLY))  # write-protected: replacing it would not be what was meant
        _try(target_of(path))


def _replaces(path: Path, read: Path) -> bool:
    """Whether a file is one that is read, or one of a run folder's that later commands would take for the run's."""
    with contextlib.suppress(OSError):
        if not read.is_dir():
            return path.samefile(read)
        folder = read / "checkpoints" if path.suffix == ".pt" else read
        return path.parent.samefile(folder) and (path.suffix == ".pt" or path.name in ("config.json", "metrics.jsonl"))
    return False


def check_folder(flag: str, path: Path | None) -> None:
    """Raise PathError where a folder cannot be made, or not written to; see `check_file`."""
    _check_local(flag, path, "give a local folder")
    if path is None or os.environ.get("RANK", "0") != "0":
        return
    with _named(flag, path, "a folder"):
        if path.exists() and not path.is_dir():
            raise PathError(f"{flag} {path} is a file; give a folder")
        _try(path / "tried")


def check_readable(flag: str, path: Path | None, missing: str = "there is no file {}; check the path") -> None:
    """Raise PathError where a file that is read later is missing or may not be read.

    Args:
        flag: names the file.
        path: of the file; nothing is said of a folder, as of a run, or of None.
        missing: message for a missing file, with a place for its path.
    """
    _check_local(f"{flag}:", path, "copy it to a local disk, and give that file")
    if path is None:
        return
    try:
        if stat.S_ISREG(path.stat().st_mode):
            path.open("rb").close()
    except (FileNotFoundError, NotADirectoryError):
        raise PathError(f"{flag}: {missing.format(path)}") from None
    except OSError as error:
        raise PathError(f"{flag}: {path} cannot be read: {error.strerror}; check the path") from error


def _check_local(flag: str, path: Path | None, remedy: str) -> None:
    """Raise PathError where a path was made of a URL: it would be that of a local folder `s3:`."""
    url = None if path is None else url_in(path)
    if url is not None:
        raise PathError(f"{flag} {url} is a URL; {remedy}")


@contextlib.contextmanager
def _named(flag: str, path: Path, what: str) -> Iterator[None]:
    """Turn the system's errors in the block into a PathError."""
    try:
        os.fsencode(path).decode()
        yield
    except UnicodeDecodeError:  # it could be neither printed nor recorded
        raise PathError(f"{flag} {display(str(path))} is not a name in UTF-8; give another") from None
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise PathError(f"{flag} {path} cannot be written: {reason}; give {what} that you may write to") from error


def _try(path: Path) -> None:
    """Write beside `path`, as its writer will, and remove what that made, missing folders included."""
    for attempt in range(_RACES):
        made: list[Path] = []
        try:
            for folder in reversed(path.parents):
                if not folder.exists():
                    folder.mkdir(exist_ok=True)
                    made.append(folder)
            # by writing: permissions alone say nothing about a full or read-only file system, and nothing to root
            aside = partial(path)
            try:
                aside.write_bytes(bytes(4096))
            finally:
                aside.unlink(missing_ok=True)
            return
        except FileNotFoundError:  # by another process that has removed a folder, or for good
            if attempt == _RACES - 1:
                raise
        finally:
            for folder in reversed(made):
                with contextlib.suppress(OSError):  # another process uses it
                    folder.rmdir()
