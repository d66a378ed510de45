"""One part of `gpu_suite.py`, in a separate process: a fault of the device ends all work of its process.

The fork server imports this module before it forks, so that a part starts without the seconds of its imports. So no
import may ask whether there is a GPU: that starts CUDA's driver, which does not work in a process forked later.
"""

from __future__ import annotations

import gc
import os
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from multiprocessing import get_context
from pathlib import Path
from signal import SIGKILL
from typing import Any

import torch

from _gpu import kernels, loading, soundness, steps
from _gpu.kit import ROOT
from _gpu.parts import Part
from _gpu.suite import Row, Suite
from _results import add_row, show

_MODULES = {"kernels": kernels, "loading": loading, "soundness": soundness, "steps": steps}


def run_part(name: str, part: Part, suite: Suite, rows: Path) -> Row:
    """Run a part in a separate process; its rows are appended to `rows`, one JSON line each.

    Returns:
        Name, status and seconds of the part.
    """
    begun = time.perf_counter()
    found = finished(work, (name, part, suite, rows), part.seconds)
    words = {0: "passed", 1: "failed", None: f"ended after its limit of {part.seconds:.0f} s"}
    status = words.get(found, f"ended by signal {-(found or 0)}")
    return {"part": name, "status": status, "seconds": round(time.perf_counter() - begun, 1)}


def finished(target: Callable[..., None], arguments: tuple[Any, ...], seconds: float) -> int | None:
    """Exit status of a function in a separate process; None if it was ended after `seconds`."""
    process = context().Process(target=target, args=arguments)
    process.start()
    try:
        process.join(seconds)
        return process.exitcode
    finally:  # also after Ctrl-C
        if process.exitcode is None:
            with suppress(ProcessLookupError):  # it has not come to its setsid, and has started nothing
                os.killpg(process.pid, SIGKILL)  # with the processes that it has started
            process.kill()
            process.join()


def context() -> Any:
    """Starts processes that have imported this module."""
    found = get_context("forkserver")
    found.set_forkserver_preload([__name__])
    return found


def work(name: str, part: Part, suite: Suite, rows: Path) -> None:
    """Be the process of a part; the exit status is 1 if a row could not be measured."""
    os.setsid()
    if suite.device == "cuda":
        torch.cuda.set_device(0)
    elif suite.tiny:
        torch.set_num_threads(1)  # the work is too little to share
    failed = False
    try:
        for label, measure in getattr(_MODULES[part.module], part.function)(suite, **part.options):
            row = {"part": name, **label, **attempt(measure)}
            failed = failed or "error" in row
            add_row(rows, show(row))  # at once: the process may be ended before the next one
            gc.collect()
            if suite.device == "cuda" and "error" not in row:
                torch.cuda.empty_cache()
    except Exception as error:
        failed = True
        traceback.print_exc()
        add_row(rows, {"part": name, "error": _in_words(error)})
    sys.exit(int(failed))


def attempt(measure: Callable[[], Row]) -> Row:
    """The figures of a row, or the error: one row must not cost the others of its part."""
    try:
        return measure()
    except Exception as error:
        traceback.print_exc()
        return {"error": _in_words(error)}


def _in_words(error: Exception) -> str:
    """Type and message, without the checkout's path: rows are published, and paths of the machine are private."""
    return f"{type(error).__name__}: {error}".replace(f"{ROOT}{os.sep}", "")[-4000:]
