"""Every command that reads a shard set names a damaged index, and how to repair it, in one line."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

COMMANDS = {
    "fastmoco train": "--recipe demo --shards SET --out run --batch-size 32 --steps 1",
    "fastmoco knn": "--checkpoint untrained --arch resnet10 --image-size 32 --train SET --val SET",
    "fastmoco sheet": "--shards SET --out views.png",
}


@pytest.mark.parametrize("damage", [b"", b"rubbish" * 100], ids=["empty", "garbage"])
@pytest.mark.parametrize("name", COMMANDS)
def test_a_damaged_index_ends_in_one_line(shard_sets, tmp_path, in_process, name, damage):
    damaged = Path(shutil.copytree(shard_sets / "train", tmp_path / "set")) / "shard-000001.npy"
    damaged.write_bytes(damage)
    ended = in_process(
        *("-m", "fastmoco.__main__", name.split()[1]),
        *COMMANDS[name].replace("SET", str(tmp_path / "set")).split(),
        check=False,
    )
    assert ended.returncode == 2
    assert "Traceback" not in ended.stderr
    last = ended.stderr.splitlines()[-1]
    assert last.startswith(f"{name}: {damaged} is damaged: ") and "run the fastmoco pack command that packed" in last
