from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from shards.errors import ShardSetError
from shards.storage.cache import Cache, cache_bytes
from shards.storage.local import LocalStore

DIGEST = "ab" * 32


@pytest.fixture
def files(tmp_path: Path) -> LocalStore:
    (tmp_path / "files").mkdir()
    for number in range(6):
        (tmp_path / "files" / str(number)).write_bytes(bytes([number]) * 1000)
    return LocalStore(tmp_path / "files")


def cache(files: LocalStore, tmp_path: Path, bound: int = 3000) -> Cache:
    return Cache(files, DIGEST, tmp_path / "cache", bound)


def lying(tmp_path: Path) -> set[str]:
    return {path.name for path in (tmp_path / "cache" / DIGEST[:32]).iterdir()}


def test_the_file_used_longest_ago_makes_room(files, tmp_path):
    held = cache(files, tmp_path)
    for name in "012":
        assert held.fetch(name, 1000)
        os.utime(held.path(name), (time.time() - 100 + int(name),) * 2)
    assert held.pread("0", 10, 3) == b"\0\0\0"
    assert held.fetch("3", 1000)
    assert lying(tmp_path) == {"0", "2", "3"}
    assert held.pread("1", 0, 1) is None


def test_a_reader_keeps_a_file_that_is_removed(files, tmp_path):
    held = cache(files, tmp_path, bound=1000)
    assert held.fetch("0", 1000)
    with open(held.path("0"), "rb", buffering=0) as reader:
        assert held.fetch("1", 1000)
        assert not held.path("0").exists()
        assert reader.read() == bytes(1000)


def test_shards_that_do_not_fit_are_not_fetched(files, tmp_path):
    held = cache(files, tmp_path, bound=2500)
    assert [held.fetch(name, 1000, idle=60) for name in "012"] == [True, True, False]
    assert not held.fetch("3", 2501)
    assert lying(tmp_path) == {"0", "1"}


def test_a_short_file_is_an_error_and_leaves_nothing(files, tmp_path):
    with pytest.raises(OSError, match="ends after 1,000 of 1,001 bytes"):
        cache(files, tmp_path).fetch("0", 1001)
    assert lying(tmp_path) == set()


def test_unrelated_files_in_the_folder_are_kept(files, tmp_path):
    held = cache(files, tmp_path, bound=1000)
    (tmp_path / "cache" / "precious").mkdir()
    (tmp_path / "cache" / "precious" / "thesis").write_bytes(bytes(5000))
    assert held.fetch("0", 1000)
    assert held.fetch("1", 1000)
    assert (tmp_path / "cache" / "precious" / "thesis").exists()


def test_a_fetch_leaves_the_part_of_the_next_one_alone(files, tmp_path, monkeypatch):
    """Another process evicts the file right after its rename, and begins to fetch it again."""
    rename = os.replace

    def replace(part: Path, path: Path) -> None:
        rename(part, path)
        path.unlink()
        part.write_bytes(b"of another process")

    monkeypatch.setattr(os, "replace", replace)
    assert cache(files, tmp_path).fetch("0", 1000)
    assert lying(tmp_path) == {"0.part"}


def test_threads_and_processes_fetch_a_file_once_and_keep_the_bound(files, tmp_path):
    script = (
        "import sys; from pathlib import Path; from shards.storage.cache import Cache\n"
        "from shards.storage.local import LocalStore\n"
        f"held = Cache(LocalStore({files.url!r}), {DIGEST!r}, Path({str(tmp_path / 'cache')!r}), 3000)\n"
        "for turn in range(60):\n"
        "    name = str(turn * 5 % 6)\n"
        "    held.fetch(name, 1000)\n"
        "    data = held.pread(name, 0, 1000)\n"
        "    assert data in (None, bytes([int(name)]) * 1000)\n"
    )
    with ThreadPoolExecutor(3) as pool:
        runs = pool.map(lambda _: subprocess.run([sys.executable, "-c", script], capture_output=True), range(3))
    assert [run.stderr.decode() for run in runs] == ["", "", ""]
    held = cache(files, tmp_path)
    assert sum(size for *_, size in held._files()) <= 3000


def test_a_part_of_a_killed_process_is_taken_over(files, tmp_path):
    held = cache(files, tmp_path, bound=1500)
    code = (
        "import time; from pathlib import Path; from shards.storage.cache import Cache\n"
        "from shards.storage.local import LocalStore\n"
        f"held = Cache(LocalStore({files.url!r}), {DIGEST!r}, Path({str(tmp_path / 'cache')!r}), 1500)\n"
        "held._download = lambda *_: (print('now', flush=True), time.sleep(60))\n"
        "held.fetch('0', 1000)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"now\n"
    assert lying(tmp_path) == {"0.part"}
    assert not held.fetch("0", 1000, wait=False), "another process is fetching it"
    assert not held.fetch("1", 1000), "its part takes room"
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert held.fetch("1", 1000)
    assert held.fetch("0", 1000)
    assert lying(tmp_path) == {"0"}


@pytest.mark.parametrize(("text", "size"), [("1000", 1000), ("1.5GB", 1_500_000_000), ("2k", 2000), ("", None)])
def test_bound_by_the_environment(monkeypatch, text, size):
    monkeypatch.setenv("FASTMOCO_CACHE_BYTES", text)
    assert cache_bytes() == size


def test_an_invalid_bound_is_named(monkeypatch):
    monkeypatch.setenv("FASTMOCO_CACHE_BYTES", "much")
    with pytest.raises(ShardSetError, match="FASTMOCO_CACHE_BYTES='much' is not a size"):
        cache_bytes()
