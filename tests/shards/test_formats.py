"""Other programs read our tars: the same bytes and labels, in the same order."""

from __future__ import annotations

import hashlib
import io
import json
import struct
import subprocess
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from shards import PackOptions, ShardSet, pack


@pytest.fixture(scope="module")
def samples(packed: Path) -> list[tuple[str, bytes, int]]:
    """Key, JPEG and label of every sample, by our own reader."""
    with ShardSet(packed) as shard_set:
        labels = shard_set.labels(np.arange(120)).tolist()
        return [(shard_set.locate(i)[1], shard_set.read(i), labels[i]) for i in range(120)]


def test_webdataset(packed, samples):
    webdataset = pytest.importorskip("webdataset")
    urls = [str(path) for path in sorted(packed.glob("*.tar"))]
    found = list(webdataset.WebDataset(urls, shardshuffle=False, empty_check=False))
    assert [(s["__key__"], s["jpg"], int(s["cls"])) for s in found] == samples


def test_gnu_tar(packed, samples, tmp_path):
    for path in sorted(packed.glob("*.tar")):
        listed = subprocess.run(["tar", "xvf", path, "-C", tmp_path], capture_output=True, text=True, check=True)
        assert listed.stderr == ""
    for key, jpeg, label in samples:
        assert (tmp_path / f"{key}.jpg").read_bytes() == jpeg
        assert (tmp_path / f"{key}.cls").read_text() == str(label)


def test_gnu_tar_finds_plain_ustar(packed):
    head = (packed / "shard-000000.tar").read_bytes()
    assert head[257:265] == b"ustar\x0000"
    assert len(head) % 10240 == 0


@pytest.mark.dali
@pytest.mark.parametrize("labelled", [True, False])
def test_dali_reads_our_index(packed, samples, folder, tmp_path, labelled):
    pytest.importorskip("nvidia.dali")
    from nvidia.dali import fn, pipeline_def

    path = packed
    if not labelled:
        path = tmp_path / "flat"
        pack(PackOptions(folder / "class 0", path, workers=1, shard_size=25), progress=False)
        with ShardSet(path) as shard_set:
            samples = [("", shard_set.read(i), -1) for i in range(len(shard_set))]
    tars = sorted(map(str, path.glob("*.tar")))
    indexes = sorted(map(str, path.glob("*.idx")))
    extensions = ["jpg", "cls"] if labelled else ["jpg"]

    @pipeline_def(batch_size=20, num_threads=1, device_id=None, prefetch_queue_depth=1)
    def read():
        components = fn.readers.webdataset(
            paths=tars, index_paths=indexes, ext=extensions, missing_component_behavior="error"
        )
        return tuple(components) if labelled else components

    pipeline = read()
    pipeline.build()
    found = []
    for _ in range(len(samples) // 20):
        found += list(zip(*([np.asarray(item).tobytes() for item in output] for output in pipeline.run()), strict=True))
    expected = [(jpeg, str(label).encode()) if labelled else (jpeg,) for _, jpeg, label in samples]
    assert [hashlib.sha256(item[0]).digest() for item in found] == [hashlib.sha256(e[0]).digest() for e in expected]
    assert found == expected


def test_the_documented_format_is_enough_for_a_reader(packed, samples):
    """A reader written from docs/format.md with the standard library alone."""
    manifest = json.loads((packed / "manifest.json").read_bytes())
    found = []
    for record in manifest["records"]:
        index = (packed / f"{record['name']}.npy").read_bytes()
        tar = (packed / f"{record['name']}.tar").read_bytes()
        assert index[:8] == b"\x93NUMPY\x01\x00"
        start = 10 + int.from_bytes(index[8:10], "little")
        assert len(index) == start + 24 * record["samples"]
        for row, fields in enumerate(struct.iter_unpack("<QIHHiI", index[start:])):
            offset, size, width, height, label, crc = fields
            jpeg = tar[offset : offset + size]
            assert zlib.crc32(jpeg) == crc
            assert Image.open(io.BytesIO(jpeg)).size == (width, height)
            found.append((f"{record['name'][6:]}{row:06d}", jpeg, label))
    assert found == samples
    state = hashlib.sha256(b"fastmoco-shards/1")
    for record in manifest["records"]:
        state.update("\n{name} {samples} {sha256} {index_sha256}".format(**record).encode())
    assert state.hexdigest() == ShardSet(packed).digest
