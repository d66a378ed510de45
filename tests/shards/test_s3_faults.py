"""Packing from and into S3 that throttles, breaks off, refuses, and whose tokens expire."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from shards import PackError, PackOptions, pack
from shards.storage import remote, retry
from shards.storage.store import open_store
from tests.support.folders import same_files


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "pauses", lambda retries: (0.05,) * retries)
    monkeypatch.setattr(retry, "_SLACK", 60.0)  # a busy machine takes a second for a few requests


@pytest.fixture(scope="module")
def images(folder: Path, s3_server) -> str:
    """The session's images in a bucket of their own."""
    import s3fs

    files = s3fs.S3FileSystem(skip_instance_cache=True)
    files.mkdir("troubled")
    files.put(f"{folder}/", "troubled/images/", recursive=True)
    return "s3://troubled/images"


def options(src: str, out: object, **changes) -> PackOptions:
    return PackOptions(src, str(out), **{"workers": 1, "shard_size": 25, **changes})


def test_faults_at_random_change_nothing(images, packed, s3, s3_faults):
    faults = s3_faults(seed=3, rate=0.2, kinds=("error", "busy", "cut", "drop"))
    pack(options(images, s3), progress=False)
    assert sum(faults.counts.values()) > 20 and set(faults.counts) == {"error", "busy", "cut", "drop"}
    s3_faults()
    store = open_store(s3)
    assert {name: store.read(name) for name in store.names()} == {
        path.name: path.read_bytes() for path in packed.iterdir()
    }


def test_an_expired_token_fails_the_shards_and_no_image(images, packed, s3_faults, tmp_path):
    pack_options = options(images, tmp_path / "out", retries=2)
    s3_faults().expire("key", after=60)
    with pytest.raises(PackError, match=r"HTTP 400 Bad Request, ExpiredToken.*renew the credentials"):
        pack(pack_options, progress=False)
    assert list((tmp_path / "out").glob("*.tar")), "the shards before are complete"
    s3_faults()
    pack(pack_options, progress=False)
    assert same_files(packed, tmp_path / "out")


def test_renewed_credentials_are_used_by_the_next_retry(images, packed, s3_faults, tmp_path, monkeypatch):
    sleep = retry.Host.sleep

    def renewed_meanwhile(host: retry.Host, seconds: float = 0.0, given_up: int | None = None) -> bool:
        if seconds:
            monkeypatch.setenv("AWS_ACCESS_KEY_ID", "renewed")
        return sleep(host, seconds, given_up)

    monkeypatch.setattr(retry.Host, "sleep", renewed_meanwhile)
    s3_faults().expire("key")
    pack(options(images, tmp_path / "out"), progress=False)
    assert os.environ["AWS_ACCESS_KEY_ID"] == "renewed"
    assert same_files(packed, tmp_path / "out")


@pytest.fixture
def refuses(s3_server, monkeypatch: pytest.MonkeyPatch):
    """Lets the server answer AccessDenied for objects whose name holds a text."""
    text = b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"
    answer = s3_server.answer

    def begin(part: str) -> None:
        def refused(handler, body):
            if handler.command == "GET" and part in handler.path:
                return 403, [("Content-Length", str(len(text)))], text
            return answer(handler, body)

        monkeypatch.setattr(s3_server, "answer", refused)

    return begin


def test_access_denied_to_one_object_is_its_own_fault_to_all_it_is_not(images, folder, refuses, tmp_path):
    refuses("/007.jpg")
    assert pack(options(images, tmp_path / "one"), progress=False).samples == 119
    line = (tmp_path / "one" / "quarantine.jsonl").read_text()
    assert "007.jpg" in line and "cannot read: HTTP 403 Forbidden, AccessDenied" in line
    refuses(".jpg")
    with pytest.raises(PackError, match=r"HTTP 403 Forbidden, AccessDenied"):
        pack(options(images, tmp_path / "all"), progress=False)
    assert not (tmp_path / "all" / "quarantine.jsonl").exists()


def test_no_credentials_are_named_at_once(images, tmp_path, monkeypatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()
    with pytest.raises(PackError, match=r"cannot read --src s3://troubled/images.*[Cc]redentials"):
        pack(options(images, tmp_path / "out"), progress=False)
    s3fs.S3FileSystem.clear_instance_cache()
