"""Options of a packing."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from shards.errors import PackError
from shards.format.layout import MAX_SHARD_SIZE
from shards.format.scaling import check_percentiles
from shards.images.options import MAX_PIXELS, MAX_SIDE, MIN_SIDE, EncodeOptions
from shards.storage.network import RETRIES, TIMEOUT, Network
from shards.storage.places import is_url, local
from shards.words import display

SOURCES = ("auto", "folder", "list", "csv", "jsonl", "parquet", "arrow", "tars", "targz", "zips", "lmdb")
EXECUTORS = ("local", "ray")
UNREACHABLE = ("fail", "leave-out")
DUPLICATES = ("exact", "near")
NEAR_DISTANCE = 48  # chosen from the table in docs/how-to/filter.md
MAX_DISTANCE = 64  # beyond it, different images are as near as copies
_HEADER = re.compile(r"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([^\r\n\0]+)")
MAX_WORKERS = 1024
_ANY = 2**63 - 1  # the largest number that files of other programs hold


@dataclass(frozen=True)
class PackOptions:
    """What to pack, where to, and how.

    Attributes:
        src: Folder, list or table of images, tars, zips, or an LMDB database; a local path or an fsspec URL.
        out: Folder of the shard set, local or an fsspec URL; created if missing.
        source: Kind of `src`; `auto` detects it from name and content.
        root: Base of relative paths in a list or table; None: the folder that holds it.
        path_column: Column of a table with the images' paths or URLs.
        image_column: Column of Parquet or Arrow files with the images themselves; None: found by its type.
        label_column: Column with labels, numbers or names; None: no labels, but for files with images, which may say
            that a column has classes.
        name_column: Column with the images' names, which the set keeps with their URLs; None: a path or URL is the
            name, and, of an image in a row, the row's number and the `path` beside the image.
        label_from: Where labels come from, in place of the source's own: see `sources.labelled.VOCABULARY`.
        labels: File with the names and labels of the images, in place of the source's own; see `sources.label_files`.
            Or ILSVRC2012's development kit, for its validation set; see `sources.devkit`.
        synsets: File with the WNIDs of the numbers in a ground truth that `labels` names; None: the kit's meta.mat.
        workers: Processes, or concurrent Ray tasks; 0: one per core. Does not affect the bytes.
        shard_size: Images per shard before bad ones are left out.
        resize: See EncodeOptions, as for `quality`, `max_side`, `max_pixels` and `check`.
        quality: See EncodeOptions.
        max_side: See EncodeOptions.
        max_pixels: See EncodeOptions.
        check: See EncodeOptions.
        srgb: See EncodeOptions.
        keep_16_bit: See EncodeOptions.
        percentiles: Of the values of 16-bit images: those between which they are scaled to [0, 1]. Affects the manifest
            alone. None: those of the set that is appended to, or `scaling.PERCENTILES`.
        min_side: See EncodeOptions, as for `max_aspect` and `drop_blank`.
        max_aspect: See EncodeOptions.
        drop_blank: See EncodeOptions.
        drop_duplicates: Of images with the same content (`exact`), or also of near copies (`near`), pack one.
        near_distance: Differing bits of 256 up to which perceptual hashes make near copies; None: NEAR_DISTANCE.
        not_in: Other sets, folders, lists, tables or tars: images that they hold too are left out, with near copies
            unless `drop_duplicates` is `exact`.
        names: Keep the images' names in the source, which quarantine files and features then give.
        seed: Seed of the global order.
        exclude: Shell patterns of files and folders to leave out; see `sources.selection.Selection`.
        include_hidden: Pack hidden and system files and folders as well.
        all_splits: Pack a folder of splits (`train`, `val`) as it is, with these as the classes; by default its
            training split is packed. See `splits.training_split`.
        limit: Pack only this many images, the first of the global order, which is random.
        overwrite: Replace a different set in `out`.
        append: Add the images to the set in `out`, in new shards; see `appending`.
        executor: `local` packs in this process or a pool of processes, `ray` on a Ray cluster.
        ray_address: Address of the cluster; None starts Ray on this machine.
        dry_run: Make the plan, print a summary, and stop before any image is read.
        timeout: See Network, as for `retries` and `user_agent`; these and `headers` affect no byte of the set.
        retries: See Network.
        user_agent: See Network.
        headers: Headers for web servers, as `NAME: VALUE`. They may hold secrets: they are neither logged nor stored.
        unreachable: What images are that cannot be reached after all retries: `fail` fails their shard, which a rerun
            packs; `leave-out` leaves them out, unless no image of the shard can be read.
    """

    src: str | Path
    out: str | Path
    source: str = "auto"
    root: str | Path | None = None
    path_column: str = "path"
    image_column: str | None = None
    label_column: str | None = None
    name_column: str | None = None
    label_from: str = "auto"
    labels: str | Path | None = None
    synsets: str | Path | None = None
    workers: int = 0
    shard_size: int = 2000
    resize: int | None = None
    quality: int = 90
    max_side: int = MAX_SIDE
    max_pixels: int = MAX_PIXELS
    check: bool = True
    srgb: bool = False
    keep_16_bit: bool = False
    percentiles: Sequence[float] | None = None
    min_side: int | None = None
    max_aspect: float | None = None
    drop_blank: bool = False
    drop_duplicates: str | None = None
    near_distance: int | None = None
    not_in: Sequence[str | Path] = ()
    names: bool = True
    seed: int = 0
    exclude: Sequence[str] = ()
    include_hidden: bool = False
    all_splits: bool = False
    limit: int | None = None
    overwrite: bool = False
    append: bool = False
    executor: str = "local"
    ray_address: str | None = None
    dry_run: bool = False
    timeout: float = TIMEOUT
    retries: int = RETRIES
    user_agent: str | None = None
    headers: Sequence[str] = field(default=(), repr=False)
    unreachable: str = "fail"

    @property
    def network(self) -> Network:
        """Settings of the connections to remote stores."""
        pairs = [_HEADER.fullmatch(header.strip()) for header in self.headers]
        if None in pairs:  # not the value, which may be a secret
            raise PackError("--header has to be 'NAME: VALUE', in one line")
        headers = tuple((found[1], found[2]) for found in pairs if found)
        return Network(self.timeout, self.retries, headers, self.user_agent)

    def __post_init__(self) -> None:
        """Turn `file:///` URLs into paths, and a single text into a sequence of one."""
        for name in ("src", "out", "root", "labels", "synsets"):
            value = getattr(self, name)
            if isinstance(value, str):
                object.__setattr__(self, name, local(value))  # the dataclass is frozen
        if self.percentiles is not None:
            object.__setattr__(self, "percentiles", tuple(self.percentiles))
        for name in ("exclude", "headers"):
            if isinstance(value := getattr(self, name), str):  # one, not a sequence of letters
                object.__setattr__(self, name, (value,))
        others = [self.not_in] if isinstance(self.not_in, str | Path) else self.not_in
        object.__setattr__(self, "not_in", tuple(local(os.fspath(other)) for other in others))

    @property
    def encoding(self) -> EncodeOptions:
        """Options of the treatment of each image."""
        common = (self.resize, self.quality, self.max_side, self.max_pixels, self.check)
        filters = (self.min_side or MIN_SIDE, self.max_aspect, self.drop_blank)
        return EncodeOptions(*common, *filters, self.srgb, self.keep_16_bit)

    @property
    def compares(self) -> bool:
        """Whether images are compared before packing."""
        return bool(self.drop_duplicates or self.not_in)

    @property
    def near(self) -> bool:
        """Whether near copies are looked for."""
        return self.compares and self.drop_duplicates != "exact"

    @property
    def distance(self) -> int:
        """The distance of near copies."""
        return NEAR_DISTANCE if self.near_distance is None else self.near_distance

    def deciding(self) -> dict[str, Any]:
        """The options that affect the bytes of the set."""
        names = ("shard_size", "resize", "quality", "max_side", "max_pixels", "check", "seed", "limit")
        deciding: dict[str, Any] = {name: getattr(self, name) for name in names}
        # Only where given, so that sets of versions without these options are continued.
        if self.exclude:
            deciding["exclude"] = sorted(set(self.exclude))
        if self.include_hidden:
            deciding["include_hidden"] = True
        for name in ("srgb", "keep_16_bit"):
            if getattr(self, name):
                deciding[name] = True
        if not self.names:
            deciding["names"] = False
        for name in ("min_side", "max_aspect", "drop_blank", "drop_duplicates"):
            if getattr(self, name):
                deciding[name] = getattr(self, name)
        if self.near:
            deciding["near_distance"] = self.distance
        return deciding

    def validate(self) -> None:
        """Raise PackError if a value is out of range."""
        ranges = {
            "workers": (self.workers, 0, MAX_WORKERS),
            "shard-size": (self.shard_size, 1, MAX_SHARD_SIZE),
            "resize": (self.resize, MIN_SIDE, MAX_SIDE),
            "quality": (self.quality, 1, 95),
            "max-side": (self.max_side, MIN_SIDE, MAX_SIDE),
            "min-side": (self.min_side, 1, MAX_SIDE),
            "max-aspect": (self.max_aspect, 1, MAX_SIDE),
            "near-distance": (self.near_distance, 0, MAX_DISTANCE),
            "max-pixels": (self.max_pixels, MIN_SIDE * MIN_SIDE, MAX_PIXELS),
            "seed": (self.seed, 0, _ANY),
            "limit": (self.limit, 1, _ANY),
            "timeout": (self.timeout, 0.1, 3600),
            "retries": (self.retries, 0, 100),
        }
        for name, (value, low, high) in ranges.items():
            if value is not None and not low <= value <= high:
                allowed = f"is below {low}" if high == _ANY and value < low else f"is outside {low}..{high}"
                raise PackError(f"--{name} {value} {allowed}")
        choices = {
            "source": (self.source, SOURCES),
            "executor": (self.executor, EXECUTORS),
            "unreachable": (self.unreachable, UNREACHABLE),
            "drop-duplicates": (self.drop_duplicates or DUPLICATES[0], DUPLICATES),
        }
        for name, (value, known) in choices.items():
            if value not in known:
                raise PackError(f"unknown --{name} {value!r}; known: {', '.join(known)}")
        if self.near_distance is not None and not self.near:
            raise PackError(f"--near-distance {self.near_distance} is for --drop-duplicates near, or --not-in")
        self._check_16_bit()
        if self.append and self.overwrite:
            raise PackError("--append keeps what --out holds, and --overwrite replaces it; leave one of them out")
        _ = self.network  # checks the headers
        if self.src:  # empty for a data set
            check_apart(self.src, self.out)

    def _check_16_bit(self) -> None:
        if self.keep_16_bit and self.srgb:
            raise PackError("--srgb converts 8 bits, and --keep-16-bit packs values as they are; leave one of them out")
        if self.percentiles is None:
            return
        given = " ".join(f"{value:g}" for value in self.percentiles)
        if not self.keep_16_bit:
            raise PackError(f"--percentiles {given} are of 16-bit images: give --keep-16-bit, or leave them out")
        try:
            check_percentiles(*self.percentiles)
        except (TypeError, ValueError) as error:
            raise PackError(f"--percentiles {given}: {error}; give two, such as 0.1 99.9") from None


def check_apart(src: str | Path, out: str | Path) -> None:
    """Raise PackError if two local places are one, or one is inside the other; links are followed."""
    if is_url(src) or is_url(out):
        return
    real_src, real_out = os.path.realpath(src), os.path.realpath(out)
    common = os.path.commonpath((real_src, real_out))
    if common not in (real_src, real_out):
        return
    how = "is the same as" if real_src == real_out else "is inside" if common == real_src else "holds"
    name = os.path.basename(real_out)
    beside = os.path.join(os.path.dirname(common), name if name != os.path.basename(common) else f"{name}-shards")
    raise PackError(
        f"--out {display(str(out))} {how} --src {display(str(src))}; name a folder outside it, such as --out"
        f" {display(shlex.quote(beside))}"
    )
