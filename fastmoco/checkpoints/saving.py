"""Checkpoints, written: whole or not at all; and which of them are kept."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fastmoco.checkpoints.checkpoint import FORMAT, found, step_of
from fastmoco.checkpoints.content import sealed
from fastmoco.checkpoints.snapshot import Snapshot
from shards.storage.files import whole_file


@dataclass(frozen=True)
class Keeping:
    """Which checkpoints of a run are kept.

    Args:
        newest: number of the newest ones.
        every: steps between those that are kept besides; 0 for none.
        most_bytes: bound of their size together, which goes before the other two; None for none.
    """

    newest: int
    every: int = 0
    most_bytes: float | None = None

    def superfluous(self, sizes: dict[int, int], written: int) -> list[int]:
        """The steps of the checkpoints to delete, the oldest first.

        Args:
            sizes: bytes by step.
            written: the step of the one that was just written, which is never deleted. Later ones are damaged, or
                left by steps that were taken back: they neither count nor are they deleted.
        """
        steps = sorted(step for step in sizes if step <= written)
        newest = set(steps[-self.newest :])
        marked = {step for step in steps if self.every and step % self.every == 0}
        kept = [step for step in steps if step in newest | marked]
        # the newest go last: from the oldest of them a run continues if those after it are damaged
        for step in sorted(kept, key=lambda step: (step in newest, step)):
            if self.most_bytes is None or sum(sizes[each] for each in kept) <= self.most_bytes or step == written:
                break
            kept.remove(step)
        return [step for step in steps if step not in kept]


def save(folder: Path, state: dict[str, Any], keep: int | Keeping) -> Path:
    """Write `state` as step-XXXXXXXX.pt, whole or not at all, and delete the checkpoints that are not kept.

    Args:
        folder: the run's `checkpoints` folder; created if missing. The folder above it exists.
        state: tensors and plain values, among them `progress` {step}; `format` where it is not FORMAT.
        keep: which checkpoints to keep; a number of the newest, or more.

    Raises:
        OSError: it cannot be written; the error names the file.
    """
    keep = Keeping(keep) if isinstance(keep, int) else keep
    folder.mkdir(exist_ok=True)
    step = state["progress"]["step"]
    path = folder / f"step-{step:08d}.pt"
    write(path, sealed({"format": FORMAT, **state}))
    # only now that the new one is whole: a failed write must not leave fewer checkpoints
    paths = {step_of(path): path for path in found(folder)}
    for old in keep.superfluous({step: path.stat().st_size for step, path in paths.items()}, step):
        with contextlib.suppress(FileNotFoundError):  # deleted by the user meanwhile
            paths[old].unlink()
    return path


def write(path: Path, content: Any) -> None:
    """Write a file by torch.save, whole or not at all.

    Args:
        path: the file; its folder exists.
        content: tensors and plain values.

    Raises:
        OSError: it cannot be written; the error names `path`.
    """
    with whole_file(path) as file:
        try:
            torch.save(content, file)
        except RuntimeError as error:
            # where a write fails, torch raises an error of its own over the system's, and says nothing of the cause
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise


class Saver:
    """Writes a run's states in a thread, one at a time, each from a snapshot: steps wait for the copy alone.

    A thread, not a process: hashing, the check for finite values and the file's writing leave Python's lock free.

    Args:
        write: writes a state; its result is handed on.
    """

    def __init__(self, write: Callable[[dict[str, Any]], Path]) -> None:
        self._write, self._snapshot = write, Snapshot()
        self._thread: threading.Thread | None = None
        self._ended: Callable[[], Path] | None = None

    @property
    def busy(self) -> bool:
        """Whether a state is being written, or its result has not been fetched."""
        return self._thread is not None

    def start(self, state: dict[str, Any]) -> None:
        """Copy a state, and begin to write it. The one before must have ended, and its result be fetched."""
        assert self._thread is None
        copy, wait = self._snapshot.of(state)
        self._thread = threading.Thread(target=self._work, args=(copy, wait), name="checkpoint", daemon=True)
        self._thread.start()

    def result(self, wait: bool = False) -> Path | None:
        """What was written, once; None while nothing has ended. It raises what the writing raised.

        Args:
            wait: wait for what is being written.
        """
        if self._thread is None or (self._thread.is_alive() and not wait):
            return None
        self._thread.join()
        self._thread, ended, self._ended = None, self._ended, None
        return ended() if ended else None

    def _work(self, state: dict[str, Any], wait: Callable[[], None]) -> None:
        try:
            wait()
            path = self._write(state)
        except BaseException as error:  # raised in the thread of the steps
            raised = error

            def fail() -> Path:
                raise raised

            self._ended = fail
        else:
            self._ended = lambda: path
