"""Tries inputs in a process of their own, so that a crash, a hang and too much memory are found and named."""

from __future__ import annotations

import collections
import importlib
import multiprocessing
import os
import resource
import signal
import sys
import tempfile
import warnings
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from tests.fuzz.faults import ACCEPTED, Kind, damaged, names_nothing

LIMIT = 5.0  # seconds of processor time for one input
_WALL = 60  # seconds after which an input that waits for something counts as hanging, on a busy machine too
_MEMORY = 2 << 30  # bytes by which one input may raise the process's peak
KINDS = {
    "jpeg": "images", "png": "images", "tiff": "images", "webp": "images",
    "png16": "deep", "tiff16": "deep", "levels": "levels",
    "tar": "tars", "zip": "zips", "parquet": "tables", "checkpoint": "weights",
    "resume": "runs", "run": "runs", "set": "sets",
}  # fmt: skip

MOST = {"resume": 1700, "run": 1700, "set": 1600, "levels": 1000}
"""Inputs of those kinds that take longest."""


def kind_of(name: str) -> Kind:
    """The kind of a name of KINDS."""
    return getattr(importlib.import_module(f"tests.fuzz.{KINDS[name]}"), name.upper())


def outcome(kind: Kind, data: bytes, number: int, folder: Path) -> str:
    """What a reader made of an input: ACCEPTED, its cause, or what is wrong with it after FAULT."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        found = kind.outcome(data, number, folder)
    except Exception as error:
        at = error.__traceback__
        while at is not None and at.tb_next is not None:
            at = at.tb_next
        where = f" at {at.tb_frame.f_code.co_filename}:{at.tb_lineno}" if at else ""
        return f"FAULT: {type(error).__name__}: {str(error)[:200]}{where}"
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) << 10
    if grown > _MEMORY:
        return f"FAULT: took {grown >> 20} MiB of memory"
    if "MemoryError" in found or "allocate" in found:
        return f"FAULT: memory was asked for: {found!r}"
    wrong = "" if found == ACCEPTED or found.startswith("FAULT") else names_nothing(found)
    return f"FAULT: the cause {wrong}: {found!r}" if wrong else found


_WATCHED = ("os.", "subprocess.", "socket.connect", "shutil.", "pty.", "ctypes.dlopen")
_HARMLESS = ("os.listdir", "os.scandir", "os.walk", "os.fwalk", "os.chdir")


class Watch:
    """Finds what a reader writes outside a folder, and what it runs. A process has one, as it cannot be taken away."""

    def __init__(self, folder: Path) -> None:
        self.seen: list[str] = []
        self._inside = (str(folder), os.devnull)
        sys.addaudithook(self._look)

    def take(self) -> list[str]:
        """What was found since the last call."""
        seen, self.seen = self.seen, []
        return seen

    def _look(self, event: str, given: tuple[Any, ...]) -> None:
        if event == "open":
            writes = isinstance(given[2], int) and given[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC)
            named = given[:1] if writes and not isinstance(given[0], int) else ()
        else:
            watched = event.startswith(_WATCHED) and event not in _HARMLESS
            named = given if watched else ()
        # a relative path is of the current folder, which is one inside
        paths = [os.path.abspath(os.fsdecode(one)) for one in named if isinstance(one, str | bytes | os.PathLike)]
        if any(not path.startswith(self._inside) for path in paths):
            self.seen.append(f"{event} {paths}"[:200])


def _work(pipe: Connection, name: str, seed: int, start: int, stop: int) -> None:
    warnings.simplefilter("ignore")  # about damaged EXIF data in packed images
    signal.signal(signal.SIGPROF, signal.SIG_DFL)  # ends the process, in C code as well
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # libtiff and the readers write much about what they find
    kind = kind_of(name)
    with tempfile.TemporaryDirectory() as folder:
        # imports and compiles all that is needed, outside the watch; the number may choose among four readers
        whole = [outcome(kind, kind.originals()[0], number, Path(folder)) for number in range(4)]
        unread = "" if ACCEPTED in whole else f"FAULT: an undamaged file was not accepted: {whole}"
        os.chdir(folder)
        watch = Watch(Path(folder))
        # what an input asks for and never touches is not in the peak, and must be refused all the same
        held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (held + _MEMORY, resource.RLIM_INFINITY))
        for number in range(start, stop):
            data = damaged(kind, seed, number)
            signal.setitimer(signal.ITIMER_PROF, LIMIT)
            found = outcome(kind, data, number, Path(folder))
            signal.setitimer(signal.ITIMER_PROF, 0)
            if strange := watch.take():
                found = f"FAULT: it did {strange[0]}"
            pipe.send(unread or found)
        os.chdir("/")
    pipe.send(None)


def run(name: str, count: int, seed: int) -> tuple[collections.Counter[str], list[str]]:
    """The number of inputs for each outcome, by the first word of its cause, and the faults."""
    context = multiprocessing.get_context("fork")  # what this process has imported need not be imported again
    outcomes: collections.Counter[str] = collections.Counter()
    faults: list[str] = []
    number = 0
    while number < count:
        here, there = context.Pipe()
        process = context.Process(target=_work, args=(there, name, seed, number, count), daemon=True)
        process.start()
        there.close()
        while number < count:
            ended = ""
            try:
                if not here.poll(_WALL):
                    ended = "HANG (waits)"
                    os.kill(process.pid or 0, signal.SIGKILL)
                found = f"FAULT: {ended}" if ended else here.recv()
            except EOFError:
                process.join()
                ended = "HANG" if process.exitcode == -signal.SIGPROF else f"CRASH (exit code {process.exitcode})"
                found = f"FAULT: {ended}"
            outcomes[found.split(":")[0]] += 1
            if found.startswith("FAULT"):
                faults.append(f"input {number}: {found}")
            number += 1
            if ended:
                break
        process.join()
    return outcomes, faults
