"""Processes that have imported torch and fastmoco already: forked from this one, which reads what to run from stdin.

A start from nothing costs four seconds of a core, most of it imports; the tests start hundreds of processes. A line of
JSON asks for one process for each of its environments: {"arguments", "cwd", "environments", "out", "err"}, where the
arguments are a script's path, or -m and a module's name, and what follows. The answer is a line with their exit codes.
"""

from __future__ import annotations

import json
import os
import runpy
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any, NoReturn

GRACE = 30  # seconds that other ranks have once one has failed, as torchrun gives them


def main() -> None:
    """Answer requests until stdin ends."""

    import fastmoco.knn
    import fastmoco.trainer.loop  # noqa: F401

    answers = os.fdopen(os.dup(1), "w", buffering=1)
    for line in sys.stdin:
        request = json.loads(line)
        children = [start(request, environment) for environment in request["environments"]]
        print(json.dumps(wait(children)), file=answers)


def start(request: dict[str, Any], environment: dict[str, str]) -> int:
    """Fork a process; its number."""
    child = os.fork()
    if child == 0:
        run(request, environment)
    return child


def run(request: dict[str, Any], environment: dict[str, str]) -> NoReturn:
    """Be a fresh interpreter, as nearly as a forked one can."""
    code = 1
    try:
        for number, name, flags in ((0, os.devnull, os.O_RDONLY), (1, request["out"], None), (2, request["err"], None)):
            handle = os.open(name, os.O_WRONLY | os.O_APPEND | os.O_CREAT if flags is None else flags, 0o600)
            os.dup2(handle, number)
        os.chdir(request["cwd"])
        os.environ.clear()
        os.environ.update(environment)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        first, *rest = request["arguments"]
        if first == "-m":
            sys.argv, sys.path[0] = rest, request["cwd"]
            runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
        else:
            sys.argv, sys.path[0] = request["arguments"], str(Path(first).parent)
            runpy.run_path(first, run_name="__main__")
        code = 0
    except SystemExit as left:
        code = left.code if isinstance(left.code, int) else int(left.code is not None)
        if isinstance(left.code, str):
            print(left.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def wait(children: list[int]) -> list[int]:
    """Exit codes; once one process has failed, the others are ended."""
    codes: dict[int, int] = {}
    end = None
    while len(codes) < len(children):
        child, status = os.waitpid(-1, os.WNOHANG)
        if child in children:
            codes[child] = os.waitstatus_to_exitcode(status)
            if codes[child] and end is None:
                end = time.monotonic() + GRACE
                stop(children, codes, signal.SIGTERM)
        elif end is not None and time.monotonic() > end:
            stop(children, codes, signal.SIGKILL)
        time.sleep(0.01)
    return [codes[child] for child in children]


def stop(children: list[int], codes: dict[int, int], with_signal: signal.Signals) -> None:
    """Send a signal to the children that have not ended."""
    for child in children:
        if child not in codes:
            os.kill(child, with_signal)


if __name__ == "__main__":
    main()
