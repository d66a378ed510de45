"""`fastmoco train --dry-run`: what can be checked of a training before a GPU is held."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist

from fastmoco.channels import check_images
from fastmoco.checkpoints import checkpoint
from fastmoco.config import Config
from fastmoco.devices import autocast_dtype
from fastmoco.doctor.findings import Finding
from fastmoco.doctor.needs import disk, memory, time
from fastmoco.doctor.step_memory import step_memory
from fastmoco.flags import flag
from fastmoco.layouts.encoders import read_encoder
from fastmoco.layouts.grey import with_channels
from fastmoco.model.building import new_encoder
from fastmoco.probes.knn import check_k
from fastmoco.probes.sets import LabelledSets
from fastmoco.ranks.joining import launched
from fastmoco.ranks.patience import check_timeout
from fastmoco.ranks.world import TIMEOUT, World, from_all
from fastmoco.runs import copying
from fastmoco.runs.folder import RUNS, continued, removed_if_empty
from fastmoco.runs.lock import only_writer
from fastmoco.runs.wandb_board import check_installed
from fastmoco.trainer.data import Data, check_samples, open_data, places_of
from fastmoco.trainer.loop import wanted
from fastmoco.trainer.resume import Grown, check_compatible
from pipelines.choice import choose
from pipelines.decode import decode
from pipelines.deep import decode_16
from shards import ShardSet
from shards.errors import SampleError, UserError
from shards.words import counted, in_words

TRIED = 4
"""Shards of which each rank decodes an image. Ranks begin with different ones, so that many ranks try many shards."""
ALONE = World(0, 1, torch.device("cpu"))


def dry_run(config: Config) -> list[Finding]:
    """Check a training without starting it. All ranks call it.

    Returns:
        What was found, faults last; empty on all ranks but 0.
    """
    rank, size, _ = launched()
    # before the ranks join: the model would be that of several ranks, whose exchanges have no fake form
    found = list(_of_run(config, size)) if rank == 0 else []
    own = _tried("data", lambda: _readable(config, rank))
    if size > 1:
        # gloo, on machines with GPUs too: none is touched
        dist.init_process_group("gloo", timeout=TIMEOUT)
    of_ranks = from_all(World(rank, size, torch.device("cpu")), (platform.node(), own))
    if size > 1:
        dist.destroy_process_group()
    if rank:
        return []
    found += _of_ranks(of_ranks)
    return sorted(found, key=lambda finding: ("ok", "note", "warn", "stop").index(finding.level))


def _tried(topic: str, look: Callable[[], Iterator[Finding]]) -> list[Finding]:
    """What was found; the error of one that fails, whose message has the remedy, is found, too."""
    found = []
    try:
        for finding in look():
            found.append(finding)
    except UserError as error:
        found.append(Finding(topic, str(error), "stop"))
    except OSError as error:
        found.append(Finding(topic, in_words(error), "stop"))
    return found


def _of_ranks(found: list[tuple[str, list[Finding]]]) -> Iterator[Finding]:
    """The data as all ranks find them: one line if all find the same."""
    if all(findings == found[0][1] for _, findings in found):
        every = f" (the same on all {len(found)} ranks)" if len(found) > 1 else ""
        yield from (replace(finding, text=finding.text + every) for finding in found[0][1])
        return
    for rank, (host, findings) in enumerate(found):
        yield from (replace(each, text=f"rank {rank} on {host}: {each.text}") for each in findings)


def _readable(config: Config, rank: int) -> Iterator[Finding]:
    """The images, as this rank reads them."""
    if config.stream is not None:
        choose(config.pipeline, ALONE.device, config.threads)
        with open_data(config) as data:
            yield Finding("data", f"{data.place}: {counted(data.samples, 'image')} in tars that can be listed")
        return
    for place in config.sets:
        yield _readable_set(config, place, rank)


def _readable_set(config: Config, place: str | Path, rank: int) -> Finding:
    with ShardSet(place) as shard_set:
        choose(config.pipeline, ALONE.device, config.threads, shard_set.bits)
        shards = len(shard_set.ends)
        starts = np.concatenate([[0], shard_set.ends[:-1]])
        # the first and the last index, and others that differ from rank to rank
        tried = {0, shards - 1, *((rank * TRIED + turn) % shards for turn in range(TRIED))}
        for shard in sorted(tried):
            sample = int(starts[shard])
            data = shard_set.check(sample)
            try:
                if shard_set.bits == 8:
                    decode(data)
                else:
                    height, width = shard_set.sizes(np.array([sample]))[0].tolist()
                    decode_16(data, (height, width), shard_set.channels)
            except Exception as error:  # of a decoder, which has errors of its own
                raise SampleError(sample, *shard_set.locate(sample), f"it cannot be decoded: {error}") from error
        what = f"{counted(len(shard_set), 'image')} in {counted(shards, 'shard')}"
        return Finding("data", f"{place}: {what}; the index and an image of some of them can be read")


def _of_run(config: Config, ranks: int) -> Iterator[Finding]:
    """What one rank finds out for all."""
    yield from _tried("settings", lambda: _possible(config))
    with_data = _tried("images", lambda: _steps(config, ranks))
    yield from with_data
    for_new = "--resume none" if config.out is None else "another --out"
    sound = all(finding.level != "stop" for finding in with_data)
    if config.out is None and sound:
        with open_data(config) as data:
            config = replace(config, out=continued(wanted(config, data)))
    yield from _tried("run folder", lambda: _folder(config))
    if config.knn_every:
        yield from _tried("kNN probe", lambda: _probe(config))
    if config.init is not None:
        yield from _tried("--init", lambda: _init(config))
    yield from _tried("checkpoint", lambda: _checkpoint(config, for_new))
    if sound:  # without images and a batch there is no step
        yield from _tried("memory", lambda: _needs(config, ranks))


def _possible(config: Config) -> Iterator[Finding]:
    """Nothing, unless the encoder or this machine does not allow a setting."""
    check_installed(config.wandb)
    check_timeout(config.rank_timeout, *places_of(config))
    with torch.device("meta"):
        new_encoder(config)
    yield from ()


def _needs(config: Config, ranks: int) -> Iterator[Finding]:
    with open_data(config) as data:
        dtype = autocast_dtype(config.precision, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
        needed = step_memory(config, config.batch_size // ranks, data.images, dtype)
        yield memory(needed, config, ranks)
        total = _total(config, data)
        yield disk(config, needed.checkpoint, total * config.batch_size // data.samples)
        yield time(config, total)


def _total(config: Config, data: Data) -> int:
    return config.total_steps(data.samples // config.batch_size)


def _steps(config: Config, ranks: int) -> Iterator[Finding]:
    with open_data(config) as data:
        check_samples(data, config)
        each = config.per_rank_batch(ranks)
        steps = data.samples // config.batch_size
        yield from (Finding("images", line) for line in data.sets)
        yield Finding(
            "steps",
            f"{steps:,} of {counted(config.batch_size, 'image')} an epoch, {_total(config, data):,} in all; "
            f"{counted(ranks, 'rank')} of {counted(each, 'image')}"
            + f" in {config.accumulate} micro-batches"
            * (config.accumulate > 1),
        )


def _folder(config: Config) -> Iterator[Finding]:
    if config.out is None:
        folder = RUNS if RUNS.is_dir() else Path()
        able = os.access(folder, os.W_OK)
        text = f"{folder.resolve()} {'can' if able else 'cannot'} be written; the folder is chosen when the run starts"
        yield Finding("run folder", text, "ok" if able else "stop", "" if able else "give --out")
        return
    with removed_if_empty(config.out, ALONE), only_writer(config.out, ALONE):
        yield Finding("run folder", f"{config.out} can be written, and no other process writes to it")


def _probe(config: Config) -> Iterator[Finding]:
    assert config.knn_val is not None  # checked with the settings
    sets = LabelledSets(config.knn_train or config.sets[0], config.knn_val)
    check_images(config.channels, "--channels 1", sets.train, sets.val)
    check_k(config.knn_k, sets, "--knn-k")
    text = f"{counted(len(sets.val_ids), 'image')} in {config.knn_val}, {counted(sets.val_classes, 'class')}"
    yield Finding("kNN probe", text)


def _init(config: Config) -> Iterator[Finding]:
    assert config.init is not None
    with_channels(config.init, read_encoder(config.init, config.arch, config.image_size), config.channels)
    yield Finding("--init", f"{config.init} holds a {config.arch}")


def _checkpoint(config: Config, for_new: str) -> Iterator[Finding]:
    """The checkpoint that the run would continue from, and whether it fits; `for_new` is what to give for a new run."""
    folder = None if config.out is None else config.out / "checkpoints"
    found = None if folder is None else checkpoint.newest(folder)
    if found is not None and config.resume == "none":
        yield Finding("checkpoint", f"--resume none, but {folder} holds checkpoints", "stop", "choose another --out")
        return
    if found is None and config.resume not in ("auto", "none"):
        path = checkpoint.newest_of(Path(config.resume))
        found = path, checkpoint.load(path)
    place = config.checkpoint_copy
    if place is not None:
        ahead = copying.ahead(place, config.out, "--resume none" if config.resume == "none" else None)
        if ahead is not None:
            yield Finding("checkpoint", f"continues from {ahead}; whether it fits is seen once it is fetched")
            return
    if found is None:
        with open_data(config) as data:
            data.check()  # a run that continues may leave out images in colour, which were appended
        yield Finding("checkpoint", "none: a new run begins")
        return
    path, state = found
    with open_data(config) as data:
        total = _total(config, data)
        try:
            changed = check_compatible(path, state, config, data.digest, data.had, data.scaling)
        except Grown as grown:
            yield Finding("checkpoint", f"{grown}, and continues without them", "warn")
            return
    step = state["progress"]["step"]
    differing = "; ".join(checkpoint.in_words({flag(name): pair for name, pair in changed.items()}))
    if step >= total:
        text = f"{path} is that of a finished run: {step:,} of {total:,} steps are done"
        text += f", with other settings: {differing}" * bool(differing)
        yield Finding("checkpoint", text, "stop" if differing else "note", f"for a new run, give {for_new}")
        return
    text = f"continues from {path}: {step:,} steps are done"
    if differing:
        text += f"; settings that differ: {differing}"
    yield Finding("checkpoint", text, "warn" if differing else "ok")
