"""The checkpoint that all ranks continue from: rank 0 chooses it, and all agree before anything is loaded."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from fastmoco.checkpoints import checkpoint
from fastmoco.checkpoints.checkpoint import CheckpointError, Unfit
from fastmoco.checkpoints.content import KEY, content_hash
from fastmoco.ranks.world import World, from_all, from_main
from fastmoco.runs.errors import TrainingError

log = logging.getLogger(__name__)
_Found = tuple[Path, dict[str, Any]]


def load_chosen(
    here: World, found: Callable[[], Iterator[_Found]], layout: str, load: Callable[[Path, dict[str, Any]], None]
) -> Path | None:
    """Load the first checkpoint that holds the state of this run. All ranks call it.

    Args:
        here: this rank.
        found: a generator of path and content of the readable checkpoints, the best first; called on rank 0 alone.
        layout: their format.
        load: checks and loads a state.

    Returns:
        The path of the checkpoint that was loaded; None where there is none.

    Raises:
        CheckpointError: none can be loaded, or it is of another run; on all ranks.
        TrainingError: a rank cannot read the one that rank 0 chose, or reads other bytes; on all ranks.
    """
    candidates = found() if here.is_main else iter(())
    unfit: CheckpointError | None = None
    while True:
        state: dict[str, Any] = {}

        def choose(state: dict[str, Any] = state) -> tuple[Path, int, str] | None:
            one = next(candidates, None)
            if one is None:
                return None
            state.update(one[1])
            return one[0], checkpoint.step_in(state), _hash(state)

        chosen = from_main(here, choose)
        if chosen is None:
            if unfit is not None:
                raise unfit
            return None
        path, step, wanted = chosen
        _agree(here, path, step, _differs(path, layout, wanted, state))
        try:
            with checkpoint.fitting(path):
                load(path, state)
            failed = None
        except Unfit as error:
            failed = error
        # a state that one rank alone cannot load is loaded by none
        unfit = next((one for one in from_all(here, failed) if one is not None), None)
        if unfit is None:
            return path
        if here.is_main:
            log.warning("%s", unfit)


def _hash(state: dict[str, Any]) -> str:
    """The hash of a state that has been read; checkpoints of earlier versions hold none."""
    return state[KEY] if KEY in state else content_hash(state)


def _differs(path: Path, layout: str, wanted: str, state: dict[str, Any]) -> str | None:
    """What is wrong with a checkpoint on this rank, as text; its content is put into `state`, empty but on rank 0."""
    if state:
        return None
    try:
        state.update(checkpoint.load(path, layout))
    except CheckpointError as error:
        return str(error)
    return None if _hash(state) == wanted else f"its copy has other bytes ({_hash(state)[:12]}, not {wanted[:12]})"


def _agree(here: World, path: Path, step: int, trouble: str | None) -> None:
    """Raise TrainingError on all ranks if any of them cannot read a checkpoint, or reads another one."""
    troubles = [f"rank {rank}: {text}" for rank, text in enumerate(from_all(here, trouble)) if text is not None]
    if troubles:
        more = f" (and {len(troubles) - 1} more ranks)" if len(troubles) > 1 else ""
        raise TrainingError(
            f"not all ranks have {path} of step {step}, from which rank 0 continues; {troubles[0]}{more}. "
            "Put the run folder where all nodes see the same files"
        )
