"""The order on disk: sorted in bounded memory, independent of the source's order, read one shard at a time."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from shards import PackError, PackOptions
from shards.format.layout import MAX_SHARDS
from shards.packing import sorting
from shards.packing.plan import WORK, Entry, Plan, keep_plan, read_plan, read_problems, read_shard
from shards.packing.planning import make_plan
from shards.packing.sorting import BucketSort
from shards.packing.sources import open_source
from shards.storage.store import open_store


def small_memory(monkeypatch: pytest.MonkeyPatch, size: int = 2000) -> None:
    monkeypatch.setattr(sorting, "_BUFFERED", size)
    monkeypatch.setattr(sorting, "_SORTED", size)


def plan_of(tmp_path: Path, lines: list[str], **changes) -> tuple[Plan, Path]:
    (tmp_path / "list.txt").write_text("\n".join(lines))
    options = replace(PackOptions(tmp_path / "list.txt", tmp_path / "out", shard_size=30), **changes)
    return make_plan(options, open_source(options), tmp_path / "making"), tmp_path / "making"


@pytest.mark.parametrize("size", [10**9, 10_000, 2000, 100])
def test_sorting_in_memory_and_on_disk_is_the_same(tmp_path, monkeypatch, size):
    """In memory, in files, and in files merged in several rounds; with equal records and with equal prefixes."""
    small_memory(monkeypatch, size)
    records = [hashlib.sha256(b"%d" % (number % 900)).digest()[: 8 + number % 20] for number in range(1000)]
    records += [b"12345678" + b"%d" % number for number in range(300)]
    sort = BucketSort(tmp_path)
    for record in records:
        sort.add(record)
    assert bool(os.listdir(tmp_path)) == (size <= 10_000)
    assert list(sort.records()) == sorted(records)
    assert os.listdir(tmp_path) == []


def test_the_order_is_that_of_a_keyed_hash(tmp_path, monkeypatch):
    names = [f"{number}.jpg" for number in range(100)]
    small_memory(monkeypatch)
    (tmp_path / "out" / WORK).mkdir(parents=True)
    plan, folder = plan_of(tmp_path, names, seed=5)
    keep_plan(open_store(tmp_path / "out"), folder, plan)
    key = (5).to_bytes(8, "little")
    expected = sorted(map(str.encode, names), key=lambda name: hashlib.blake2b(name, digest_size=8, key=key).digest())
    found = [read_shard(open_store(tmp_path / "out"), shard) for shard in range(4)]
    assert [len(entries) for entries in found] == [30, 30, 30, 10]
    assert [entry for entries in found for entry in entries] == [Entry(name) for name in expected]
    assert sorted(os.listdir(tmp_path / "out" / WORK)) == ["plan.bin", "plan.json", "plan.offsets"]
    assert os.listdir(folder) == ["problems.jsonl"]


def test_a_plan_that_is_kept_already_is_left_alone(tmp_path):
    store = open_store(tmp_path / "out")
    assert read_plan(store) is None
    (tmp_path / "out" / WORK).mkdir(parents=True)
    for _ in range(2):
        plan, folder = plan_of(tmp_path, ["1.jpg", "2.jpg"])
        keep_plan(store, folder, plan)
        assert read_plan(store) == plan
    assert (folder / "plan.bin").exists(), "the second one was not moved"
    with pytest.raises(ValueError, match=r"the plan in .*out has no shard 1"):
        read_shard(store, 1)
    store.write(f"{WORK}/plan.json", b'{"options": ')
    assert read_plan(store) is None


def test_the_limit_takes_the_first_of_the_order(tmp_path, monkeypatch):
    names = [f"{number}.jpg" for number in range(500)] * 2
    small_memory(monkeypatch)
    orders = []
    for limit in (None, 70):
        plan, folder = plan_of(tmp_path, names, limit=limit)
        orders.append((folder / "plan.bin").read_bytes().split(b"\0")[3::5])
        assert plan.images == (limit or 500)
        assert plan.source["images"] == 1000
        assert not (folder / "order").exists()
    assert orders[1] == orders[0][:70]


def test_duplicates_are_reported_once_each_wherever_they_are(tmp_path, monkeypatch):
    small_memory(monkeypatch)
    names = [f"{number}.jpg" for number in range(300)]
    plan, folder = plan_of(tmp_path, names + names[:50] + names[:10])
    assert (plan.images, plan.problems) == (300, 50)
    reasons = {problem.source: problem.reason for problem in read_problems(folder)}
    assert reasons == {
        **dict.fromkeys(names[:50], "duplicate: listed 2 times, packed once"),
        **dict.fromkeys(names[:10], "duplicate: listed 3 times, packed once"),
    }


def test_too_many_shards_are_refused_with_a_size_that_is_enough(tmp_path, monkeypatch):
    monkeypatch.setattr("shards.packing.planning.MAX_SHARDS", 10)
    with pytest.raises(PackError, match="--shard-size 1 makes 31 shards; use at least 4"):
        plan_of(tmp_path, [f"{number}.jpg" for number in range(31)], shard_size=1)
    assert MAX_SHARDS == 10**6


def test_too_many_classes_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("shards.packing.planning.MAX_CLASSES", 10)
    (tmp_path / "table.csv").write_text("path,label\n" + "".join(f"{n}.jpg,name {n}\n" for n in range(12)))
    options = PackOptions(tmp_path / "table.csv", tmp_path / "out", label_column="label")
    with pytest.raises(PackError, match="more than 10 different labels"):
        make_plan(options, open_source(options), tmp_path / "making")


_MEASURED = """
import re, sys
from pathlib import Path
from shards import PackOptions
from shards.packing.planning import make_plan
from shards.packing import sorting
from shards.packing.sources import open_source
sorting._BUFFERED = sorting._SORTED = 1 << 20
src = Path(sys.argv[1])
options = PackOptions(src, src.parent / "out")
make_plan(options, open_source(options), src.parent / "making")
print(re.search(r"VmHWM:\\s*(\\d+) kB", Path("/proc/self/status").read_text())[1])
"""


def test_memory_does_not_grow_with_the_list(tmp_path):
    """In separate processes: 20 times the paths (24 MB of them) take no more than a few buffers."""
    peaks = []
    for count in (10_000, 200_000):
        src = tmp_path / f"{count}.txt"
        src.write_text("".join(f"{'folder/' * 15}{number:012d}.jpg\n" for number in range(count)))
        result = subprocess.run([sys.executable, "-c", _MEASURED, src], capture_output=True, text=True, check=True)
        peaks.append(int(result.stdout))
    assert peaks[1] - peaks[0] < 12_000, f"kB: {peaks}"
