"""Packing a folder of images into a shard set: plan, resume, pack, commit."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

from shards import executors, output
from shards._software import made_by
from shards.errors import PackError
from shards.files import commit, counted, display, human_bytes
from shards.index import shard_name
from shards.manifest import MANIFEST, Manifest, Quarantined, ShardRecord
from shards.options import PackOptions
from shards.plan import Entry, Plan, make_plan, write_plan
from shards.progress import Display
from shards.sources import Source, scan
from shards.task import Failed, Packed, Progress, Task
from shards.writer import read_record, shard_paths


def pack(options: PackOptions, progress: bool = True) -> Manifest:
    """Pack a folder of images; goes on where an earlier call with the same options stopped.

    The same source, options and seed give the same bytes, whatever the workers and interruptions.

    Args:
        options: What to pack, where to, and how.
        progress: Show a progress bar on a terminal, lines of text elsewhere.

    Returns:
        The manifest of the whole set.

    Raises:
        PackError: An option is out of range, the source holds no images, the output holds something else, the
            disk is full, or shards failed.
    """
    options = replace(options, src=Path(options.src), out=Path(options.out))
    options.validate()
    executors.require(options.executor, options.ray_address)
    shown = Display(progress)
    out = options.out
    files = output.open_output(out)
    shown.note(f"searching {display(str(options.src))}")
    source = scan(options.src, skip=out)
    plan, order = make_plan(options, source)
    try:
        with output.held(out):
            _settle(options, plan, files, shown)
            manifest, left_out = _pack(options, plan, order, source, shown)
            output.finish(out)
    except OSError as error:
        raise PackError(_write_error(error, out)) from error
    shown.summary(manifest, source, left_out, out)
    return manifest


def _settle(options: PackOptions, plan: Plan, files: list[Path], shown: Display) -> None:
    """Make sure that what lies in the output belongs to `plan`."""
    state = output.read_state(options.out)
    other = output.refuse_other(options.out, plan, state, files)
    if not other:
        return
    name = display(str(options.out))
    if not options.overwrite:
        raise PackError(f"{name} {other}; use --overwrite to replace it, or another --out")
    shown.note(f"{name} {other}")
    size = human_bytes(sum(path.stat().st_size for path in files))
    shown.note(f"--overwrite: removing {counted(len(files), 'file')} ({size}) of that set")
    output.remove(options.out, files)


def _pack(
    options: PackOptions, plan: Plan, order: list[Entry], source: Source, shown: Display
) -> tuple[Manifest, list[Quarantined]]:
    done = {shard: record for shard in range(plan.shards) if (record := _whole(options.out, shard, plan))}
    missing = [shard for shard in range(plan.shards) if shard not in done]
    output.sweep(options.out)
    if missing:
        write_plan(options.out, plan, order)
        size = plan.options["shard_size"]
        before = sum(min(size, plan.images - shard * size) for shard in done)
        tasks = [Task(options.src, options.out, s, plan.identity, options.encoding) for s in missing]
        shown.start(plan, before, resumed=len(done))
        try:
            _run(tasks, options, done, shown)
        finally:
            shown.stop()
            output.sweep(options.out)
    return _commit(options.out, plan, [done[shard] for shard in range(plan.shards)], source)


def _whole(out: Path, shard: int, plan: Plan) -> ShardRecord | None:
    """The record of a shard that need not be packed again."""
    paths = shard_paths(out, shard)
    try:
        record, _ = read_record(paths[".json"])
        if record.plan != plan.identity:
            return None
        if record.samples:
            for suffix in (".idx", ".npy"):
                paths[suffix].stat()
            if paths[".tar"].stat().st_size != record.bytes:
                return None
    except (OSError, ValueError):
        return None
    return record


def _run(tasks: Sequence[Task], options: PackOptions, done: dict[int, ShardRecord], shown: Display) -> None:
    """Run the tasks; PackError that names the shards that failed."""
    failed: list[Failed] = []
    events = executors.run(tasks, options.workers, options.executor, options.ray_address)
    with contextlib.closing(events):
        for event in events:
            if isinstance(event, Progress):
                shown.advance(event.images, event.bytes, event.quarantined)
            elif isinstance(event, Packed):
                done[event.shard] = event.record
            elif isinstance(event, Failed):
                failed.append(event)
                if event.fatal:
                    break
            shown.tick()
    if failed:
        _raise_failed(failed, sum(task.shard not in done for task in tasks), len(tasks))


def _raise_failed(failed: list[Failed], missing: int, total: int) -> NoReturn:
    again = "run the same command again: it goes on"
    fatal = next((event for event in failed if event.fatal), None)
    if fatal:
        text = f"stopped at {shard_name(fatal.shard)}: {fatal.cause}; {counted(missing, 'shard')} of {total:,} left"
        raise PackError(f"{text}; when that is mended, {again}")
    names = "; ".join(f"{shard_name(event.shard)}: {event.cause}" for event in failed[:5])
    more = f"; and {len(failed) - 5:,} more" if len(failed) > 5 else ""
    raise PackError(f"{missing:,} of {counted(total, 'shard')} failed ({names}{more}); when the cause is gone, {again}")


def _commit(out: Path, plan: Plan, records: list[ShardRecord], source: Source) -> tuple[Manifest, list[Quarantined]]:
    """Write quarantine.jsonl and, last, the manifest."""
    left_out = list(source.problems)
    for shard in range(plan.shards):
        left_out += read_record(shard_paths(out, shard)[".json"])[1]
    lines = "".join(entry.line() for entry in left_out)
    commit(out / output.QUARANTINE, lines.encode())
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
        where = display(str(out / output.QUARANTINE))
        raise PackError(f"none of {counted(plan.images, 'image')} could be packed; {where} says why")
    commit(out / MANIFEST, manifest.to_bytes())
    return manifest, left_out


def _write_error(error: OSError, out: Path) -> str:
    where = display(error.filename or str(out))
    return f"{where}: {error.strerror}; when the cause is gone, run the same command again: it goes on"
