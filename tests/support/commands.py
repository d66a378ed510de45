"""Running commands: in a process of their own, in several as torchrun does, or in the test's process."""

from __future__ import annotations

import json
import logging
import os
import runpy
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]


class WarmStart:
    """Runs python commands in processes forked from one that has done their imports (fork_server.py)."""

    def __init__(self) -> None:
        self._server: subprocess.Popen[str] | None = None

    def __call__(
        self,
        arguments: list[str],
        cwd: Path,
        timeout: float,
        environment: Mapping[str, str] | None,
        ranks: int = 0,
        **more: int,
    ) -> tuple[list[int], str, str]:
        """Run `python *arguments`, once or once for each rank.

        Args:
            arguments: of python.
            cwd: folder to run in.
            timeout: seconds after which a hang is assumed.
            environment: variables to add to the present ones.
            ranks: 0 for one plain process, else the number of ranks.
            more: further parts of the request.

        Returns:
            Exit codes, standard output and standard error.
        """
        server = self._started()
        assert server.stdin and server.stdout
        with tempfile.TemporaryDirectory() as folder:
            out, err = Path(folder, "out"), Path(folder, "err")
            for file in (out, err):
                file.touch()
            request = {
                "arguments": arguments,
                "cwd": str(cwd),
                "out": str(out),
                "err": str(err),
                "ranks": ranks,
                **more,
            }
            full = {**os.environ, "OMP_NUM_THREADS": "1", **(environment or {})}
            print(json.dumps(request | {"environment": full}), file=server.stdin, flush=True)
            ready, _, _ = select.select([server.stdout], [], [], timeout)
            if not ready:
                self.close()
                raise AssertionError(f"{arguments} took longer than {timeout} s\n{out.read_text()}{err.read_text()}")
            return json.loads(server.stdout.readline()), out.read_text(), err.read_text()

    def _started(self) -> subprocess.Popen[str]:
        if self._server is None:
            self._server = subprocess.Popen(
                [sys.executable, "-m", "tests.support.fork_server"],
                cwd=ROOT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
                start_new_session=True,
            )
        return self._server

    def close(self) -> None:
        """End the server and all that it forked."""
        if self._server is not None:
            os.killpg(self._server.pid, signal.SIGKILL)
            self._server.wait()
            self._server = None


class Command:
    """Runs a command as a user would, by default in the folder `cwd`.

    Modules of fastmoco and the scripts of tests and benchmarks start warm; `cold=True` starts them as a shell would.
    """

    def __init__(self, cwd: Path, warm_start: WarmStart) -> None:
        self._cwd, self._warm_start = cwd, warm_start

    def __call__(
        self,
        *arguments: object,
        cwd: Path | None = None,
        timeout: float = 300,
        env: Mapping[str, str] | None = None,
        check: bool = True,
        cold: bool = False,
    ) -> subprocess.CompletedProcess[str]:
        """Run it; with `check`, fail the test if it fails."""
        names = [str(argument) for argument in arguments]
        cwd = cwd or self._cwd
        if not cold and _starts_warm(names):
            (code,), out, err = self._warm_start(names[1:], cwd, timeout, env)
            done = subprocess.CompletedProcess(names, code, out, err)
        else:
            full = {**os.environ, "OMP_NUM_THREADS": "1", **(env or {})}
            done = subprocess.run(names, cwd=cwd, timeout=timeout, capture_output=True, text=True, env=full)
        return _checked(done, check)


def _starts_warm(names: list[str]) -> bool:
    python, first, second, *_ = [*names, "", ""]
    folders = str(ROOT / "tests"), str(ROOT / "benchmarks")
    ours = (first == "-m" and second.partition(".")[0] == "fastmoco") or first.startswith(folders)
    return python == sys.executable and ours


class Torchrun:
    """Runs a script (or `-m module`) on several gloo processes, with the variables that torchrun sets."""

    def __init__(self, cwd: Path, warm_start: WarmStart) -> None:
        self._cwd, self._warm_start = cwd, warm_start

    def __call__(
        self,
        ranks: int,
        *arguments: object,
        timeout: float = 300,
        env: Mapping[str, str] | None = None,
        check: bool = True,
        **more: int,
    ) -> subprocess.CompletedProcess[str]:
        """Run it on `ranks` processes; the exit code is the first that is not 0. `restarts=N`: see fork_server.py."""
        names = [str(argument) for argument in arguments]
        codes, out, err = self._warm_start(names, self._cwd, timeout, env, ranks, **more)
        return _checked(subprocess.CompletedProcess(names, next(filter(None, codes), 0), out, err), check)


class InProcess:
    """Runs what follows `python`, a script or `-m module`, in this process: without the seconds of its imports."""

    def __init__(self, cwd: Path, patch: pytest.MonkeyPatch, capture: pytest.CaptureFixture[str]) -> None:
        self._cwd, self._patch, self._capture = cwd, patch, capture

    def __call__(self, *arguments: object, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run it; with `check`, fail the test if it fails."""
        names = [str(argument) for argument in arguments]
        self._patch.chdir(self._cwd)
        self._patch.setenv("COLUMNS", "1000")  # so that no message is wrapped
        root = logging.getLogger()
        handlers, level = root.handlers[:], root.level
        at_interrupt, unraisable = signal.getsignal(signal.SIGINT), sys.unraisablehook
        code: Any = 0
        try:
            if names[0] == "-m":
                self._patch.setattr(sys, "argv", names[1:])
                self._patch.delitem(sys.modules, names[1], raising=False)
                runpy.run_module(names[1], run_name="__main__", alter_sys=True)
            else:
                self._patch.setattr(sys, "argv", names)
                self._patch.syspath_prepend(Path(names[0]).parent)
                runpy.run_path(names[0], run_name="__main__")
        except SystemExit as left:
            code = left.code
            assert isinstance(code, int)
        finally:
            root.handlers[:], root.level = handlers, level
            signal.signal(signal.SIGINT, at_interrupt)  # at its end a command leaves a handler that ends the process
            sys.unraisablehook = unraisable
        printed = self._capture.readouterr()
        return _checked(subprocess.CompletedProcess(names, code, printed.out, printed.err), check)


def _checked(done: subprocess.CompletedProcess[str], check: bool) -> subprocess.CompletedProcess[str]:
    assert done.returncode == 0 or not check, f"exit code {done.returncode}\n{done.stdout}{done.stderr}"
    return done


def fastmoco_shard(*arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run fastmoco-shard in a process of its own; `options` are those of `subprocess.run`."""
    line = [sys.executable, "-m", "shards.cli", *map(str, arguments)]
    return subprocess.run(line, capture_output=True, text=True, timeout=300, check=False, **options)
