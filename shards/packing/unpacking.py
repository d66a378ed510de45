"""Unpacking compressed tars into the output's working folder, where packing reads their images by offset."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from io import FileIO

from shards.errors import PackError
from shards.packing import executors
from shards.packing.plan import STAGED, WORK
from shards.packing.progress import Display
from shards.packing.running import run_tasks
from shards.packing.sources.gzipped import END, GzippedTars, Unzipped
from shards.packing.task import Done, Event, Progress, Work, Written
from shards.storage.base import Store
from shards.storage.network import Network
from shards.storage.places import is_url, joined
from shards.storage.store import open_place
from shards.words import display, human_bytes


@dataclass(frozen=True)
class Unpack(Work):
    """Unpacks one tar."""

    path: str
    folder: str  # in the output

    @property
    def name(self) -> str:
        """The tar's name."""
        return display(self.path)

    def steps(self, store: Store, report_every: float) -> Iterator[Event]:
        """See Work.steps."""
        names = f"{self.folder}/{self.path}", f"{self.folder}/{self.path}{END}"
        tar, end = map(store.partial, names)
        try:
            size, reported = 0, time.monotonic()
            with open_place(joined(self.src, self.path)) as file, open(tar, "wb", buffering=0) as out:
                source = Unzipped(file)
                for written in _copied(source, out):
                    size += written
                    if time.monotonic() - reported > report_every:
                        yield Progress(0, size, 0)
                        size, reported = 0, time.monotonic()
            end.write_text(json.dumps({"fault": source.fault}))
            yield Progress(1, size, 0)
            yield Written()
            store.put(dict(zip(names, (tar, end), strict=True)))
            yield Done(self.number)
        finally:
            for path in (tar, end):
                path.unlink(missing_ok=True)


def _copied(source: Unzipped, out: FileIO) -> Iterator[int]:
    """Copy what is unzipped, and yield numbers of bytes. A thread writes them while the next ones are inflated."""
    with ThreadPoolExecutor(1) as writer:
        writing: Future[None] | None = None
        while parts := source.several():
            if writing is not None:
                writing.result()
            writing = writer.submit(_write, out, parts)
            yield sum(map(len, parts))
        if writing is not None:
            writing.result()


def _write(out: FileIO, parts: list[bytes]) -> None:
    for part in parts:
        left = memoryview(part)
        while left:
            left = left[out.write(left) :]


def folder_of(source: GzippedTars) -> str:
    """Folder in the output for the unpacked tars of a source."""
    text = "".join(f"{os.fsdecode(path)}\0{size}\0" for path, size in source.files())
    return f"{WORK}/{STAGED}{hashlib.sha256(os.fsencode(text)).hexdigest()[:16]}"


def unpack(
    source: GzippedTars, store: Store, network: Network, run: executors.Run, shown: Display, check: Callable[[], None]
) -> None:
    """Unpack the tars of a source; those that an earlier run has unpacked are kept.

    Raises:
        PackError: A tar cannot be read, or the disk has no room.
        OSError: The store cannot be written.
    """
    folder, files = folder_of(source), source.files()
    for name in store.names(WORK):
        if name.startswith(STAGED) and f"{WORK}/{name}" != folder:
            store.remove(f"{WORK}/{name}")
    tasks = [
        Unpack(source.root, store.url, number, os.fsdecode(path), folder, network=network)
        for number, (path, _) in enumerate(files)
        if not store.exists(f"{folder}/{os.fsdecode(path)}{END}")
    ]
    if tasks:
        need = sum(files[task.number][1] for task in tasks)
        if store.local is not None and need > (free := shutil.disk_usage(store.local).free):
            raise PackError(
                f"{display(store.url)} needs room for the unpacked tars, at least {human_bytes(need)}, until the set is"
                f" complete, and for the set itself; {human_bytes(free)} are free; name an --out on a larger disk"
            )
        shown.note(f"unpacking {source.reading_text()}")
        shown.begin(len(tasks), what="unpack", noun="tars")
        try:
            run_tasks(tasks, run, {}, shown, check, "tar")
        finally:
            shown.stop()
    out = store.url if is_url(store.url) else os.path.abspath(store.url)
    source.unpacked = f"{out}/{folder}"


def is_begun(source: GzippedTars, store: Store) -> bool:
    """Whether an earlier run has begun to unpack the tars."""
    return folder_of(source).rpartition("/")[2] in store.names(WORK)
