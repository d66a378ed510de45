"""Ray packs the same bytes as this process: appended images, other formats, and sources and sets in S3."""

from __future__ import annotations

import io
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from shards import PackOptions, pack
from shards.storage.base import Store
from shards.storage.store import open_store
from tests.shards.conftest import MORE
from tests.shards.test_plugins import avif, heic, jxl
from tests.support.commands import ROOT
from tests.support.folders import same_files
from tests.support.pictures import gradient, jpeg
from tests.support.raws import dng
from tests.support.sets import pack_set
from tests.support.struck import struck

pytestmark = [pytest.mark.long, pytest.mark.slow]
RAY = {"executor": "ray", "workers": 2}


@pytest.fixture(scope="module", autouse=True)
def cluster(s3_server: object, request: pytest.FixtureRequest) -> Iterator[None]:
    """Ray, whose workers inherit the address of the S3 server."""
    request.getfixturevalue("started_ray")
    yield


def upload(folder: Path, url: str) -> Store:
    store = open_store(url)
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            store.write(path.relative_to(folder).as_posix(), path.read_bytes())
    return store


def contents(place: Path | str) -> dict[str, bytes]:
    if isinstance(place, Path):
        return {path.name: path.read_bytes() for path in place.iterdir()}
    store = open_store(place)
    return {name: store.read(name) for name in store.names()}


def test_images_are_appended_by_ray(packed, more, appended, tmp_path):
    out = shutil.copytree(packed, tmp_path / "set")
    pack(PackOptions(more, out, **RAY, **MORE), progress=False)
    assert same_files(out, appended)


def test_images_are_appended_by_ray_in_a_store(packed, more, appended, s3):
    upload(packed, f"{s3}/set")
    pack(PackOptions(more, f"{s3}/set", **RAY, **MORE), progress=False)
    assert contents(f"{s3}/set") == contents(appended)


@pytest.mark.parametrize("place", ["folder", "store"])
@pytest.mark.parametrize("executor", ["local", "ray"])
def test_appending_that_was_killed_ends_with_the_same_bytes(packed, more, appended, tmp_path, s3, executor, place):
    """The command, with all its processes, when a first shard is complete; then again."""
    out = f"{s3}/set" if place == "store" else str(shutil.copytree(packed, tmp_path / "set"))
    store = upload(packed, out) if place == "store" else open_store(out)
    flags = ["--shard-size", "10", "--append", "--workers", "2", "--executor", executor]
    line = struck(signal.SIGKILL, 1, "--src", more, "--out", out, *flags)
    env = {**os.environ, "RAY_TMPDIR": "/tmp"}  # the path of the tests is too long for Ray's sockets
    killed = subprocess.run(line, cwd=ROOT, env=env, start_new_session=True, capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert "manifest.json" in store.names() and store.read("manifest.json") == (packed / "manifest.json").read_bytes()
    if place == "store":
        store.remove("packing.partial/lock")  # which expires after a minute
    pack(PackOptions(more, out, executor=executor, workers=2, **MORE), progress=False)
    assert contents(out if place == "store" else Path(out)) == contents(appended)


@pytest.fixture(scope="module")
def phone(tmp_path_factory) -> Path:
    """HEIC, JPEG XL, AVIF, camera raws and JPEGs in two classes, one of each damaged."""
    root = tmp_path_factory.mktemp("formats") / "phone"
    picture = gradient(96, 72, seed=1)
    values = np.asarray(Image.open(io.BytesIO(jpeg(picture))), np.float64)[:64, :80] / 255
    made = {
        "heic": heic(picture),
        "jxl": jxl(picture),
        "avif": avif(picture),
        "dng": dng(values),
        "jpg": jpeg(picture),
    }
    for number, (kind, data) in enumerate(made.items()):
        for turn in range(3):
            path = root / f"class {turn % 2}" / f"{number}-{turn}.{kind}"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data[: len(data) // 2] if turn == 2 else data)
    return root


@pytest.fixture(scope="module")
def of_phone(phone, tmp_path_factory) -> Path:
    return pack_set(phone, tmp_path_factory.mktemp("of_phone") / "set", shard_size=4, resize=48)


def test_all_of_these_are_packed(of_phone):
    decoders = {"pillow-heif", "pillow-jxl-plugin", "rawpy"}
    assert all(f'"{name}"'.encode() in (of_phone / "manifest.json").read_bytes() for name in decoders)
    assert len((of_phone / "quarantine.jsonl").read_text().splitlines()) == 5


@pytest.mark.parametrize("executor", ["local", "ray"])
@pytest.mark.parametrize(("source", "place"), [("folder", "folder"), ("store", "folder"), ("store", "store")])
def test_formats_are_decoded_to_the_same_bytes_everywhere(phone, of_phone, tmp_path, s3, executor, source, place):
    if source == "store":
        upload(phone, f"{s3}/phone")
    src = f"{s3}/phone" if source == "store" else phone
    out = f"{s3}/set" if place == "store" else tmp_path / "set"
    pack(PackOptions(src, out, executor=executor, workers=2, shard_size=4, resize=48), progress=False)
    assert contents(out) == contents(of_phone)
