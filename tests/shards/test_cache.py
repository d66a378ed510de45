from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from shards.errors import ShardSetError, UserError
from shards.storage.cache import Cache, Differs, cache_bytes, cache_folder
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
    return {path.name for path in (tmp_path / "cache").glob("*/*")}


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
        "import signal; from pathlib import Path; from shards.storage.cache import Cache\n"
        "from shards.storage.local import LocalStore\n"
        f"held = Cache(LocalStore({files.url!r}), {DIGEST!r}, Path({str(tmp_path / 'cache')!r}), 1500)\n"
        "def slow(*_): print('now', flush=True); yield b''; signal.pause()\n"
        "held._download = slow\n"
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


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 64 KiB."""
    place = tmp_path / "disk"
    place.mkdir()
    if os.geteuid() or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", place]).returncode:
        pytest.skip("only root may mount a small disk")
    yield place
    subprocess.run(["umount", "-l", place], check=True)


def test_a_disk_that_fills_up_while_a_file_is_fetched_leaves_no_part_of_it(small_disk, tmp_path):
    class Filling(LocalStore):
        """Something else fills the disk once the file has its room."""

        def read_range(self, name: str, start: int, end: int) -> bytes:
            (small_disk / "other").write_bytes(bytes(56 << 10))
            return super().read_range(name, start, end)

    (tmp_path / "0").write_bytes(bytes(40_000))
    held = Cache(Filling(tmp_path), DIGEST, small_disk / "cache", 10**6)
    with pytest.raises(OSError, match="No space left on device"):
        held.fetch("0", 40_000)
    assert list((small_disk / "cache").glob("*/*")) == []
    with pytest.raises(OSError, match="No space left on device"):
        held.keep("0", bytes(40_000))
    assert list((small_disk / "cache").glob("*/*")) == []
    (small_disk / "other").unlink()
    assert held.keep("0", bytes(40_000)) and held.pread("0", 0, 40_000) == bytes(40_000)
    assert held.keep("1", bytes(30_000)), "what lies in the cache makes room on a full disk as well"
    assert held.pread("0", 0, 1) is None


def test_a_file_of_another_hash_is_not_kept(files, tmp_path):
    held = cache(files, tmp_path)
    right = hashlib.sha256(bytes([1]) * 1000).hexdigest()
    with pytest.raises(Differs, match="its SHA-256 is not that of the manifest"):
        held.fetch("0", 1000, right)
    assert lying(tmp_path) == set()
    assert held.fetch("1", 1000, right)


def test_sets_that_claim_one_digest_share_nothing(files, tmp_path):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "0").write_bytes(b"x" * 1000)
    assert cache(LocalStore(tmp_path / "other"), tmp_path).fetch("0", 1000)
    held = cache(files, tmp_path)
    assert held.pread("0", 0, 9) is None
    assert held.fetch("0", 1000) and held.pread("0", 0, 9) == bytes(9)


@pytest.fixture
def as_another_user() -> Iterator[Callable[[], None]]:
    if os.geteuid():
        pytest.skip("only root may become another user")
    yield lambda: os.seteuid(65534)
    os.seteuid(0)


def test_users_who_share_a_folder_have_entries_of_their_own(files, tmp_path, as_another_user):
    for folder in (tmp_path, *tmp_path.parents[:3]):
        folder.chmod(0o755)
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache").chmod(0o1777)
    mine = cache(files, tmp_path, bound=1000)
    assert mine.fetch("0", 1000)
    as_another_user()
    theirs = cache(files, tmp_path, bound=1000)
    assert theirs.pread("0", 0, 1) is None and theirs.fetch("0", 1000) and theirs.fetch("1", 1000)
    assert theirs.folder.stat().st_mode & 0o777 == 0o700
    os.seteuid(0)
    assert mine.pread("0", 0, 1) == b"\0", "another user's limit evicts nothing of this one"
    os.chown(mine.folder, 65534, -1)
    with pytest.raises(PermissionError, match="it belongs to the user nobody"):
        cache(files, tmp_path)
    os.chown(mine.folder, 0, -1)
    os.chown(mine.path("0"), 65534, -1)
    assert mine.pread("0", 0, 1) is None, "what another user has put there is not read"


def test_packed_folders_and_features_are_a_users_own(tmp_path, monkeypatch, as_another_user):
    """Beside those of the user who was first, in folders that both may write to."""
    import torch

    from fastmoco.api.sources import _place
    from fastmoco.probes.cache import cached_parts
    from fastmoco.ranks.world import World
    from shards import PackOptions

    for folder in (tmp_path, *tmp_path.parents[:3]):
        folder.chmod(0o755)
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache").chmod(0o1777)
    monkeypatch.setenv("FASTMOCO_CACHE", str(tmp_path / "cache"))

    def features(value: int) -> float:
        here = World(0, 1, torch.device("cpu"))

        def fill(out: np.ndarray) -> np.ndarray:
            out.fill(value)
            return np.zeros(0, np.int64)  # no bad image

        [part], _ = cached_parts(tmp_path / "cache", {"samples": 2}, here, (2, 3), fill)
        return float(part[0, 0])

    options = PackOptions(Path("/images"), tmp_path / "set")
    mine = _place("content", options).parent
    assert (features(1), features(2)) == (1, 1) and mine.name == "packed"
    as_another_user()
    theirs = _place("content", options).parent
    assert theirs.name == "packed-65534" and theirs.stat().st_mode & 0o777 == 0o700
    assert (features(3), features(4)) == (3, 3)
    os.seteuid(0)
    assert features(5) == 1
    mine.chmod(0o777)
    with pytest.raises(UserError, match=f"cannot use the cache folder {mine}: other users may write to it"):
        _place("content", options)


def test_a_cache_without_a_local_folder_is_refused_with_the_remedy(monkeypatch):
    """A URL would be a local folder `s3:`; a user of a container may have no home, nor an entry among the users."""
    monkeypatch.setenv("FASTMOCO_CACHE", "s3://bucket/cache")
    with pytest.raises(ShardSetError, match="FASTMOCO_CACHE=s3://bucket/cache is a URL; set it to a local folder"):
        cache_folder()
    for name in ("FASTMOCO_CACHE", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", {}.__getitem__)  # KeyError, as for a number without an entry
    with pytest.raises(ShardSetError, match="this user has no home; set FASTMOCO_CACHE to a folder of your own"):
        cache_folder()
    monkeypatch.setenv("XDG_CACHE_HOME", "/caches")
    assert cache_folder() == Path("/caches/fastmoco")


def test_a_cache_below_a_file_is_refused_with_the_remedy(tmp_path, monkeypatch):
    from fastmoco.api.sources import _place
    from shards import PackOptions

    (tmp_path / "cache").touch()
    monkeypatch.setenv("FASTMOCO_CACHE", str(tmp_path / "cache"))
    with pytest.raises(UserError, match=r"cannot use the cache folder .*/cache/packed: .*; set FASTMOCO_CACHE to a"):
        _place("content", PackOptions(Path("/images"), tmp_path / "set"))


def test_a_folder_of_another_user_is_refused_with_a_reason(files, tmp_path, as_another_user):
    for folder in (tmp_path, *tmp_path.parents[:3]):
        folder.chmod(0o755)
    cache(files, tmp_path)
    as_another_user()
    with pytest.raises(PermissionError, match=rf"Permission denied \({tmp_path}/cache belongs to the user root\)"):
        cache(files, tmp_path)


def test_a_folder_that_others_may_write_to_and_a_link_are_refused(files, tmp_path):
    held = cache(files, tmp_path)
    held.folder.chmod(0o777)
    with pytest.raises(PermissionError, match=f"other users may write to it: chmod 700 {held.folder}"):
        cache(files, tmp_path)
    held.folder.rmdir()
    held.folder.symlink_to(tmp_path / "files")
    with pytest.raises(PermissionError, match="it is a link"):
        held.fetch("0", 1000)


@pytest.mark.parametrize(("text", "size"), [("1000", 1000), ("1.5GB", 1_500_000_000), ("2k", 2000), ("", None)])
def test_bound_by_the_environment(monkeypatch, text, size):
    monkeypatch.setenv("FASTMOCO_CACHE_BYTES", text)
    assert cache_bytes() == size


def test_an_invalid_bound_is_named(monkeypatch):
    monkeypatch.setenv("FASTMOCO_CACHE_BYTES", "much")
    with pytest.raises(ShardSetError, match="FASTMOCO_CACHE_BYTES='much' is not a size"):
        cache_bytes()
