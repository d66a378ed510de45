"""The user's command that is told of a run's end and warnings: --notify."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shlex
import shutil
import signal
import subprocess
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastmoco.flags import ConfigError

log = logging.getLogger(__name__)

PATIENCE = 15.0
"""Seconds that the command may take. It runs while a stopped job ends, for which SLURM and torchrun leave 30."""


def check_command(text: str | None) -> None:
    """Raise ConfigError where the value of --notify is no command that can be run here."""
    if text is None:
        return
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise ConfigError(f"--notify {text}: {error}; quote its words as for a shell") from None
    if not words or shutil.which(words[0]) is None:
        raise ConfigError(f"--notify {text}: there is no command {words[0] if words else ''!r}; give its path")


class Notifier:
    """Runs the command. A failure of it is logged, and changes nothing for the run.

    Args:
        command: the command and its arguments, quoted as for a shell, but run without one; None for none.
        folder: the run folder.
    """

    def __init__(self, command: str | None, folder: Path) -> None:
        self._command, self._folder = command, folder
        self._threads: list[threading.Thread] = []

    def tell(self, event: str, status: Mapping[str, Any], message: str | None) -> None:
        """Run the command, and wait for it.

        Args:
            event: `stopped`, `failed`, `finished` or `warning`.
            status: the values of status.json.
            message: why, in one line.
        """
        for thread in self._threads:  # what was first is told first
            thread.join(PATIENCE)
        if self._command is not None:
            self._run(event, status, message)

    def tell_soon(self, event: str, status: Mapping[str, Any], message: str | None) -> None:
        """The same in a thread: training goes on meanwhile."""
        if self._command is not None:
            thread = threading.Thread(target=self._run, args=(event, status, message), name="notify", daemon=True)
            self._threads = [each for each in self._threads if each.is_alive()] + [thread]
            thread.start()

    def _run(self, event: str, status: Mapping[str, Any], message: str | None) -> None:
        assert self._command is not None
        run = str(self._folder.resolve())
        told = {"event": event, "run": run, "message": message, **status}
        variables = {
            "FASTMOCO_EVENT": event, "FASTMOCO_RUN": run, "FASTMOCO_MESSAGE": message or "",
            "FASTMOCO_STATE": status["state"], "FASTMOCO_STEP": status["step"],
            "FASTMOCO_TOTAL_STEPS": status["total_steps"], "FASTMOCO_HOST": status["host"],
        }  # fmt: skip
        text = {name: "" if value is None else str(value) for name, value in variables.items()}
        try:
            # in a session of its own: Ctrl-C at the terminal is for the training
            process = subprocess.Popen(
                shlex.split(self._command), env={**os.environ, **text}, start_new_session=True,
                stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
            )  # fmt: skip
        except (OSError, ValueError) as error:
            log.warning("--notify %s: %s", self._command, error)
            return
        try:
            _, said = process.communicate(json.dumps(told).encode(), PATIENCE)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(OSError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            log.warning("--notify %s took longer than %.0f s and was ended", self._command, PATIENCE)
            return
        if process.returncode:
            last = said.decode(errors="replace").strip().splitlines()[-1:]
            log.warning(
                "--notify %s ended with %d%s", self._command, process.returncode, "".join(f": {x}" for x in last)
            )
