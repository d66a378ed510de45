"""Ranks that opened different images: one before images were appended to a set, another after."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import torch

from fastmoco.probes.encoders import digest_of, open_encoder
from shards import ShardSet
from tests.support.sets import pack_set

OPENED = Path(__file__).parent / "scripts" / "opened.py"
SMALL = ("--recipe", "demo", "--image-size", 32, "--batch-size", 8, "--queue-size", 16, "--steps", 2, "--threads", 1)
ENCODER = ("--checkpoint", "untrained", "--arch", "resnet10", "--image-size", 32, "--threads", 1)
SETS = ("--train", "set", "--val", "val")
READ, SAME = (
    ("encoder.pth", "--arch", "resnet10", "--image-size", 32, "--threads", 1),
    ("--train", "val", "--val", "val"),
)


@pytest.fixture(scope="module")
def nodes(photos, shard_sets, tmp_path_factory):
    """Folders of two ranks, each with a set `val`, a tar, and a `set` to which images were appended on rank 1 alone."""
    folder = tmp_path_factory.mktemp("nodes")
    for rank in ("0", "1"):
        shutil.copytree(shard_sets / "val", folder / rank / "val")
        pack_set(photos / "train", folder / rank / "set", shard_size=32)
    pack_set(photos / "val", folder / "1" / "set", shard_size=32, append=True)
    for rank, tar, images in (("0", "shard-000000.tar", 32), ("1", "shard-000003.tar", 24)):
        shutil.copy(folder / rank / "set" / tar, folder / rank / "one.tar")
        (folder / rank / "one_stats.json").write_text(json.dumps({"successes": images}))
    return folder


@pytest.mark.distributed
@pytest.mark.parametrize(
    "arguments",
    [
        ("train", "--shards", "set", *SMALL),
        pytest.param(("train", "--shards", "set", "val", *SMALL), marks=pytest.mark.long),
        ("train", "--shards", "val", "--knn-val", "set", "--knn-every", 1, *SMALL),
        pytest.param(("train", "--stream", "one.tar", *SMALL), marks=pytest.mark.long),
        pytest.param(("knn", *ENCODER, *SETS), marks=pytest.mark.long),  # by the class of --knn-val
        ("linear", *ENCODER, *SETS, "--batch-size", 8, "--out", "run"),
        ("finetune", *ENCODER, *SETS, "--batch-size", 8, "--fraction", 0.5, "--out", "run"),
        ("embed", *ENCODER, "--images", "set", "--out", "features"),
    ],
    ids=lambda arguments: " ".join(map(str, arguments[:4])),
)
def test_all_end_before_they_begin_in_a_line_with_both_values(torchrun, nodes, monkeypatch, arguments):
    monkeypatch.setattr(torchrun, "_cwd", nodes)
    ended = torchrun(2, OPENED, *arguments, check=False)
    if "--stream" in arguments:
        values = [r"one\.tar with 32 images \(digest \w{12}\)", r"one\.tar with 24 images \(digest \w{12}\)"]
    else:
        values = [f"set with {images} images \\(digest {digest}\\)" for images, digest in opened(nodes)]
    line = (
        f"fastmoco {arguments[0]}: the ranks do not have the same images: rank 0 opened {values[0]}, rank 1 "
        f"{values[1]}; either images were being appended, or nodes hold different copies. Once the set is the same for "
        "all ranks, run the same command again"
    )
    last = ended.stderr.splitlines()[-1]
    assert re.fullmatch(line, last) and ended.stderr.count("do not have the same images") == 1, ended.stderr
    assert ended.returncode == 1 and "step" not in ended.stderr
    assert not list(nodes.glob("*/features/*"))


@pytest.mark.distributed
@pytest.mark.parametrize(
    "arguments",
    [
        ("knn", "--checkpoint", *READ, *SAME),
        pytest.param(
            ("linear", "--checkpoint", *READ, *SAME, "--batch-size", 8, "--out", "run"), marks=pytest.mark.long
        ),
        pytest.param(("embed", "--checkpoint", *READ, "--images", "val", "--out", "features"), marks=pytest.mark.long),
        pytest.param(("train", "--init", *READ, "--shards", "val", *SMALL), marks=pytest.mark.long),
    ],
    ids=lambda arguments: arguments[0],
)
def test_ranks_that_read_different_encoders_end_as_well(torchrun, nodes, monkeypatch, arguments):
    """As from a run folder whose training writes a checkpoint meanwhile."""
    monkeypatch.setattr(torchrun, "_cwd", nodes)
    digests = []
    for rank in (0, 1):
        encoder = open_encoder("untrained", "resnet10", seed=rank).encoder
        torch.save(encoder.state_dict(), nodes / str(rank) / "encoder.pth")
        digests.append(digest_of(encoder)[:12])
    ended = torchrun(2, OPENED, *arguments, check=False)
    line = (
        f"fastmoco {arguments[0]}: the ranks do not have the same encoder of (/.*/)?encoder.pth: the hash of its "
        f"weights is {digests[0]} on rank 0, {digests[1]} on rank 1; either a training wrote a checkpoint .*"
    )
    assert re.fullmatch(line, ended.stderr.splitlines()[-1]) and ended.returncode == 1, ended.stderr


def opened(nodes):
    """Number of images and digits of the digest of the set of each rank."""
    for rank in ("0", "1"):
        with ShardSet(nodes / rank / "set") as shard_set:
            yield len(shard_set), shard_set.digest[:12]
