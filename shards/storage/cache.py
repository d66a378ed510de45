"""A node's cache of remote shards: bounded in bytes, shared by all processes of the node.

`FASTMOCO_CACHE` is its folder (default: `fastmoco` in the user's cache folder), `FASTMOCO_CACHE_BYTES` its limit
(`200GB`; default: half of the free space on that disk, counting its own files as free). Several users may share a
folder: each has entries and a limit of their own in it, and reads nothing that another one has written.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import shutil
import stat
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from shards.errors import ShardSetError
from shards.storage.base import Store
from shards.storage.parts import abandoned, held, write
from shards.storage.places import is_url
from shards.storage.private import is_own, private_folder

FOLDER, BYTES = "FASTMOCO_CACHE", "FASTMOCO_CACHE_BYTES"
_PART = ".part"  # a file being fetched; it has its full size from the start, so that it counts towards the limit
_OURS = re.compile("[0-9a-f]{32}")  # folders of sets; nothing else is ever removed
_CHUNK = 16 << 20  # bytes per request
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}


def cache_folder() -> Path:
    """The cache folder that the environment sets.

    Raises:
        ShardSetError: It is a URL; or there is none, and the user has no home, as in a container under another number.
    """
    given = os.environ.get(FOLDER, "")
    if is_url(given):
        raise ShardSetError(f"{FOLDER}={given} is a URL; set it to a local folder")
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    if not given and home.startswith("~"):
        raise ShardSetError(f"the cache has no folder, as this user has no home; set {FOLDER} to a folder of your own")
    return Path(given or Path(home) / "fastmoco")


def cache_bytes() -> int | None:
    """The limit that the environment sets; None if it sets none.

    Raises:
        ShardSetError: It is not a number of bytes.
    """
    text = os.environ.get(BYTES, "")
    if not text:
        return None
    match = re.fullmatch(r"(\d+(?:\.\d+)?) *([KMGT]?)B?", text.strip().upper())
    if not match:
        raise ShardSetError(f"{BYTES}={text!r} is not a size; give bytes, or a number with a unit, as in 200GB")
    return int(float(match[1]) * _UNITS[match[2]])


class NotFetched(OSError):
    """A file could not be read from the store; the cache is not at fault."""


class Differs(OSError):
    """A file that was fetched whole is not the one that its hash names."""


class Cache:
    """Files of one set in the node's cache, in a folder of this user, named after the set's place and digest.

    After its place, too: a manifest may claim the digest of another set, whose files it would replace or read.

    A file has its final name only when it is complete and has the hash that the manifest names. A lock on its part
    guards fetching, a lock on the whole cache guards eviction; both vanish with their process. The least recently used
    files are evicted first. A process that has an evicted file open can still read it.

    Files are not synced as `whole_file` does it: they can be fetched again, and images have checksums.

    Args:
        store: The set's files.
        digest: Identity of the set's bytes.
        folder: Cache folder; None: the environment's.
        bound: Limit in bytes; None: the environment's.

    Raises:
        PermissionError: The folder belongs to another user, or others may write to it.
        OSError: The folder cannot be created.
    """

    def __init__(self, store: Store, digest: str, folder: Path | None = None, bound: int | None = None) -> None:
        self.store = store
        self.root = folder or cache_folder()
        whose = f"{store.url}\n{digest}\n{os.geteuid()}"
        self.folder = self.root / hashlib.sha256(whose.encode("utf-8", "surrogateescape")).hexdigest()[:32]
        self._bound = cache_bytes() if bound is None else bound
        self._used: dict[str, float] = {}
        private_folder(self.folder)

    def path(self, name: str) -> Path:
        """Path of a file, if it is in the cache."""
        return self.folder / name

    def pread(self, name: str, offset: int, size: int) -> bytes | None:
        """Bytes of a file in the cache; None if it is not cached.

        Raises:
            OSError: The cache cannot be read.
        """
        try:
            descriptor = os.open(self.path(name), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            return None
        try:
            if not is_own(descriptor):  # where others may write to `root`, they may put another folder into its place
                return None
            # At most once a second: eviction needs no finer order, and training reads thousands of images a second.
            now = time.time()
            if now - self._used.get(name, 0.0) > 1.0:
                self._used[name] = now
                with contextlib.suppress(OSError):  # of a disk that has become read-only
                    os.utime(descriptor)  # the time of the last use; many mounts do not keep the access time (relatime)
            return os.pread(descriptor, os.fstat(descriptor).st_size if size < 0 else size, offset)
        finally:
            os.close(descriptor)

    def read(self, name: str) -> bytes | None:
        """Content of a file in the cache; None if it is not cached.

        Raises:
            OSError: The cache cannot be read.
        """
        return self.pread(name, 0, -1)

    def fetch(self, name: str, size: int, sha256: str = "", idle: float = 0.0, wait: bool = True) -> bool:
        """Bring a file into the cache; returns whether it is there now.

        Args:
            name: The file's name.
            size: Its size in bytes.
            sha256: Its hash, hex; empty if it is not known.
            idle: Evict only files that have not been used for this many seconds.
            wait: Wait if another process is fetching the file; else return False.

        Raises:
            NotFetched: The store cannot be read.
            Differs: The file has another hash.
            OSError: The cache cannot be written.
        """
        return self._bring(name, size, sha256, idle, wait, self._download(name, size))

    def keep(self, name: str, data: bytes, idle: float = 0.0) -> bool:
        """Store a file that has been read; otherwise as `fetch`."""
        return self._bring(name, len(data), "", idle, False, [data])

    def _bring(self, name: str, size: int, sha256: str, idle: float, wait: bool, parts: Iterable[bytes]) -> bool:
        private_folder(self.folder)
        if self.path(name).exists():
            return True
        part = self.folder / (name + _PART)
        with held(part, wait) as descriptor:
            if descriptor is None:
                return False
            renamed = False
            try:
                if self.path(name).exists():  # another process has fetched it while this one waited
                    return True
                if not self._reserve(descriptor, size, idle):
                    return False
                found = write(descriptor, parts)
                if sha256 and found != sha256:
                    raise Differs(errno.EILSEQ, "its SHA-256 is not that of the manifest", f"{self.store.url}/{name}")
                os.replace(part, self.path(name))
                renamed = True
            finally:
                # Not after the rename: if the file has been evicted since, this may be another process's part.
                if not renamed:
                    with contextlib.suppress(OSError):  # of a disk that is gone, whose fault has been raised already
                        part.unlink()
        return True

    def _download(self, name: str, size: int) -> Iterator[bytes]:
        for start in range(0, size, _CHUNK):
            try:
                data = self.store.read_range(name, start, min(size, start + _CHUNK))
            except OSError as error:
                raise NotFetched(error.errno, error.strerror, error.filename) from error
            if len(data) != min(size - start, _CHUNK):
                raise NotFetched(
                    errno.EIO, f"ends after {start + len(data):,} of {size:,} bytes", f"{self.store.url}/{name}"
                )
            yield data

    def bound(self, used: int = 0) -> int:
        """Bytes that the cache may use, given that it uses `used` now."""
        if self._bound is not None:
            return self._bound
        return (shutil.disk_usage(self.root).free + used) // 2

    def _reserve(self, descriptor: int, size: int, idle: float) -> bool:
        """Make room for a part and give it its size; False if the limit leaves none."""
        # One process at a time: two that count the same free bytes would both use them.
        with held(self.root / f"lock-{os.geteuid()}", wait=True):
            os.ftruncate(descriptor, 0)  # it may be left from a dead process
            files = sorted(self._files(), key=lambda file: file[1])
            used = sum(size for _, _, size in files)
            short = size - shutil.disk_usage(self.root).free  # what lies on a disk besides the cache may fill it
            excess = max(used + size - self.bound(used), short)
            latest = time.time() - idle
            removable = [file for file in files if file[0].suffix != _PART and (not idle or file[1] < latest)]
            if excess > sum(size for _, _, size in removable):
                if excess == short:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.root))
                return False
            for path, _, length in removable:
                if excess <= 0:
                    break
                path.unlink(missing_ok=True)
                excess -= length
            os.ftruncate(descriptor, size)  # under the lock: from here on, others count it as used
            return True

    def _files(self) -> Iterator[tuple[Path, float, int]]:
        """Files of all sets: path, last use, bytes. Removes parts of dead processes."""
        folders = [folder for folder in self.root.iterdir() if _OURS.fullmatch(folder.name) and _is_own(folder)]
        for folder in folders:
            for path in folder.iterdir():
                with contextlib.suppress(FileNotFoundError):  # renamed or removed since it was listed
                    if path.suffix == _PART and abandoned(path):
                        path.unlink()
                        continue
                    found = path.stat()
                    yield path, found.st_mtime, found.st_size


def _is_own(folder: Path) -> bool:
    found = folder.lstat()
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid()
