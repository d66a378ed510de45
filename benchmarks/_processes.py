"""Processes that a benchmark starts: one for each measurement, so that none inherits another's threads or memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Collection, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent


class ProcessFailed(RuntimeError):
    """A process ended with an error.

    Attributes:
        reason: last line that it wrote to stderr.
    """

    def __init__(self, code: int, stderr: str) -> None:
        super().__init__(f"exit status {code}\n{stderr}")
        lines = stderr.strip().splitlines()
        self.reason = lines[-1] if lines else f"exit status {code}"


def environ() -> dict[str, str]:
    """This process's environment variables, with this folder first on the import path."""
    path = [str(FOLDER), os.environ.get("PYTHONPATH", "")]
    return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, path))}


def python(
    *arguments: object,
    cwd: Path | None = None,
    timeout: float | None = None,
    variables: Mapping[str, str] | None = None,
    without: Collection[str] = (),
) -> str:
    """Run Python and return what it writes to stdout.

    Args:
        arguments: of `python`; modules of this folder can be run by `-m`.
        cwd: folder to run in; default: the current one.
        timeout: seconds after which subprocess.TimeoutExpired is raised.
        variables: further environment variables.
        without: environment variables to leave out.

    Raises:
        ProcessFailed: its exit status is not 0.
    """
    line = [sys.executable, *map(str, arguments)]
    env = {name: value for name, value in environ().items() if name not in without} | dict(variables or {})
    done = subprocess.run(line, cwd=cwd, env=env, capture_output=True, text=True, timeout=timeout, check=False)
    if done.returncode:
        raise ProcessFailed(done.returncode, done.stderr)
    return done.stdout


def in_process(module: str, function: str, arguments: Mapping[str, Any], **options: Any) -> Any:
    """Call a function in a process of its own.

    Args:
        module: of this folder.
        function: its name in the module.
        arguments: keyword arguments in plain values.
        options: of `python`.

    Returns:
        What the function returns, in plain values.
    """
    written = python("-m", "_processes", module, function, json.dumps(arguments), **options)
    # the last line, because libraries may print before it
    return json.loads(written.splitlines()[-1])


def main() -> None:
    """Be the process of `in_process`."""
    module, function, arguments = sys.argv[1:]
    # no import above is of this project: a benchmark measures what imports cost
    print(json.dumps(getattr(import_module(module), function)(**json.loads(arguments))))


if __name__ == "__main__":
    main()
