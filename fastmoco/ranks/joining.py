"""How ranks meet: in a part of torchrun's store that belongs to this start of the group alone."""

from __future__ import annotations

import os
import time
import uuid
from datetime import timedelta

import torch.distributed as dist

from fastmoco.ranks.endings import PeerError
from shards.errors import UserError
from shards.words import counted, duration

_TURN = 0.1  # seconds between two looks into the store


class LaunchError(UserError):
    """The environment describes ranks that no launcher started."""

    one_rank = True


def launched() -> tuple[int, int, int]:
    """Rank, number of ranks, and rank on this node, as torchrun sets them; 0, 1 and 0 without it.

    Raises:
        LaunchError: What the environment says is no launcher's, as where a shell or a job has set a part of it.
    """
    values = {"RANK": 0, "WORLD_SIZE": 1, "LOCAL_RANK": 0}
    for name in values:
        text = os.environ.get(name)
        if text is not None:
            if not text.isdecimal():
                raise LaunchError(f"{name} is {text!r} in the environment, which is no number; {_remedy(name)}")
            values[name] = int(text)
    rank, size, local_rank = values.values()
    lacking = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if size > 1 and lacking:
        without = f"without {', '.join(lacking)}"
        raise LaunchError(f"WORLD_SIZE is {size} in the environment, {without}; {_remedy('WORLD_SIZE')}")
    if rank >= size:
        raise LaunchError(f"RANK is {rank} in the environment, and WORLD_SIZE {size}; {_remedy('RANK')}")
    return rank, size, local_rank


def _remedy(name: str) -> str:
    return f"start several ranks by torchrun, or, for one process: unset {name}"


def meet(rank: int, size: int, timeout: timedelta) -> dist.Store:
    """A store for the process group, empty at first, once all ranks of this start are there.

    torchrun's agent keeps its store when it starts ranks again, and with it the addresses that the processes before
    them left, to which the new ones would connect. TORCHELASTIC_RESTART_COUNT does not tell the starts apart: each
    agent counts its own restarts, so that of a node that has just joined differs from the others'.

    Args:
        rank: Rank of this process.
        size: Number of ranks.
        timeout: For how long to wait for the others; it also becomes the store's.

    Raises:
        PeerError: Not all ranks came in time, or the store is gone.
    """
    try:
        store, *_ = next(iter(dist.rendezvous("env://", timeout=timeout)))
        store.set_timeout(timeout)
        meeting = dist.PrefixStore("fastmoco", store)
        name = (_call if rank == 0 else _answer)(meeting, rank, size, time.monotonic() + timeout.total_seconds())
    except dist.DistError as error:
        raise PeerError(
            "lost the connection to torchrun's store, which is on the node of rank 0; "
            "run the same command again on all nodes"
        ) from error
    if name is None:
        raise PeerError(
            f"rank {rank} of {counted(size, 'rank')} waited {duration(timeout.total_seconds())} for the others to "
            "start; look for errors on their nodes, and run the same command again on all of them"
        )
    return dist.PrefixStore(name, meeting)


def _call(store: dist.Store, _: int, size: int, end: float) -> str | None:
    """Rank 0: choose a name, wait for all others' answers, and confirm them."""
    name = uuid.uuid4().hex
    store.set("name", name)
    answers: list[str] = []
    while len(answers) < size - 1:
        if store.check([key := f"{name}/{len(answers) + 1}"]):
            answers.append(store.get(key).decode())
        elif time.monotonic() > end:
            return None
        else:
            time.sleep(_TURN)
    store.set(f"{name}/all", " ".join(answers))
    return name


def _answer(store: dist.Store, rank: int, _: int, end: float) -> str | None:
    """Other ranks: answer the name that is there until it is confirmed.

    At first it may be that of an earlier start, whose confirmation does not have this process's answer.
    """
    mine, answered = uuid.uuid4().hex, ""
    while time.monotonic() < end:
        name = store.get("name").decode() if store.check(["name"]) else ""
        if name != answered:
            store.set(f"{name}/{rank}", mine)
            answered = name
        if name and store.check([f"{name}/all"]) and mine in store.get(f"{name}/all").decode().split():
            return name
        time.sleep(_TURN)
    return None
