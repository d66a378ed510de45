"""Packing a source of images into a shard set: plan, resume, pack, commit."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import NoReturn, TypeVar

import numpy as np

from shards._software import made_by
from shards.errors import PackError
from shards.format.index import rows_of_index
from shards.format.layout import shard_name
from shards.format.manifest import MANIFEST, QUARANTINE, Manifest, Quarantined, ShardRecord
from shards.format.writer import read_record, shard_files
from shards.packing import executors, output
from shards.packing.options import PackOptions
from shards.packing.plan import WORK, Plan, keep_plan, read_problems
from shards.packing.planning import make_plan
from shards.packing.progress import Display
from shards.packing.sources import Source, open_source
from shards.packing.splits import hint, training_split
from shards.packing.task import Failed, Packed, Progress, Task
from shards.storage.base import Store
from shards.storage.network import using
from shards.storage.store import open_store
from shards.words import counted, display, human_bytes

S = TypeVar("S")
T = TypeVar("T")
_OUT_OF_REACH = 20  # shards in a row that fail because of a store or the network: the others would, too
_REQUESTS = 32  # concurrent reads of records from a remote store


def pack(options: PackOptions, progress: bool = True) -> Manifest:
    """Pack images into a shard set; continues where an interrupted call with the same options stopped.

    The same source, options and seed produce the same bytes, whatever the workers and interruptions.

    Args:
        options: What to pack, where to, and how.
        progress: Show progress: a bar on a terminal, lines of text elsewhere.

    Returns:
        The manifest of the complete set.

    Raises:
        PackError: An option is out of range, the source holds no images, the output holds something else, the
            disk is full, or shards failed.
    """
    options.validate()
    if options.dry_run:
        raise PackError("a dry run packs nothing: use shards.packing.preview.preview, or fastmoco-shard --dry-run")
    executors.require(options.executor, options.ray_address)
    with using(options.network):
        return _pack_all(options, progress)


def _pack_all(options: PackOptions, progress: bool) -> Manifest:
    shown = Display(progress)
    asked, (options, lines) = options, training_split(options)
    for line in lines:
        shown.note(line)
    options.validate()  # links may lead from the split to the output
    try:
        store = open_store(options.out)
    except OSError as error:
        raise PackError(f"--out {display(str(options.out))}: {error.strerror}") from None
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
        where = display(error.filename or store.url)
        again = "when that is fixed, run the same command again to continue"
        raise PackError(f"{where}: {error.strerror}; {again}") from error
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
    size = human_bytes(sum(files.values()))
    shown.note(f"--overwrite: removing {counted(len(files), 'file')} ({size}) of that set")
    output.remove(store, files)


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
    return _commit(store, plan, [done[shard] for shard in range(plan.shards)], making)


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


def _commit(store: Store, plan: Plan, records: list[ShardRecord], making: Path) -> tuple[Manifest, list[Quarantined]]:
    """Write quarantine.jsonl and, last, the manifest."""
    left_out = list(read_problems(making))
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
