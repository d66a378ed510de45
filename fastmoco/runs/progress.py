"""Progress of the long work of a command: a bar in a terminal, else lines of the log; on rank 0 alone."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import TypeVar

from shards.progress import Bar, Pace
from shards.progress import progress as shown
from shards.progress import waiting as said

log = logging.getLogger(__name__)

Item = TypeVar("Item")


def progress(what: str, total: int, count: str = "{:,} of {:,} images") -> AbstractContextManager[Bar]:
    """Show the progress of a block; see `shards.progress.progress`.

        with progress("features of the training set", len(ids)) as bar:
            for batch in batches:
                ...
                bar.advance(len(batch))

    Args:
        what: the work, in a few words.
        total: its number of items; of all ranks, if rank 0 counts for them.
        count: format of the number of items done and in all.
    """
    if _silent():
        return nullcontext(Bar(what, Pace(total), count, say=None))
    return shown(what, total, count, say=log.info)


def tracked(items: Iterable[Item], what: str, total: int, count: str = "{:,} of {:,} images") -> Iterator[Item]:
    """The items one by one, with their progress; see `progress`."""
    with progress(what, total, count) as bar:
        for item in items:
            yield item
            bar.advance()


def waiting(what: str) -> AbstractContextManager[None]:
    """Log what is waited for if a block, which has no progress to show, takes more than two seconds."""
    return nullcontext() if _silent() else said(what, say=log.info)


def loading() -> AbstractContextManager[None]:
    """`waiting` for the imports of a command."""
    return waiting("loading torch; on the first start on a machine the loops over pixels are compiled, too")


def _silent() -> bool:
    # the rank that torchrun gives: torch, which knows it as well, may not be loaded yet
    return int(os.environ.get("RANK", 0)) > 0
