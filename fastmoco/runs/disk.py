"""Writes of a run that fail: a full disk, one that is read-only or gone, a failing device, a quota."""

from __future__ import annotations

import errno
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

from fastmoco.runs.errors import TrainingError
from fastmoco.runs.warnings import passed, warn
from shards.words import duration, in_words

log = logging.getLogger(__name__)

RETRY_SECONDS = 60.0
"""Least time between two tries of a write that failed. Each try of a checkpoint costs a copy of the state."""


_REMEDIES = {
    errno.ENOSPC: "free space there",
    errno.EDQUOT: "free space there, or have the quota raised",
    errno.EFBIG: "raise the limit on the size of files (ulimit -f)",
    errno.EROFS: "mount it for writing",
    errno.EACCES: "make it writable",
    errno.EPERM: "make it writable",
}


class DiskError(TrainingError):
    """A run's files could not be written for longer than --disk-patience."""

    one_rank = True  # rank 0 writes


@dataclass
class _Failing:
    since: float  # by time.monotonic()
    tried: float
    cause: str
    remedy: str


class Disk:
    """What of a run cannot be written at present, and for how long that is borne.

    A file that cannot be written is tried again at most once a minute, with a warning each time; training goes on.

    Args:
        patience: minutes for which a write may fail before the run ends.
    """

    def __init__(self, patience: float = 30.0) -> None:
        self._patience = 60 * patience
        self._failing: dict[str, _Failing] = {}

    def is_failing(self, what: str) -> bool:
        """Whether the last try to write this failed."""
        return what in self._failing

    def is_due(self, what: str) -> bool:
        """Whether to write: the last try succeeded, or is a minute ago."""
        failing = self._failing.get(what)
        return failing is None or time.monotonic() - failing.tried >= min(RETRY_SECONDS, self._patience)

    def write(self, what: str, writing: Callable[[], object]) -> bool:
        """Write something unless a try is not due; a failure is a warning.

        Args:
            what: the file as it is named in messages, `metrics.jsonl`.
            writing: writes it.

        Returns:
            Whether it is written.
        """
        if not self.is_due(what):
            return False
        try:
            writing()
        except OSError as error:
            self.failed(what, error)
            return False
        self.succeeded(what)
        return True

    def succeeded(self, what: str) -> None:
        """Note that something was written."""
        if self._failing.pop(what, None) is not None:
            passed(_name(what))
            log.info("%s can be written again", what)

    def failed(self, what: str, error: OSError) -> None:
        """Warn of something that could not be written; `check` ends the run once that was so for too long."""
        now, remedy = time.monotonic(), _REMEDIES.get(error.errno or 0, "check that disk")
        failing = self._failing.setdefault(what, _Failing(now, now, "", ""))
        failing.tried, failing.cause, failing.remedy = now, in_words(error), remedy
        since = now - failing.since
        if since >= self._patience:
            return
        left = f"Training goes on, and tries again for {duration(self._patience - since)} (--disk-patience)"
        message = f"{what} cannot be written: {failing.cause}; {failing.remedy}. {left}"
        if since:
            log.warning("%s", message)
        else:  # which logs it, too
            warn(_name(what), message)

    def check(self) -> None:
        """Raise DiskError if the last try to write something failed, and all tries since the patience began."""
        for what, failing in self._failing.items():
            if failing.tried - failing.since >= self._patience:
                raise DiskError(self.story(what))

    def story(self, what: str) -> str:
        """What could not be written, for how long and why, and what to do."""
        failing = self._failing[what]
        seconds = time.monotonic() - failing.since
        tried = f" for {duration(seconds)}" if seconds >= 1 else ""
        return (
            f"{what} could not be written{tried}: {failing.cause}; {failing.remedy}, then run the same command again, "
            "which continues from the last checkpoint"
        )

    def wait(self, patience: float | None = None) -> None:
        """Wait until the next try, where nothing else is left to do.

        Args:
            patience: seconds since the first failure after which there is none; None: --disk-patience.

        Raises:
            DiskError: it is over.
        """
        most = self._patience if patience is None else min(patience, self._patience)
        now, left = time.monotonic(), RETRY_SECONDS
        for what, failing in self._failing.items():
            left = min(left, failing.since + most - now)
            if left <= 0:
                raise DiskError(self.story(what))
        # one sleep, however many files fail: a full disk is met by all of a run's files at once
        time.sleep(left)


def _name(what: str) -> str:
    """The warning's name."""
    return "cannot_write_" + "".join(letter if letter.isalnum() else "_" for letter in what)
