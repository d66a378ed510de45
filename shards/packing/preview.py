"""A dry run: the plan is made and described; no image is read."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from shards.errors import PackError
from shards.images import deep
from shards.packing import appending
from shards.packing.duplicates.others import Other, planned
from shards.packing.options import PackOptions
from shards.packing.plan import OFFSETS, ORDER, Plan, read_problems
from shards.packing.sources import Source, open_source
from shards.packing.sources.embedded import EmbeddedSource
from shards.packing.sources.gzipped import GzippedTars
from shards.packing.splits import hint, training_split
from shards.packing.staging import reading_text
from shards.storage.network import using
from shards.storage.store import open_store
from shards.words import counted, display, human_bytes


def preview(options: PackOptions) -> tuple[Plan, list[str]]:
    """The plan of a packing, and lines that describe it. Nothing is written to the output.

    The plan is made in a temporary folder (in TMPDIR), which is removed.

    Raises:
        PackError: As `pack` would before it begins; or the temporary folder is full.
    """
    options.validate()
    if options.keep_16_bit:
        deep.require()
    with using(options.network):
        return _preview(options)


def _preview(options: PackOptions) -> tuple[Plan, list[str]]:
    options, said = training_split(options)
    options.validate()  # links may lead from the split to the output
    source = open_source(options)
    with tempfile.TemporaryDirectory(prefix="fastmoco-") as folder:
        try:
            making = Path(folder) / "plan"
            store, whole_set = open_store(options.out) if options.append else None, None
            if store is not None:
                whole_set = appending.appendable(store)
                said = [*said, f"append to  {display(str(options.out))}, {counted(whole_set.samples, 'image')}"]
            plan, others = planned(options, source, making, whole_set)
            if store is not None and whole_set is not None:
                plan = appending.placed(store, plan, whole_set)
            return plan, said + list(_lines(options, source, plan, others, making))
        except OSError as error:
            raise PackError(
                f"{error.filename or folder}: {error.strerror}; set TMPDIR to a folder on a larger disk"
            ) from error


def _lines(options: PackOptions, source: Source, plan: Plan, others: Sequence[Other], folder: Path) -> Iterator[str]:
    yield f"source     {display(str(options.src))} ({source.kind}), {counted(plan.source['images'], 'image')}"
    size = human_bytes(plan.input_bytes) if plan.input_bytes else "size not known"
    yield f"to pack    {counted(plan.images, 'image')} ({size}) into {counted(plan.shards, 'shard')}"
    if isinstance(source.base, EmbeddedSource):
        yield f"reading    {reading_text(source.base, plan.images / plan.source['images'])}"
    if isinstance(source.base, GzippedTars):
        yield f"reading    {source.base.reading_text()}"
    names = ", ".join(plan.classes[:8]) + (", ..." if len(plan.classes) > 8 else "")
    yield f"classes    {len(plan.classes):,}: {names}" if plan.classes else "classes    none: no labels"
    if plan.problems:
        causes = Counter(problem.reason.partition(":")[0] for problem in read_problems(folder)).most_common()
        yield f"problems   {plan.problems:,} ({', '.join(f'{count:,} {cause}' for cause, count in causes)})"
    yield from _filters(options, plan, others)
    if source.ignored:
        yield f"ignored    {counted(source.ignored, 'file')} of other kinds"
    yield from (f"note       {text}" for text in (*source.notes(), *hint(options, plan.classes)))
    on_disk = sum((folder / name).stat().st_size for name in (ORDER, OFFSETS))
    yield f"plan       {human_bytes(on_disk)} on disk, identity {plan.identity[:16]}"


def _filters(options: PackOptions, plan: Plan, others: Sequence[Other]) -> Iterator[str]:
    """What would be left out once the images are read."""
    if options.min_side is not None:
        yield f"filter     images under {options.min_side} pixels on a side"
    if options.max_aspect is not None:
        yield f"filter     images of over {options.max_aspect:g} to 1"
    if options.drop_blank:
        yield "filter     images of a single colour"
    copies = f"near copies (up to {options.distance} of 256 bits)" if options.near else "equal files"
    if options.drop_duplicates:
        yield f"filter     {copies} of other images"
    for other in others:
        yield f"filter     {copies} of {counted(other.plan.images, 'image')} of {display(other.place)}"
    if options.compares:
        images = plan.images + sum(other.plan.images for other in others)
        yield f"scan       {counted(images, 'image')} are read once more, before packing, to be compared"
