from __future__ import annotations

import hashlib
import os
import shutil
import zlib
from pathlib import Path

import numpy as np
import pytest

from shards import ShardSet, cli
from shards.damage import rows_of_tar
from shards.format.index import npy_bytes
from shards.verify import verify
from tests.support.sets import pack_set


@pytest.fixture
def copy(packed: Path, tmp_path: Path) -> Path:
    return shutil.copytree(packed, tmp_path / "copy")


def problems(path: Path, **options) -> list[str]:
    with ShardSet(path) as shard_set:
        return [str(problem) for found in verify(shard_set, **{"workers": 2, **options}) for problem in found]


def flip(path: Path, offset: int) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 0x40
    path.write_bytes(data)


def test_a_whole_set_has_no_problems(packed):
    assert problems(packed) == []


def test_rows_can_be_read_from_the_tar(packed):
    for shard in range(5):
        stem = f"shard-{shard:06d}"
        with open(packed / f"{stem}.tar", "rb") as file:
            assert (rows_of_tar(file) == np.load(packed / f"{stem}.npy")).all()


@pytest.mark.parametrize(
    ("place", "cause"),
    [
        ("image", "image's bytes differ"),
        ("header", "tar header"),
        ("label", "label after"),
        ("end", "every image matches its checksum"),
    ],
)
def test_a_flipped_bit_is_found_and_its_key_named(copy, place, cause):
    row = np.load(copy / "shard-000003.npy")[7]
    offset = {"image": row["offset"] + 300, "header": row["offset"] - 400, "end": -1}.get(place)
    if offset is None:
        offset = row["offset"] + -(-int(row["size"]) // 512) * 512 + 512
    flip(copy / "shard-000003.tar", int(offset))
    found = problems(copy)
    assert len(found) == 1
    assert cause in found[0]
    assert found[0].startswith("shard-000003.tar: " if place == "end" else "shard-000003.tar key 000003000007: ")


def test_a_short_tar_names_what_is_lost(copy):
    row = np.load(copy / "shard-000000.npy")[23]
    os.truncate(copy / "shard-000000.tar", int(row["offset"]) + 10)
    found = problems(copy)
    assert "should have" in found[0]
    assert [text.split(":")[0] for text in found[1:]] == [f"shard-000000.tar key 0000000000{n}" for n in (23, 24)]


@pytest.mark.parametrize("suffix", [".tar", ".idx", ".npy", ".names", ".json"])
def test_a_missing_file_is_found(copy, suffix):
    (copy / f"shard-000002{suffix}").unlink()
    found = problems(copy)
    assert len(found) == 1
    assert found[0].startswith(f"shard-000002{suffix}: cannot read: No such file")
    if suffix == ".tar":
        assert "keys 000002000000 to 000002000024" in found[0]


def test_wrong_indexes_are_found_and_their_keys_named(copy):
    rows = np.load(copy / "shard-000001.npy")
    rows["width"][5] += 1
    np.save(copy / "shard-000001.npy", rows)
    idx = copy / "shard-000002.idx"
    lines = idx.read_text().splitlines()
    lines[12] = lines[12].replace("jpg ", "jpg 1")
    idx.write_text("\n".join(lines) + "\n")
    (copy / "shard-000003.idx").write_text("v1.2 0\n")
    found = problems(copy)
    assert [text.split(": ")[0] for text in found] == [
        "shard-000001.npy key 000001000005",
        "shard-000002.idx key 000002000011",
        "shard-000003.idx",
    ]
    assert "should be" in found[0]


def test_damaged_records_and_strange_tars_are_found(copy):
    (copy / "shard-000000.json").write_text("{}")
    shutil.copy(copy / "shard-000001.json", copy / "shard-000002.json")
    shutil.copy(copy / "shard-000001.tar", copy / "shard-000009.tar")
    found = problems(copy)
    assert [text.split(": ")[0] for text in found] == ["shard-000009.tar", "shard-000000.json", "shard-000002.json"]


@pytest.mark.parametrize(
    ("content", "cause"),
    [
        (None, "cannot read: No such file"),
        ("", "has 0 lines, should have 2"),
        ('{"source": "a", "reason": "b"}\n', "has 1 line, should have 2"),
        ('{"source": "a", "reason": "b"}\n' * 3, "has 3 lines, should have 2"),
        ('{"source": "a", "reason": "b"}\n{"source": "a", "rea', "line 2 is damaged: "),
        ('{"source": "a"}\n{"source": "a", "reason": "b"}\n', "line 1 is damaged: it has no `source` and `reason`"),
        ('{"source": "a", "reason": 3}\n' * 2, "line 1 is damaged: it has no `source` and `reason`"),
    ],
)
def test_a_quarantine_that_differs_from_the_manifest_is_found(folder, tmp_path, content, cause):
    src = Path(shutil.copytree(folder / "class 1", tmp_path / "src"))
    for name in ("001.jpg", "004.jpg"):
        (src / name).write_bytes(b"no image")
    out = pack_set(src, tmp_path / "out", shard_size=25)
    assert problems(out) == []
    path = out / "quarantine.jsonl"
    if content is None:
        path.unlink()
    else:
        path.write_text(content)
    (found,) = problems(out)
    assert found.startswith(f"quarantine.jsonl: {cause}")


@pytest.mark.parametrize("workers", [1, 2])
def test_decoding_finds_images_that_were_packed_damaged(copy, workers):
    """Images with right checksums that cannot be decoded, or whose size differs from their row's."""
    assert problems(copy, decode=True, workers=workers) == []
    tar, index = copy / "shard-000001.tar", copy / "shard-000001.npy"
    rows, data = np.load(index), bytearray(tar.read_bytes())
    start, size = int(rows["offset"][4]), int(rows["size"][4])
    data[start + 2 : start + 200] = bytes(198)
    rows["crc32"][4] = zlib.crc32(data[start : start + size])
    rows["width"][7] += 1
    tar.write_bytes(data)
    index.write_bytes(npy_bytes(rows))
    values = {"sha256": hashlib.sha256(data).hexdigest(), "index_sha256": hashlib.sha256(npy_bytes(rows)).hexdigest()}
    for path in (copy / "shard-000001.json", copy / "manifest.json"):
        text = path.read_text()
        with ShardSet(copy) as shard_set:
            record = shard_set.manifest.records[1]
        for name, value in values.items():
            text = text.replace(getattr(record, name), value)
        path.write_text(text)
    assert problems(copy) == []
    found = problems(copy, decode=True, workers=workers)
    assert [text.split(": ")[0] for text in found] == [
        "shard-000001.tar key 000001000004",
        "shard-000001.tar key 000001000007",
    ]
    assert "cannot be decoded" in found[0]
    assert "its row says" in found[1]


def test_the_command_shows_its_progress_on_stderr(packed, monkeypatch, capsys):
    monkeypatch.setattr("shards.progress.FIRST_LINE", 0.0)  # as if it were long work
    monkeypatch.setattr("shards.progress.LINE_EVERY", 0.0)
    assert cli.run(["verify", str(packed)]) == 0
    printed = capsys.readouterr()
    with ShardSet(packed) as shard_set:
        count = len(shard_set.manifest.records)
    lines = printed.err.splitlines()
    assert count > 1 and lines[-1].startswith(f"verify: {count} of {count} shards") and len(lines) == count + 1
    assert printed.out.count("\n") == 1 and "all as packed" in printed.out
