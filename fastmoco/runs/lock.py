"""One process at a time writes to a run folder."""

from __future__ import annotations

import logging
import os
import stat
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from pathlib import Path

from fastmoco.flags import ConfigError
from fastmoco.ranks.world import World, from_main, restarted
from fastmoco.runs.errors import FolderInUse
from shards.storage.files import sweep
from shards.storage.locking import Held, locked, this_process

log = logging.getLogger(__name__)

PATIENCE = 100.0
"""Seconds for which a restarted run waits for the process before it. NFSv4 frees a dead host's lock after 90 seconds,
unless set otherwise."""
AGENT_PATIENCE = 15.0
"""Seconds for which a run under torchrun waits in any case. When an agent is killed its ranks end, too, but a rank may
need seconds to free a GPU's memory, and whatever started the agent starts it again at once."""
_FILES = (
    "lock", "config.json", "status.json", "quarantine.jsonl", "undecodable.jsonl", "views.png", "neighbours.json",
    "neighbours.png", "wandb.json",
)  # fmt: skip
_ours: ContextVar[frozenset[Path]] = ContextVar("_ours", default=frozenset())


@contextmanager
def only_writer(folder: Path, here: World, remedy: str = "another --out") -> Iterator[None]:
    """Let no other process write to a run folder while the block runs. All ranks call it; rank 0 holds the lock.

    It may be nested: a block within it, for the same folder, holds the same lock.

    Args:
        folder: the run folder; created if missing.
        here: this rank.
        remedy: what to give for another folder.

    Raises:
        FolderInUse: another process writes to the folder; on all ranks.
        ConfigError: the folder cannot be written; on all ranks.
    """
    place = folder.resolve()
    if place in _ours.get():
        yield
        return
    with ExitStack() as stack:
        from_main(here, lambda: stack.enter_context(_held(folder, remedy)))
        token = _ours.set(_ours.get() | {place})
        try:
            yield
        finally:
            _ours.reset(token)


@contextmanager
def _held(folder: Path, remedy: str) -> Iterator[None]:
    about = f"{this_process()} since {time.strftime('%Y-%m-%d %H:%M:%S')}"
    patience = PATIENCE if restarted() else AGENT_PATIENCE if "TORCHELASTIC_RUN_ID" in os.environ else 0.0
    with ExitStack() as stack:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            _check_files(folder)
            works = stack.enter_context(
                locked(
                    folder / "lock",
                    about,
                    patience,
                    lambda holder: log.info("waiting for %s to leave %s", holder, folder),
                )
            )
        except Held as held:
            raise FolderInUse(f"{folder} is being written by {held}; wait, stop it, or give {remedy}") from None
        except OSError as error:
            reason = error.strerror or type(error).__name__
            raise ConfigError(
                f"--out {folder} cannot be written: {reason}; give a folder that you may write to"
            ) from error
        if works:
            _sweep(folder)
        else:
            log.warning("the file system of %s has no locks: start no second run that writes to it", folder)
        yield


def _check_files(folder: Path) -> None:
    """Refuse what is in the place of a run's file and is none, above all a link, which would be written through.

    Links of folders are followed: of the run folder and of `checkpoints`, to a larger disk for example. Whoever made
    the run folder, by an archive for example, could choose any file of the user's as the target of a link of a file.
    """
    checkpoints = (folder / "checkpoints").glob("step-*") if (folder / "checkpoints").is_dir() else ()
    for path in [*(folder / name for name in _FILES), *folder.glob("*.partial"), *checkpoints]:
        try:
            mode = path.lstat().st_mode
        except FileNotFoundError:
            continue
        if stat.S_ISREG(mode):
            continue
        if stat.S_ISLNK(mode):
            what = f"a link to {path.readlink()}"
        else:
            what = "a folder" if stat.S_ISDIR(mode) else "a device or a pipe"
        raise ConfigError(f"{path} is {what}; a run needs a file of its own there: move it away")


def _sweep(folder: Path) -> None:
    """Remove what processes that were killed left half written: only one may write here, and it is this one."""
    for place in (folder, folder / "checkpoints"):
        for path in sweep(place):
            log.info("removed %s, which a run that was killed had not finished", path)
