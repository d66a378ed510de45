"""The thread that brings a run's checkpoints to a second place: --checkpoint-copy."""

from __future__ import annotations

import logging
import threading
from pathlib import Path

from fastmoco.checkpoints.saving import Keeping
from fastmoco.runs.copying import upload
from fastmoco.runs.warnings import passed, warn
from shards.storage.base import Store
from shards.storage.store import open_store
from shards.words import in_words

log = logging.getLogger(__name__)

RETRY_SECONDS = 60.0


class Copier:
    """Brings each new checkpoint, and the records up to it, to the copy, in a thread of its own.

    What fails is tried again: a warning, and never the end of a run. While one checkpoint is on its way, only the
    newest of the later ones waits.

    Args:
        folder: the run folder.
        place: folder or URL of the copy.
        keep: which checkpoints are kept there.
    """

    def __init__(self, folder: Path, place: str, keep: Keeping) -> None:
        self._folder, self._place, self._keep = folder, place, keep
        self._changed = threading.Condition()
        self._wanted: Path | None = None
        self._busy = self._hurried = self._closed = False
        self._store: Store | None = None
        threading.Thread(target=self._work, name="checkpoint copy", daemon=True).start()

    def copy(self, path: Path) -> None:
        """Copy this checkpoint, in the background."""
        with self._changed:
            self._wanted = path
            self._changed.notify_all()

    def wait(self, patience: float) -> bool:
        """Wait until the newest checkpoint is copied, for some seconds at most; returns whether it is."""
        with self._changed:
            return self._changed.wait_for(lambda: self._wanted is None and not self._busy, patience)

    def hurry(self) -> None:
        """Try again each second what failed: the run ends."""
        with self._changed:
            self._hurried = True
            self._changed.notify_all()

    def close(self, patience: float, waited: float = 0.0) -> None:
        """`wait`, say what is not copied, and end.

        Args:
            patience: seconds to wait.
            waited: seconds that were waited before.
        """
        self.hurry()
        complete = self.wait(patience)
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        if not complete:
            log.warning(
                "the newest checkpoint is not in %s after %.0f s; the next start copies it",
                *(self._place, waited + patience),
            )
            if self._store is not None:
                self._store.give_up()

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._wanted is not None or self._closed)
                path, self._wanted = self._wanted, None
                if path is None or self._closed:
                    return
                self._busy = True
            failed = not self._tried(path)
            with self._changed:
                self._busy = False
                if failed and self._wanted is None and path.exists():
                    self._wanted = path
                self._changed.notify_all()
                if failed and not self._changed.wait_for(lambda: self._hurried, RETRY_SECONDS):
                    continue
                if failed:  # the run ends: each second counts
                    self._changed.wait_for(lambda: self._closed, 1.0)

    def _tried(self, path: Path) -> bool:
        try:
            self._store = self._store or open_store(self._place)
            upload(self._store, self._folder, path, self._keep)
        except Exception as error:  # a client library's own errors, too, are no end of the run
            reason = in_words(error) if isinstance(error, OSError) else f"{type(error).__name__}: {error}"
            warn("checkpoint_copy", f"{path.name} is not copied to {self._place} ({reason}); it is tried again")
            return False
        passed("checkpoint_copy")
        log.info("copied %s to %s", path.name, self._place)
        return True
