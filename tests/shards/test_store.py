from __future__ import annotations

import pickle

import pytest

from shards.storage.base import Store
from shards.storage.store import open_store


@pytest.fixture(params=["folder", "s3"])
def store(request, tmp_path):
    with open_store(request.getfixturevalue("s3") if request.param == "s3" else tmp_path / "store") as opened:
        yield pickle.loads(pickle.dumps(opened))


def put(store: Store, name: str, data: bytes) -> None:
    path = store.partial(name)
    path.write_bytes(data)
    store.put({name: path})
    assert not path.exists()


def test_files_go_in_whole_and_come_back(store, tmp_path):
    store.partial("x").touch()
    store.write("x", b"hello")
    put(store, "packing.partial/y", bytes(range(256)) * 1000)
    assert store.sizes() == {"packing.partial": -1, "x": 5}
    assert store.sizes("packing.partial") == {"y": 256_000}
    assert store.read("x") == b"hello"
    assert store.read_range("x", 1, 3) == b"el"
    assert store.read_range("x", 3, 99) == b"lo"
    with store.open("packing.partial/y") as file:
        file.seek(255_999)
        assert file.read() == b"\xff"
    assert store.read("packing.partial/y") == bytes(range(256)) * 1000
    store.remove("packing.partial")
    store.remove("x")
    assert store.names() == []


@pytest.mark.parametrize("name", ["set[1]", "set?", "se*"])
def test_what_looks_like_a_pattern_is_a_name(store, name):
    """Removing files of such a folder removed those of the folders that it would match."""
    other, odd = (open_store(f"{store.url}/{each}") for each in ("set1", name))
    for one in (other, odd):
        one.write("a", b"a")
        one.write("packing.partial/lock", b"lock")
    odd.remove("a")
    odd.remove("packing.partial")
    assert (other.names(), odd.names()) == (["a", "packing.partial"], [])
    with pytest.raises(FileNotFoundError, match="No such file"):
        odd.remove("a")


def test_what_is_missing_is_named(store):
    calls = (store.read, store.size, store.open, store.remove, lambda name: store.read_range(name, 0, 5))
    for call in calls:
        with pytest.raises(FileNotFoundError, match="No such file") as error:
            call("missing")
        assert error.value.filename == f"{store.url}/missing"
    assert not store.exists("missing")
    assert store.names("nowhere") == []


def test_a_slash_at_the_end_is_not_doubled_in_messages(tmp_path):
    assert open_store(f"{tmp_path}/").url == str(tmp_path)


def test_only_one_can_create_a_name(store):
    store.partial("x").touch()
    store.create("x", b"first")
    with pytest.raises(FileExistsError):
        store.create("x", b"second")
    assert store.read("x") == b"first"


def test_faults_say_what_to_do(s3):
    with pytest.raises(OSError, match=r"Protocol not known.*pip install 'fastmoco\[s3\]'"):
        open_store("nonsense://x")
    with pytest.raises(FileNotFoundError, match="bucket does not exist"):
        open_store("s3://no-such-bucket/x").write("y", b"")
