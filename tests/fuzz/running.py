"""Tries inputs in a process of their own, so that a crash, a hang and too much memory are found and named."""

from __future__ import annotations

import collections
import importlib
import multiprocessing
import os
import resource
import signal
import tempfile
import warnings
from multiprocessing.connection import Connection
from pathlib import Path

from tests.fuzz.faults import ACCEPTED, Kind, damaged, names_nothing

LIMIT = 5.0  # seconds of processor time for one input
_WALL = 60  # seconds after which an input that waits for something counts as hanging, on a busy machine too
_MEMORY = 2 << 30  # bytes by which one input may raise the process's peak
KINDS = {
    "jpeg": "images", "png": "images", "tiff": "images", "webp": "images",
    "tar": "tars", "zip": "zips", "parquet": "tables", "checkpoint": "weights",
}  # fmt: skip


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
    wrong = "" if found == ACCEPTED or found.startswith("FAULT") else names_nothing(found)
    return f"FAULT: the cause {wrong}: {found!r}" if wrong else found


def _work(pipe: Connection, name: str, seed: int, start: int, stop: int) -> None:
    warnings.simplefilter("ignore")  # about damaged EXIF data in packed images
    signal.signal(signal.SIGPROF, signal.SIG_DFL)  # ends the process, in C code as well
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # libtiff and the readers write much about what they find
    kind = kind_of(name)
    with tempfile.TemporaryDirectory() as folder:
        for number in range(start, stop):
            data = damaged(kind, seed, number)
            signal.setitimer(signal.ITIMER_PROF, LIMIT)
            found = outcome(kind, data, number, Path(folder))
            signal.setitimer(signal.ITIMER_PROF, 0)
            pipe.send(found)
    pipe.send(None)


def run(name: str, count: int, seed: int) -> tuple[collections.Counter[str], list[str]]:
    """The number of inputs for each outcome, by the first word of its cause, and the faults."""
    context = multiprocessing.get_context("spawn")
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
