"""Features kept on disk: CACHE/KEY/features-R-of-W.npy by rank, and about.json, which makes them valid.

The key is the hash of all that decides the features, the weights among them, so another checkpoint, set or size
never meets the features of this one; about.json is written last and holds the same in words.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from fastmoco import __version__
from fastmoco.distributed import World, all_gather_rows
from shards.storage.files import whole_file, write_whole

log = logging.getLogger(__name__)


def key_of(
    encoder: str, shard_set: str, ids: np.ndarray, resize: int, crop: int, precision: str
) -> dict[str, str | int]:
    """All that decides a set's features.

    Args:
        encoder: hash of its weights.
        shard_set: digest of the set.
        ids: int64[N], the samples.
        resize: short side before the crop.
        crop: side of the crop.
        precision: that the encoder computes in.
    """
    return {
        "encoder": encoder, "set": shard_set, "samples": len(ids), "ids": hashlib.sha256(ids.tobytes()).hexdigest(),
        "resize": resize, "crop": crop, "precision": precision, "version": __version__,
    }  # fmt: skip


def cached_parts(
    cache: Path, key: dict[str, Any], here: World, shape: tuple[int, int], fill: Callable[[np.ndarray], None]
) -> list[np.ndarray]:
    """The files of all ranks, mapped into memory; made where they are not there yet.

    Args:
        cache: folder of the cache, one that all ranks see.
        key: what `key_of` gives.
        here: this rank.
        shape: rows and columns of this rank's features.
        fill: writes them into an array of that shape, float32.
    """
    folder = cache / hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:32]
    parts = _open(folder, key)
    if not _all_ranks(parts is not None, here):
        folder.mkdir(parents=True, exist_ok=True)
        _write(folder / _name(here.rank, here.size), shape, fill)
        if here.size > 1:
            dist.barrier()
        if here.is_main:
            about = json.dumps(key | {"ranks": here.size}, indent=1) + "\n"
            write_whole(folder / "about.json", about.encode())
            log.info("wrote %d features to the cache %s", key["samples"], folder)
        if here.size > 1:
            dist.barrier()
        parts = _open(folder, key)
        if parts is None:
            raise OSError(f"the features just written to {folder} cannot be read on rank {here.rank}")
    elif here.is_main:
        log.info("took %d features from the cache %s", key["samples"], folder)
    assert parts is not None  # all ranks have found theirs
    return parts


def _name(rank: int, ranks: int) -> str:
    return f"features-{rank}-of-{ranks}.npy"


def _open(folder: Path, key: dict[str, Any]) -> list[np.ndarray] | None:
    """The parts, where about.json says that they are these features and all are whole."""
    about = folder / "about.json"
    if not about.exists():
        return None
    try:
        told = json.loads(about.read_text(encoding="utf-8"))
        if {name: told[name] for name in key} != key:
            raise ValueError("about.json tells of other features")
        parts = [np.load(folder / _name(rank, told["ranks"]), mmap_mode="r") for rank in range(told["ranks"])]
        if sum(map(len, parts)) != key["samples"]:
            raise ValueError(f"{sum(map(len, parts))} features are there")
    except (OSError, ValueError, KeyError, TypeError) as error:
        log.warning("the features in %s cannot be used and are made anew: %s", folder, error)
        return None
    return parts


def _write(path: Path, shape: tuple[int, int], fill: Callable[[np.ndarray], None]) -> None:
    with whole_file(path) as file:  # mapped by its name, since numpy maps no open file
        out = np.lib.format.open_memmap(file.name, mode="w+", dtype=np.float32, shape=shape)
        fill(out)
        out.flush()


def _all_ranks(condition: bool, here: World) -> bool:
    """Whether it holds on every rank."""
    return bool(all_gather_rows(torch.tensor([condition], device=here.device)).all())
