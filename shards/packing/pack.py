"""Packing a source of images into a shard set: plan, resume, pack, commit."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import Any, overload

from shards.errors import PackError
from shards.format.manifest import Manifest, Quarantined, ShardRecord
from shards.images import deep
from shards.packing import appending, executors, iterables, output
from shards.packing.committing import commit, whole, without_images
from shards.packing.duplicates import comparing
from shards.packing.duplicates.others import Other, planned
from shards.packing.options import PackOptions
from shards.packing.plan import WORK, Plan, keep_plan, read_problems
from shards.packing.progress import Display
from shards.packing.running import run_tasks
from shards.packing.sources import Source, open_source
from shards.packing.sources.embedded import EmbeddedSource
from shards.packing.sources.gzipped import GzippedTars
from shards.packing.sources.items import Items
from shards.packing.splits import hint, training_split
from shards.packing.staging import stage
from shards.packing.task import Task
from shards.packing.unpacking import is_begun, unpack
from shards.storage.base import Store
from shards.storage.network import using
from shards.storage.store import open_store
from shards.words import display

_OF_FILES = {
    *("source", "root", "path_column", "name_column", "label_from", "labels", "synsets", "exclude"),
    *(
        "include_hidden",
        "all_splits",
        "executor",
        "ray_address",
        "drop_duplicates",
        "near_distance",
        "not_in",
        "append",
    ),
}
"""Options that do not apply to a data set."""


@overload
def pack(options: PackOptions, progress: bool = True, /) -> Manifest: ...


@overload
def pack(options: PackOptions, /, *, progress: bool = True) -> Manifest: ...


@overload
def pack(images: str | Path, out: str | Path, /, *, progress: bool = True, **options: Any) -> Manifest: ...


@overload
def pack(
    images: Iterable[Any],
    out: str | Path,
    /,
    *,
    classes: Sequence[str] | None = None,
    shuffle: bool | None = None,
    progress: bool = True,
    **options: Any,
) -> Manifest: ...


def pack(
    images: Any,
    out: str | Path | bool | None = None,
    /,
    *,
    classes: Sequence[str] | None = None,
    shuffle: bool | None = None,
    progress: bool = True,
    **options: Any,
) -> Manifest:
    """Pack images into a shard set; continues where an interrupted call with the same arguments stopped.

    The same images, options and seed produce the same bytes, whatever the workers and interruptions.

    Args:
        images: What to pack: PackOptions, which name everything; the path or URL of a folder, list, table or tars; or
            a torch Dataset or any iterable, whose items are images, `(image, label)`, or dictionaries with `image` and
            perhaps `label` and `name`; of a data set of Hugging Face, the files in its column of images are packed as
            they are. Images are PIL images; arrays [H, W] or [H, W, C] and tensors [C, H, W] of
            uint8, uint16 or bool; the bytes of image files, which are packed as files are; or paths.
        out: Folder of the shard set, or its fsspec URL; not with PackOptions.
        classes: Names of the classes by label, for an iterable; None: those of its attribute `classes`, if it has one.
        shuffle: For an iterable: read it in an order shuffled by `seed`. None: if it has a length and can be indexed;
            everything else can only be packed in its own order.
        progress: Show progress: a bar on a terminal, lines of text elsewhere.
        options: Fields of PackOptions by name, such as `resize=256`.

    Returns:
        The manifest of the complete set.

    Raises:
        PackError: An option is out of range, the source holds no images, an item is no image, the output holds
            something else, the disk is full, or shards failed.
    """
    if isinstance(images, PackOptions):
        if isinstance(out, bool):  # pack(OPTIONS, PROGRESS)
            out, progress = None, out
        if out is not None or options or classes is not None or shuffle is not None:
            raise PackError("PackOptions hold all options and the output; give nothing else with them")
        given, items = images, None
    else:
        if out is None or isinstance(out, bool):
            raise PackError("pack(images, out) needs the folder of the shard set to write")
        is_place = isinstance(images, str | os.PathLike)
        given = options_of(os.fspath(images) if is_place else "", out, options)
        if is_place and (classes is not None or shuffle is not None):
            raise PackError("classes and shuffle are for data sets and iterables; a folder has both from its files")
        items = (
            None
            if is_place
            else Items(images, classes, shuffle, given.seed, given.image_column, given.label_column, given.keep_16_bit)
        )
    given.validate()
    if given.dry_run:
        raise PackError("a dry run packs nothing: use shards.packing.preview.preview, or fastmoco pack --dry-run")
    executors.require(given.executor, given.ray_address)
    if given.keep_16_bit:
        deep.require()
    with using(given.network):
        return _pack_all(given, progress) if items is None else _pack_items(items, given, progress)


def options_of(src: str, out: str | Path, options: Mapping[str, Any]) -> PackOptions:
    """PackOptions by name; PackError for a name that is none, or that does not apply to a data set (`src` is empty)."""
    known = {field.name for field in fields(PackOptions)} - {"src", "out"}
    if not src:
        known -= _OF_FILES
    for name in options:
        if name not in known:
            close = get_close_matches(name, known)
            remedy = f"did you mean {' or '.join(close)}?" if close else f"known: {', '.join(sorted(known))}"
            raise PackError(f"unknown option {name}={options[name]!r}; {remedy}")
    return PackOptions(src, out, **options)


def _pack_items(items: Items, options: PackOptions, progress: bool) -> Manifest:
    """Pack a data set or iterable."""
    shown = Display(progress)
    store = _opened(options)
    files = output.open_output(store)
    try:
        with output.held(store) as check:
            packed = iterables.pack_into(items, options, store, files, shown, check)
            check()
            finish = _finish(appending.appended_to(store))
            manifest, left_out = finish(store, packed.plan, packed.records, (), options.percentiles)
            without = without_images(store, manifest)
            output.finish(store)
    except OSError as error:
        raise _interrupted(store, error) from error
    shown.summary(appending.part_of(manifest, packed.plan), None, left_out, without, store.url)
    return manifest


def _finish(whole_set: Manifest | None) -> Callable[..., tuple[Manifest, list[Quarantined]]]:
    """What completes a set: it alone, or one that has more shards than those of a plan."""
    return commit if whole_set is None else partial(appending.commit, whole_set)


def _opened(options: PackOptions) -> Store:
    try:
        return open_store(options.out)
    except OSError as error:
        raise PackError(f"--out {display(str(options.out))}: {error.strerror}") from None


def _interrupted(store: Store, error: OSError) -> PackError:
    where = display(error.filename or store.url)
    return PackError(f"{where}: {error.strerror}; when that is fixed, run the same command again to continue")


def _pack_all(options: PackOptions, progress: bool) -> Manifest:
    shown = Display(progress)
    asked, (options, lines) = options, training_split(options)
    for line in lines:
        shown.note(line)
    options.validate()  # links may lead from the split to the output
    store = _opened(options)
    files = output.open_output(store)
    source = open_source(options)
    # On a local disk even for a remote output: the sort appends to many files, which an object store cannot do.
    making = store.scratch / WORK / "making"
    try:
        opened = executors.opened(options.workers, options.executor, options.ray_address)
        # The lock is the outer one, so that it is held until the last worker has ended.
        with output.held(store) as check, opened as run:
            if isinstance(base := source.base, GzippedTars) and (
                is_begun(base, store) or output.read_state(store) is None
            ):
                unpack(base, store, options.network, run, shown, check)
            shown.note(f"searching {display(str(options.src))}")
            whole_set = appending.appendable(store) if options.append else None
            plan, others = planned(options, source, making, whole_set)
            if whole_set:
                plan = appending.placed(store, plan, whole_set)
                appending.clear(store, plan, whole_set)
            else:
                _settle(options, asked, store, plan, files, shown)
                whole_set = appending.appended_to(store)
            records = _pack(options, store, plan, making, source, others, run, shown, check)
            finish = _finish(whole_set)
            manifest, left_out = finish(store, plan, records, read_problems(making), options.percentiles)
            without = without_images(store, manifest)
            output.finish(store)
    except OSError as error:
        raise _interrupted(store, error) from error
    shown.summary(appending.part_of(manifest, plan), source, left_out, without, store.url)
    if options.append:
        shown.note(appending.in_words(manifest, plan))
    for line in hint(options, manifest.classes):
        shown.note(f"note: {line}")
    return manifest


def _settle(
    options: PackOptions, asked: PackOptions, store: Store, plan: Plan, files: dict[str, int], shown: Display
) -> None:
    """Make sure that the content of the output belongs to `plan`, of a source that `asked` may name more widely."""
    state = output.read_state(store)
    other = output.refuse_other(store, plan, state, files)
    if not other:
        return
    name = display(store.url)
    if not options.overwrite:
        if options is not asked and state is not None and any(hint(asked, state.classes)):
            other += f"; it has the splits {', '.join(state.classes[:4])} as classes, which --all-splits continues"
        raise PackError(f"{name} {other}; use --overwrite to replace it, or another --out")
    shown.note(f"{name} {other}")
    output.replace(store, files, shown.note)


def _pack(
    options: PackOptions,
    store: Store,
    plan: Plan,
    making: Path,
    source: Source,
    others: Sequence[Other],
    run: executors.Run,
    shown: Display,
    check: Callable[[], None],
) -> list[ShardRecord]:
    output.sweep(store)
    done = whole(store, plan)
    missing = [shard for shard in plan.numbers if shard not in done]
    if missing:
        keep_plan(store, making, plan)
        size = plan.options["shard_size"]
        before = sum(min(size, plan.images - (shard - plan.first) * size) for shard in done)
        order = WORK
        if isinstance(base := source.base, GzippedTars) and base.unpacked is None:
            unpack(base, store, options.network, run, shown, check)
        elif isinstance(base, EmbeddedSource):
            order = stage(base, store, plan, options.network, run, shown, check)
        if options.compares:
            comparing.compare(options, store, plan, base, order, others, run, shown, check)
        how = (plan.identity, options.encoding, options.unreachable == "leave-out", options.names)
        more = {"kind": source.kind, "order": order, "first": plan.first, "compared": options.compares}
        tasks = [Task(base.task_root, store.url, shard, *how, **more, network=options.network) for shard in missing]
        shown.start(plan, before, resumed=len(done))
        try:
            run_tasks(tasks, run, done, shown, check)
        finally:
            shown.stop()
            output.sweep(store)  # files of workers that were killed
    # Before the last writes: a packer that has lost its lease must not commit into the set of another.
    check()
    return [done[shard] for shard in plan.numbers]
