"""Features on disk: CACHE/KEY/features-R-of-W.npy for each rank, and about.json, which commits them.

The key is a hash of all that determines the features, the weights included, so that another checkpoint, set or size
never finds them. about.json holds the same as text and is written last: without it the files are incomplete.
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

from fastmoco.probes.together import attempt, of_all_ranks
from fastmoco.ranks.exchange import all_gather_rows
from fastmoco.ranks.world import World
from shards._software import version_of
from shards.format.manifest import parse_json
from shards.storage.files import whole_file, write_whole
from shards.storage.private import own_of, private_folder

log = logging.getLogger(__name__)


def key_of(
    encoder: str, shard_set: str, ids: np.ndarray, images: dict[str, Any], precision: str, backend: str
) -> dict[str, Any]:
    """All that determines a set's features.

    Args:
        encoder: hash of its weights.
        shard_set: digest of the set.
        ids: int64[N], the samples.
        images: what images are made into: size, crop and normalisation.
        precision: precision of the encoder's forward pass.
        backend: reads the images; their pixels differ by a level of 255 between backends.
    """
    return {
        "encoder": encoder, "set": shard_set, "samples": len(ids), "ids": hashlib.sha256(ids.tobytes()).hexdigest(),
        # the version, since another one may decode, resize or normalise otherwise
        **images, "precision": precision, "backend": backend, "version": version_of("fastmoco"),
    }  # fmt: skip


def cached_parts(
    cache: Path, key: dict[str, Any], here: World, shape: tuple[int, int], fill: Callable[[np.ndarray], np.ndarray]
) -> tuple[list[np.ndarray], np.ndarray]:
    """The files of all ranks, mapped into memory; computed if they do not exist. And the positions of bad images.

    Args:
        cache: folder of the cache, visible to all ranks.
        key: as `key_of` returns it.
        here: this rank.
        shape: rows and columns of this rank's features.
        fill: writes them to a float32 array of that shape, and returns the positions of bad images, int64[n].
    """
    # of another user, whose features are not believed, the folder has that name; this user's then has another
    folder = own_of(cache / hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:32])
    found = _open(folder, key)
    # all compute if one rank cannot open the files: the barriers below need every rank
    opened = torch.tensor([found is not None], device=here.device)
    if not all_gather_rows(opened).all():

        def computed() -> np.ndarray:
            private_folder(folder)
            with whole_file(folder / _name(here.rank, here.size)) as file:
                # mapped by its name, since numpy maps no open file
                out = np.lib.format.open_memmap(file.name, mode="w+", dtype=np.float32, shape=shape)
                bad = fill(out)
                out.flush()
            return bad

        bad = of_all_ranks(attempt(here, computed), here)
        if here.is_main:
            # behind that exchange: about.json commits the files of all ranks
            about = json.dumps(key | {"ranks": here.size, "bad": bad.tolist()}, indent=1) + "\n"
            write_whole(folder / "about.json", about.encode())
            log.info("wrote %d features to the cache %s", key["samples"], folder)
        if here.size > 1:
            dist.barrier()
        found = _open(folder, key)
        if found is None:
            raise OSError(f"the features just written to {folder} cannot be read on rank {here.rank}")
    elif here.is_main:
        log.info("took %d features from the cache %s", key["samples"], folder)
    assert found is not None  # every rank has opened them
    return found


def _name(rank: int, ranks: int) -> str:
    return f"features-{rank}-of-{ranks}.npy"


def _open(folder: Path, key: dict[str, Any]) -> tuple[list[np.ndarray], np.ndarray] | None:
    """As `cached_parts`, if about.json describes these features and all files are complete."""
    about = folder / "about.json"
    if not about.exists():
        return None
    try:
        private_folder(folder)
        about_them = parse_json(about.read_bytes())
        if {name: about_them[name] for name in key} != key:
            raise ValueError("about.json describes other features")
        ranks = about_them["ranks"]
        # mapped, since the features of a large set do not fit into each rank's memory
        parts = [np.load(folder / _name(rank, ranks), mmap_mode="r") for rank in range(ranks)]
        if sum(map(len, parts)) != key["samples"]:
            raise ValueError(f"the files hold {sum(map(len, parts))} features")
        bad = np.array(about_them.get("bad", []), np.int64)  # earlier versions stopped at a bad image
    except (OSError, ValueError, KeyError, TypeError) as error:
        log.warning("the features in %s cannot be used and are computed again: %s", folder, error)
        return None
    return parts, bad
