"""Opening a shard set. Each error names the place and the command that creates or repairs the set."""

from __future__ import annotations

import logging
import shlex
from pathlib import Path

from shards.errors import ShardIndexError, ShardSetError, StoreError
from shards.format.manifest import MANIFEST, NUMBERED, Manifest
from shards.format.parsing import MAX_BYTES, parse_manifest
from shards.storage.access import Access
from shards.storage.base import Store
from shards.storage.cache import FOLDER, Cache
from shards.storage.faults import MissingBucket, Unavailable
from shards.storage.local import LocalStore
from shards.storage.local_access import LocalAccess
from shards.storage.network import Network, patient
from shards.storage.remote import RemoteStore
from shards.storage.remote_access import REMEDY, RemoteAccess
from shards.storage.store import open_store
from shards.words import display, in_words

log = logging.getLogger("shards")
_PACK = "fastmoco pack --src"
_LOOKED_AT = 1000  # folders


def opened_store(path: str | Path) -> Store:
    try:
        return open_store(path, patient())
    except OSError as error:
        raise ShardSetError(f"cannot open the shard set {path}: {error.strerror}") from None


def opened_access(store: Store, digest: str) -> Access:
    try:
        return _open_access(store, digest, patient())
    except OSError as error:
        where = f"the cache folder {error.filename}: {error.strerror}"
        raise ShardSetError(f"cannot use {where}; set {FOLDER} to a folder of your own") from None


def _open_access(store: Store, digest: str, network: Network) -> Access:
    """Access to the files of a set.

    Args:
        store: The set's files.
        digest: Identity of its bytes, its key in the node's cache.
        network: How long to wait for a disk, as for a store.

    Raises:
        PermissionError: The cache folder is not this user's.
    """
    if isinstance(store, LocalStore):
        return LocalAccess(store, network)
    assert isinstance(store, RemoteStore)
    try:
        return RemoteAccess(store, Cache(store, digest))
    except PermissionError:
        raise
    except OSError as error:
        log.warning("there is no cache: %s; all images are read from %s; %s", in_words(error), store.url, REMEDY)
        return RemoteAccess(store, None)


def opened_manifest(store: Store, digest: str | None = None) -> Manifest:
    """The manifest of a set, or what it was when the set had a digest."""
    place = f"{store.url}/{MANIFEST}"
    try:
        manifest = parse_manifest(store.read(MANIFEST, MAX_BYTES), place)
        before = manifest if digest is None else manifest.before(digest)
        if before is None:
            raise ShardSetError(f"{store.url} never was the set with the digest {digest}; its own is {manifest.digest}")
        return before
    except FileNotFoundError:
        raise ShardSetError(_no_set(store, _names(store))) from None
    except OSError as error:
        if isinstance(error, NotADirectoryError) and store.local and store.local.is_file():
            raise ShardSetError(_file(store.local)) from None
        raise ShardSetError(f"cannot read {place}: {error.strerror}") from None


def _file(path: Path) -> str:
    """The message for a file in the place of a set."""
    if (path.parent / MANIFEST).is_file():
        return f"{path} is a file of a shard set; give the folder of the set: {path.parent}"
    return f"{path} is a file, and a shard set is a folder; to create one: {_PACK} FOLDER_OF_IMAGES --out FOLDER"


def _no_set(store: Store, names: list[str]) -> str:
    """The message for a place without a manifest, which holds `names`."""
    place = shlex.quote(store.url)
    command = f"{_PACK} FOLDER_OF_IMAGES --out {place}"
    # An object store has no empty folders, so no names mean no set. A local folder may be there and empty.
    if not names and not (store.local and store.local.is_dir()):
        return f"no shard set at {store.url}: no such folder; to create one: {command}"
    without = f"no {MANIFEST} in {store.url}"
    # Before the tars: an unfinished packing has tars, too, and must not be indexed.
    if "packing.partial" in names or any(name.startswith("shard-") and name.endswith(".json") for name in names):
        same = "to continue it, run the same fastmoco pack command again"
        return f"{without}, but an unfinished packing; {same}: {command}"
    if any(name.endswith(".tar") for name in names):
        return f"{without}, but tars; to turn them into a set: fastmoco index {place}"
    below = [store.local / name for name in names[:_LOOKED_AT]] if store.local else []
    found = next((folder for folder in below if (folder / MANIFEST).is_file()), None)
    if found:
        return f"{without}, but in folders of it; give one of these sets, such as {display(str(found))}"
    if names:  # packing refuses a folder that holds other files
        return f"{without}, so it is not a shard set; to pack images that it holds: {_PACK} {place} --out FOLDER"
    return f"{without}, so it is not a shard set; to create one: {command}"


def _names(store: Store) -> list[str]:
    try:
        return store.names()
    except OSError as error:
        raise ShardSetError(f"cannot read {store.url}: {error.strerror}") from None


def read_error(store: Store, name: str, keys: str, cause: OSError) -> StoreError:
    """The error to raise if a file of a set cannot be read, and no image is at fault.

    Args:
        store: The set's files.
        name: File name of the tar or index.
        keys: The manifest's `keys`, which decides the command that makes a missing tar again.
        cause: What reading it raised.
    """
    place = f"{store.url}/{name}"
    if _is_missing(cause):
        remedy = (
            "run the fastmoco pack command that packed the set again: it repairs it"
            if keys == NUMBERED
            else f"index the set without it: fastmoco index {store.url} --overwrite"
        )
        return StoreError(f"{place} is missing; put it back, or {remedy}")
    text = cause.after_waiting() if isinstance(cause, Unavailable) else cause.strerror
    return StoreError(f"cannot read {place}: {text}; run the same command again once it can be read")


def _is_missing(cause: Exception) -> bool:
    return isinstance(cause, FileNotFoundError) and not isinstance(cause, MissingBucket)


def index_error(store: Store, name: str, keys: str, cause: OSError | ValueError) -> ShardSetError:
    """The error to raise if the `.npy` of a shard cannot be read or is damaged.

    It is a StoreError if the file may be whole, as it is out of reach; else a ShardIndexError.

    Args:
        store: The set's files.
        name: File name of the index.
        keys: The manifest's `keys`, which decides the command that rebuilds the index.
        cause: What reading or parsing raised.
    """
    if isinstance(cause, OSError) and not _is_missing(cause):
        return read_error(store, name, keys, cause)
    place = f"{store.url}/{name}"
    what = f"cannot read {place}: {cause.strerror}" if isinstance(cause, OSError) else f"{store.url}/{cause}"
    if keys != NUMBERED:
        return ShardIndexError(f"{what}; to rebuild it: fastmoco index {store.url} --overwrite")
    # A packing that is run again checks which files a shard has, not their content: a damaged one has to be missing.
    first = "" if isinstance(cause, FileNotFoundError) else f"remove {name} and "
    return ShardIndexError(f"{what}; {first}run the fastmoco pack command that packed the set again: it repairs it")
