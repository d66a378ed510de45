"""Packing a source of images into a shard set: plan, resume, pack, commit."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NoReturn, TypeVar, overload

import numpy as np

from shards._software import made_by
from shards.errors import PackError
from shards.format.index import rows_of_index
from shards.format.layout import shard_name
from shards.format.manifest import MANIFEST, QUARANTINE, Manifest, Quarantined, ShardRecord
from shards.format.writer import read_record, shard_files
from shards.packing import executors, iterables, output
from shards.packing.options import PackOptions
from shards.packing.plan import WORK, Plan, keep_plan, read_problems
from shards.packing.planning import make_plan
from shards.packing.progress import Display
from shards.packing.sources import Source, open_source
from shards.packing.sources.items import Items
from shards.packing.splits import hint, training_split
from shards.packing.task import Failed, Packed, Progress, Task
from shards.storage.base import Store
from shards.storage.network import using
from shards.storage.store import open_store
from shards.words import counted, display

S = TypeVar("S")
T = TypeVar("T")
_OUT_OF_REACH = 20  # shards in a row that fail because of a store or the network: the others would, too
_OF_FILES = {
    *("source", "root", "path_column", "label_column", "exclude", "include_hidden", "all_splits"),
    *("executor", "ray_address"),
}
"""Options that do not apply to a data set."""
_REQUESTS = 32  # concurrent reads of records from a remote store


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
            perhaps `label` and `name`. Images are PIL images; arrays [H, W] or [H, W, C] and tensors [C, H, W] of
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
        items = None if is_place else Items(images, classes, shuffle, given.seed)
    given.validate()
    if given.dry_run:
        raise PackError("a dry run packs nothing: use shards.packing.preview.preview, or fastmoco-shard --dry-run")
    executors.require(given.executor, given.ray_address)
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
            manifest, left_out = commit(store, packed.plan, packed.records)
            without = _without_images(store, manifest)
            output.finish(store)
    except OSError as error:
        raise _interrupted(store, error) from error
    shown.summary(manifest, None, left_out, without, store.url)
    return manifest


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
            shown.note(f"searching {display(str(options.src))}")
            plan = make_plan(options, source, making)
            _settle(options, asked, store, plan, files, shown)
            manifest, left_out = _pack(options, store, plan, making, source, run, shown, check)
            without = _without_images(store, manifest)
            output.finish(store)
    except OSError as error:
        raise _interrupted(store, error) from error
    shown.summary(manifest, source, left_out, without, store.url)
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
    run: executors.Run,
    shown: Display,
    check: Callable[[], None],
) -> tuple[Manifest, list[Quarantined]]:
    output.sweep(store)
    done = _whole(store, plan)
    missing = [shard for shard in range(plan.shards) if shard not in done]
    if missing:
        keep_plan(store, making, plan)
        size = plan.options["shard_size"]
        before = sum(min(size, plan.images - shard * size) for shard in done)
        how = (plan.identity, options.encoding, options.network, options.unreachable == "leave-out")
        tasks = [Task(source.root, store.url, shard, *how) for shard in missing]
        shown.start(plan, before, resumed=len(done))
        try:
            _run(tasks, run, done, shown, check)
        finally:
            shown.stop()
            output.sweep(store)  # files of workers that were killed
    # Before the last writes: a packer that has lost its lease must not commit into the set of another.
    check()
    return commit(store, plan, [done[shard] for shard in range(plan.shards)], read_problems(making))


def _whole(store: Store, plan: Plan) -> dict[int, ShardRecord]:
    """Records of the shards that are complete."""
    sizes = store.sizes()

    def one(shard: int) -> ShardRecord | None:
        names = shard_files(shard)
        try:
            record, _ = read_record(store, shard)
        except (FileNotFoundError, ValueError):
            return None
        # By names and sizes: a hash would read the whole set at each resume, and `verify` compares it.
        files = names[".idx"] in sizes and names[".npy"] in sizes and sizes.get(names[".tar"]) == record.bytes
        return record if record.plan == plan.identity and (files or not record.samples) else None

    shards = [shard for shard in range(plan.shards) if shard_files(shard)[".json"] in sizes]
    return {shard: record for shard, record in zip(shards, _each(store, one, shards), strict=True) if record}


def _each(store: Store, one: Callable[[S], T], shards: Sequence[S]) -> Iterator[T]:
    """`one` of each shard, in order; concurrently for a remote store, where each call is a round trip."""
    if store.local:
        yield from map(one, shards)
        return
    with ThreadPoolExecutor(_REQUESTS) as pool:
        yield from pool.map(one, shards)


def _run(
    tasks: Sequence[Task], run: executors.Run, done: dict[int, ShardRecord], shown: Display, check: Callable[[], None]
) -> None:
    """Run the tasks; PackError names the shards that failed."""
    failed: list[Failed] = []
    in_a_row = 0
    # Closing ends the workers at once; garbage collection of the generator would do so at some later time.
    with contextlib.closing(run(tasks)) as events:
        for event in events:
            if isinstance(event, Progress):
                shown.advance(event.images, event.bytes, event.quarantined)
            elif isinstance(event, Packed):
                done[event.shard] = event.record
                in_a_row = 0
            elif isinstance(event, Failed):
                in_a_row = in_a_row + 1 if event.unreachable else 0
                if in_a_row == _OUT_OF_REACH:
                    event = replace(event, cause=f"{event.cause}; so did the {in_a_row - 1} before it", fatal=True)
                failed.append(event)
                if event.fatal:
                    break
            check()
            shown.tick()
    if failed:
        _raise_failed(failed, sum(task.shard not in done for task in tasks), len(tasks), tasks[0].out)


def _raise_failed(failed: list[Failed], missing: int, total: int, out: str) -> NoReturn:
    again = "run the same command again to continue"
    if any(event.unreachable and not event.cause.startswith(out) for event in failed):
        again += "; --unreachable leave-out packs without images that cannot be reached"
    fatal = next((event for event in failed if event.fatal), None)
    if fatal:
        text = f"stopped at {shard_name(fatal.shard)}: {fatal.cause}; {counted(missing, 'shard')} of {total:,} left"
        raise PackError(f"{text}; when that is fixed, {again}")
    names = "; ".join(f"{shard_name(event.shard)}: {event.cause}" for event in failed[:5])
    more = f"; and {len(failed) - 5:,} more" if len(failed) > 5 else ""
    raise PackError(f"{missing:,} of {counted(total, 'shard')} failed ({names}{more}); when that is fixed, {again}")


def _without_images(store: Store, manifest: Manifest) -> list[str]:
    """Names of the classes that have no image in the set: all were left out, or --limit took none."""
    if not manifest.classes:
        return []

    def labels(record: ShardRecord) -> np.ndarray:
        name = f"{record.name}.npy"
        return np.unique(rows_of_index(store.read(name), name, record.samples, record.bytes)["label"])

    found = np.zeros(len(manifest.classes) + 1, bool)  # the last is for images without a label, -1
    try:
        for present in _each(store, labels, [record for record in manifest.records if record.samples]):
            found[present] = True
            if found[:-1].all():  # soon, as the order is random: a large set is not read again for this
                break
    except ValueError:  # damage to an index of an earlier run; `verify` reports it
        return []
    return [name for name, packed in zip(manifest.classes, found, strict=False) if not packed]


def commit(
    store: Store, plan: Plan, records: list[ShardRecord], problems: Iterable[Quarantined] = ()
) -> tuple[Manifest, list[Quarantined]]:
    """Write quarantine.jsonl, the problems of the source first, and, last, the manifest."""
    left_out = list(problems)
    # The reasons are in the records' files; memory holds only their number, as a set may have a million shards.
    with_reasons = [shard for shard, record in enumerate(records) if record.quarantined]
    for _, found in _each(store, lambda shard: read_record(store, shard), with_reasons):
        left_out += found
    lines = "".join(entry.line() for entry in left_out)
    store.write(QUARANTINE, lines.encode())
    manifest = Manifest(
        samples=sum(record.samples for record in records),
        bytes=sum(record.bytes for record in records),
        classes=plan.classes,
        quarantined=len(left_out),
        options=plan.options,
        source=plan.source,
        plan=plan.identity,
        made_by=made_by(),
        records=tuple(records),
    )
    if not manifest.samples:
        where = display(f"{store.url}/{QUARANTINE}")
        raise PackError(f"none of {counted(plan.images, 'image')} could be packed; {where} gives the reasons")
    store.write(MANIFEST, manifest.to_bytes())
    return manifest, left_out
