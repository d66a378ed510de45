"""A summary of a shard set: totals, histograms, classes, options."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from shards.format.manifest import NUMBERED, QUARANTINE, Quarantined
from shards.reader import ShardSet
from shards.words import counted, display, human_bytes

_SHOWN_CLASSES = 8
_CHUNK = 1 << 20  # rows counted at a time
_SIDES = 1 << 16  # widths and heights are uint16
_BAR = 40  # characters in the longest bar
_COLOURS = {1: "grey", 3: "RGB"}


@dataclass
class Figures:
    """Counts over the rows of a set, in constant memory.

    Attributes:
        sides: Images by width, by height and by shorter side: int64[3, 65536].
        pixels: Images by floor(log2) of their pixels: int64[33].
        sizes: Images by floor(log2) of their bytes: int64[33].
        labels: Images by label: int64[classes].
        unlabelled: Images without a label.
        total_pixels: Of all images.
        total_bytes: Of all image files.
    """

    labels: np.ndarray
    sides: np.ndarray = field(default_factory=lambda: np.zeros((3, _SIDES), np.int64))
    pixels: np.ndarray = field(default_factory=lambda: np.zeros(33, np.int64))
    sizes: np.ndarray = field(default_factory=lambda: np.zeros(33, np.int64))
    unlabelled: int = 0
    total_pixels: int = 0
    total_bytes: int = 0

    def add(self, rows: np.ndarray) -> None:
        """Count ROW[N]."""
        width, height = rows["width"].astype(np.int64), rows["height"].astype(np.int64)
        for counts, values in zip(self.sides, (width, height, np.minimum(width, height)), strict=True):
            counts += np.bincount(values, minlength=_SIDES)
        self.pixels += _by_power(width * height)
        self.sizes += _by_power(rows["size"])
        labels = rows["label"][rows["label"] >= 0]
        self.labels += np.bincount(labels, minlength=len(self.labels))
        self.unlabelled += len(rows) - len(labels)
        self.total_pixels += int((width * height).sum())
        self.total_bytes += int(rows["size"].sum(dtype=np.int64))


def figures(shard_set: ShardSet) -> Figures:
    """Count over all rows of a set."""
    found = Figures(np.zeros(len(shard_set.classes), np.int64))
    for start in range(0, len(shard_set), _CHUNK):
        found.add(shard_set.rows(np.arange(start, min(start + _CHUNK, len(shard_set)))))
    return found


def describe(shard_set: ShardSet) -> Iterator[str]:
    """Lines about a set: totals, sizes, compression, classes, options, images left out."""
    manifest, found = shard_set.manifest, figures(shard_set)
    by = "" if manifest.keys == NUMBERED else ", indexed tars"
    yield f"set        {display(str(shard_set.path))}{by}"
    shards = counted(len(manifest.records), "shard")
    yield f"images     {len(shard_set):,} in {shards}, {human_bytes(manifest.bytes)}"
    yield from _pixels(shard_set)
    data, pixels = found.total_bytes, found.total_pixels
    yield f"mean       {human_bytes(data / len(shard_set))} an image, {pixels / len(shard_set) / 1e6:.3g} megapixels"
    of_raw, raw = 3 * pixels / data, "8-bit RGB"
    if manifest.bits == 16:
        of_raw, raw = 2 * manifest.channels * pixels / data, f"16-bit {_COLOURS[manifest.channels]}"
    yield (
        f"compressed {8 * data / pixels:.2f} bits a pixel, {of_raw:.1f} to 1 against {raw};"
        f" {100 * (1 - data / manifest.bytes):.1f} % of the tars is overhead"
    )
    for name, counts in zip(("width", "height", "short side"), found.sides, strict=True):
        low, quarter, half, three, high = _quantiles(counts)
        yield f"{name:<10} {low} to {high} pixels, quartiles {quarter}, {half}, {three}"
    yield from _histogram("pixels", found.pixels, "")
    yield from _histogram("file size", found.sizes, "B")
    yield from _classes(shard_set.classes, found.labels, found.unlabelled)
    yield "options    " + ", ".join(f"{name} {value}" for name, value in manifest.options.items())
    yield "source     " + ", ".join(_source(manifest.source))
    for part in manifest.appended:
        shards = f"shards {part.first} to {part.first + part.shards - 1}"
        yield f"appended   {', '.join(_source(part.source))}, in {shards}"
    yield f"made by    {', '.join(f'{name} {version}' for name, version in manifest.made_by.items())}"
    yield f"digest     {shard_set.digest}"
    yield f"left out   {manifest.quarantined:,}{_causes(shard_set) if manifest.quarantined else ''}"


def _pixels(shard_set: ShardSet) -> Iterator[str]:
    """Channels and bits, the range of 16 bits, and how many images were reduced to 8."""
    manifest, scaling = shard_set.manifest, shard_set.scaling
    colours = "1 channel (all grey)" if manifest.channels == 1 else "3 channels"
    yield f"pixels     {manifest.bits} bits, {colours}"
    if scaling is not None:
        low, high = (f"{percent:g} %" for percent in scaling.percentiles)
        ranges = ", ".join(f"{a:,} to {b:,}" for a, b in zip(scaling.low, scaling.high, strict=True))
        yield f"scaling    {ranges} ({low} to {high} of all values)"
    reduced = sum(record.reduced for record in manifest.records)
    if reduced:
        yield f"reduced    {counted(reduced, 'image')} of 16 bits to 8, without --keep-16-bit"
    own_range = sum(record.own_range for record in manifest.records)
    if own_range:
        yield f"ranges     {counted(own_range, 'image')} of floats or 32 bits, scaled by the range of each"
    several = sum(record.several for record in manifest.records)
    if several:
        yield f"pages      {counted(several, 'TIFF')} with several pages, of which the first is packed"


def _by_power(values: np.ndarray) -> np.ndarray:
    """Counts of positive integers by floor(log2): int64[33]; zeros count as ones."""
    exponents = np.frexp(np.maximum(values, 1).astype(np.float64))[1] - 1
    return np.bincount(exponents, minlength=33)


def _quantiles(counts: np.ndarray) -> list[int]:
    """Minimum, quartiles and maximum of the counted values; each is a value that occurs."""
    sums = np.cumsum(counts)
    last = int(sums[-1]) - 1
    return [int(np.searchsorted(sums, round(share * last) + 1)) for share in (0, 0.25, 0.5, 0.75, 1)]


def _histogram(name: str, counts: np.ndarray, unit: str) -> Iterator[str]:
    """A bar for each power of two from the smallest to the largest."""
    powers = np.flatnonzero(counts)
    for power in range(powers[0], powers[-1] + 1):
        share = counts[power] / counts.max()
        bar = "#" * max(round(_BAR * share), int(counts[power] > 0))
        label = f"{name if power == powers[0] else '':<10} {_power(power, unit):>8} to {_power(power + 1, unit):<8}"
        yield f"{label} {counts[power]:>13,}  {bar}".rstrip()


def _power(power: int, unit: str) -> str:
    """A power of two: `64 Ki`."""
    value, prefix = 2 ** (power % 10), ("", "Ki", "Mi", "Gi")[power // 10]
    return f"{value} {prefix}{unit}".strip()


def _classes(names: tuple[str, ...], counts: np.ndarray, unlabelled: int) -> Iterator[str]:
    if not names:
        yield "classes    none: no labels"
        return
    without = f"; {counted(unlabelled, 'image')} without a label" if unlabelled else ""
    yield f"classes    {len(names):,}, of {counts.min():,} to {counts.max():,} images{without}"
    for label in range(min(len(names), _SHOWN_CLASSES)):
        yield f"  {label:>8} {names[label]}: {counts[label]:,}"
    if len(names) > _SHOWN_CLASSES:
        yield f"       ... and {len(names) - _SHOWN_CLASSES:,} more"
    empty = [names[label] for label in np.flatnonzero(counts == 0).tolist()]
    if empty:
        shown = ", ".join(empty[:_SHOWN_CLASSES]) + (", ..." if len(empty) > _SHOWN_CLASSES else "")
        yield f"           no image of {len(empty):,} {'class' if len(empty) == 1 else 'classes'}: {shown}"


def _source(source: dict[str, object]) -> Iterator[str]:
    for name, noun in (("images", "file"), ("tars", "tar")):
        count = source.get(name)
        if isinstance(count, int):
            yield counted(count, noun)
    size = source.get("bytes")
    if isinstance(size, int):
        yield human_bytes(size)
    yield f"hash {str(source.get('hash'))[:16]}"


def _causes(shard_set: ShardSet) -> str:
    """Causes with their counts, from quarantine.jsonl; empty if that file is missing or damaged."""
    try:
        with shard_set.store.open(QUARANTINE) as file:
            causes = Counter(Quarantined.from_line(line).reason.partition(":")[0] for line in file)
    except (OSError, ValueError):  # the set is whole without that file
        return ""
    return " (" + ", ".join(f"{count:,} {cause}" for cause, count in causes.most_common()) + ")"
