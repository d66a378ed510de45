"""Images as a shard set: a set as it is, anything else packed first, into the cache."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import shlex
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from fastmoco.config import ConfigError
from shards.errors import PackError
from shards.format.layout import SCHEMA
from shards.format.manifest import MANIFEST
from shards.packing.iterables import source_digest
from shards.packing.lock import HeldError
from shards.packing.options import PackOptions
from shards.packing.pack import options_of, pack
from shards.packing.sources import Record, open_source
from shards.packing.sources.items import Items
from shards.packing.sources.tables import ListSource
from shards.packing.splits import training_split
from shards.storage.cache import FOLDER, cache_folder
from shards.storage.places import is_url, local
from shards.storage.private import own_of, private_folder

log = logging.getLogger(__name__)

PACKED = "packed"
"""Folder of the cache with the sets that are packed here. Eviction, which is for copies of remote shards, leaves it."""
_UNFINISHED = ("packing.partial", "indexing.partial")
_HASHES = 1 << 256
_NOT_OF_BYTES = (
    *("source", "root", "path_column", "image_column", "label_column", "name_column", "label_from", "labels"),
    *("synsets", "not_in", "percentiles"),
)
"""Options that decide what is in a set, too: which images, labels, names and scaling."""


@dataclass(frozen=True)
class Source:
    """A shard set to read.

    Attributes:
        place: Folder of the set, or its URL.
        packed: What it was packed with, where images were; None for a set.
    """

    place: str | Path
    packed: PackOptions | None = None


def sources_of(source: Any, several: bool) -> list[Any]:
    """The sources in a list of them, or the one that is no such list.

    Args:
        source: As of `fastmoco.pretrain`.
        several: A list is one of sources, whatever it holds. Otherwise it may be a data set of images or their paths.
    """
    if isinstance(source, list | tuple) and (several or (source and all(map(_is_place, source)))):
        return list(source)
    return [source]


def _is_place(source: Any) -> bool:
    return isinstance(source, str | os.PathLike) and (is_url(os.fspath(source)) or os.path.isdir(source))


def as_set(source: Any, packing: Mapping[str, Any] | None = None, *, keep_16_bit: bool = False) -> Source:
    """The shard set of a source: a set itself, or that of images, packed into the cache if it is not there.

    A packed set is in the folder `packed` of the cache (FASTMOCO_CACHE, default ~/.cache/fastmoco), named after a
    hash of its content: of a folder the paths, sizes and times of modification of all images that packing selects, of a
    data set the images and labels; and of the options of packing. It stays until somebody removes it.

    Args:
        source: Folder or URL of a shard set; local folder of images, or of files that hold them, or such a file (tar,
            zip, Parquet, Arrow); or a data set or iterable as of `shards.pack`.
        packing: Options of packing, as of `shards.pack`; for images only.
        keep_16_bit: Whether images that are packed keep 16 bits; a set has the bits that it has.

    Raises:
        ConfigError, PackError: The source cannot be packed.
    """
    kept = {**(packing or {}), **({"keep_16_bit": True} if keep_16_bit else {})}
    if not isinstance(source, str | os.PathLike):
        return Source(_packed_items(source, kept))
    place = local(os.fspath(source))
    if is_url(place) or not _is_images(Path(place)):
        if packing:
            raise ConfigError(f"packing={dict(packing)!r} is for folders of images, and {place} is none")
        return Source(place if is_url(place) else Path(place))
    return _packed_folder(Path(place), kept)


def _is_images(path: Path) -> bool:
    """Whether a path is a file, or a folder that is no shard set."""
    return path.is_file() or (path.is_dir() and not any((path / name).exists() for name in (MANIFEST, *_UNFINISHED)))


def _packed_folder(folder: Path, packing: Mapping[str, Any]) -> Source:
    options = options_of(str(folder), cache_folder() / PACKED / "-", packing)
    options.validate()
    options, lines = training_split(options)
    if lines:
        command = f"fastmoco pack --src {shlex.quote(str(folder))} --all-splits --out SET"
        _say("%s; to take all of it: %s, and give SET", lines[0], command)
    source = open_source(options)
    if isinstance(source.base, ListSource):  # its images may be anywhere
        raise ConfigError(f"{folder} is a file; pack it by shards.pack({str(folder)!r}, SET), and give SET")
    total = 0
    for found in source.records():
        if isinstance(found, Record):
            # Times, not bytes: those of a large folder take as long to read as an epoch.
            try:
                changed = os.stat(os.path.join(os.fsencode(source.root), found.path)).st_mtime_ns
            except FileNotFoundError:  # removed since it was listed
                continue
            text = b"%s\0%s\0%d\0%d" % (found.path, found.member, found.size, changed)
            # A sum, since folders list their files in any order.
            total += int.from_bytes(hashlib.sha256(text).digest(), "big")
    if not total:
        raise PackError(f"{folder} is neither a shard set nor a source of images: it has no image")
    out = _place(f"{total % _HASHES:064x}", options)
    given = replace(options, out=out)
    _pack_once(out, str(folder), lambda: pack(given))
    return Source(out, given)


def _packed_items(source: Any, packing: Mapping[str, Any]) -> Path:
    names = ("classes", "shuffle")
    arguments = {name: packing[name] for name in names if name in packing}
    given = {name: value for name, value in packing.items() if name not in names}
    options = options_of("", "", given)
    options.validate()
    columns = options.image_column, options.label_column
    items = Items(
        source,
        **arguments,
        seed=options.seed,
        image_column=columns[0],
        label_column=columns[1],
        keep_16_bit=options.keep_16_bit,
    )
    what = f"the {type(source).__qualname__}"
    if not items.repeatable:
        raise ConfigError(
            f"{what} can be read only once, and its images have to be read twice, to find their set in the cache; pack "
            "them by shards.pack(IMAGES, SET), and give SET"
        )
    _say("reading the images of %s, to find their set in the cache", what)
    identity = source_digest(items, options)
    out = _place(identity, options)
    _pack_once(out, what, lambda: pack(source, out, **arguments, **given))
    if json.loads((out / MANIFEST).read_text(encoding="utf-8"))["plan"] != identity:
        raise PackError(
            f"{what} gives other images each time it is read, so it cannot be found in the cache again; leave out its "
            f"random transforms, or pack it by shards.pack(IMAGES, SET), and give SET (packed now: {out})"
        )
    return out


def _place(content: str, options: PackOptions) -> Path:
    """Folder of the cache for the set of a content and options."""
    # "names": sets of earlier versions do not keep them
    described: list[Any] = [SCHEMA, "names", options.deciding(), content]
    usual = {field.name: field.default for field in fields(options)}
    others = {name: value for name in _NOT_OF_BYTES if (value := getattr(options, name)) != usual[name]}
    if others:
        files = [str(path) for path in (options.labels, options.synsets, *options.not_in) if path is not None]
        described += [others, [_changed(path) for path in files]]
    text = json.dumps(described, sort_keys=True, default=str)
    folder = cache_folder() / PACKED
    try:
        folder = own_of(folder)
        private_folder(Path(os.path.realpath(folder)))  # a user may have put a link there
    except OSError as error:
        raise ConfigError(
            f"cannot use the cache folder {folder}: {error.strerror}; set {FOLDER} to a folder of your own"
        ) from None
    return folder / hashlib.sha256(text.encode()).hexdigest()[:32]


def _changed(path: str) -> int:
    """When a file, or a shard set in a folder, was changed, in nanoseconds; 0 of a URL, and of what packing refuses."""
    for place in (os.path.join(path, MANIFEST), path):
        with contextlib.suppress(OSError):
            return os.stat(place).st_mtime_ns
    return 0


def _pack_once(out: Path, what: str, run: Callable[[], object]) -> None:
    """Pack unless the set is complete; of several processes one packs, and the others wait for it."""
    waiting = False
    while not (out / MANIFEST).exists():
        try:
            if not waiting:
                _say("packing %s into %s; later calls find it there", what, out)
            run()
        except HeldError as error:
            if not waiting:
                _say("%s; waiting", str(error).partition(";")[0])
            waiting = True
            time.sleep(0.5)
    _say("%s is packed in %s", what, out)


def _say(message: str, *arguments: object) -> None:
    """Log on rank 0 alone: under torchrun all ranks look for the set."""
    if os.environ.get("RANK", "0") == "0":
        log.info(message, *arguments)
