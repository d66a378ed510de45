"""Plain headers of tars are read as tarfile reads them, whole and damaged."""

from __future__ import annotations

import gzip
import io
import random
import tarfile
from collections.abc import Generator
from typing import Any

import pytest

from shards.format.tar_headers import FILE, FOLDER, TIME, Header, is_time, plain_header
from shards.format.tar_reader import DamagedTar, TarInput, TarReader
from shards.packing.sources.gzipped import Unzipped

FORMATS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}


def info_of(name: str, size: int, **values: Any) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.size = size
    for key, value in values.items():
        setattr(info, key, value)
    return info


def tar_of(form: str, draw: random.Random) -> bytes:
    """A tar with members of all kinds, in random order, some of them several times."""
    out = io.BytesIO()
    kinds: list[dict[str, Any]] = [
        {"name": "a/000.jpg", "size": 700},
        {"name": "a/001.jpg", "size": 0},
        {"name": "b.cls", "size": 1},
        {"name": "whole.png", "size": 1024, "mtime": 1_700_000_000},
        {"name": "folder", "size": 0, "type": tarfile.DIRTYPE},
        {"name": ".hidden/c.jpg", "size": 3},
        {"name": "link.jpg", "size": 0, "type": tarfile.SYMTYPE, "linkname": "a/000.jpg"},
    ]
    if form != "ustar":
        kinds.append({"name": "long/" * 30 + "d.jpg", "size": 5})
        kinds.append({"name": "ä" * 60 + ".jpg", "size": 6})
    if form == "pax":
        kinds += [{"name": f"time/{n}.jpg", "size": 90 * n, "mtime": 1_700_000_000 + n / 7} for n in range(4)]
        kinds.append({"name": "more.jpg", "size": 4, "mtime": 5.5, "pax_headers": {"comment": "a comment"}})
    everything = {"comment": "of all"} if form == "pax" and draw.random() < 0.2 else None
    with tarfile.open(fileobj=out, mode="w", format=FORMATS[form], pax_headers=everything) as tar:
        for kind in draw.choices(kinds, k=12):
            tar.addfile(info_of(**kind), io.BytesIO(draw.randbytes(kind["size"])))
    data = out.getvalue()
    return data + data[: data.rindex(b"\0" * 1024)] + b"\0" * 1024 if draw.random() < 0.2 else data


def read(data: bytes, compressed: bool) -> tuple[list[Any], str, int, dict[bytes, bool]]:
    """What a reader finds, with the data of every second member, and how it ends."""
    file = Unzipped(io.BytesIO(gzip.compress(data, 1))) if compressed else TarInput(io.BytesIO(data))
    reader, found, end = TarReader(file), [], ""
    try:
        for number, member in enumerate(reader):
            content = reader.read(member) if number % 2 and not member.fault else None
            found.append((member, content))
    except DamagedTar as error:
        end = str(error)
    return found, end, reader.passed_over, reader.hidden


def only_tarfile(reader: TarReader, block: bytes) -> Generator[Any, None, bytes]:
    """In place of TarReader._plain."""
    yield from ()
    return block


@pytest.mark.parametrize("form", FORMATS)
def test_members_and_damage_are_those_that_tarfile_finds(form, monkeypatch):
    draw, tried = random.Random(form), []
    for number in range(200):
        data = bytearray(tar_of(form, draw))
        damage = number % 4
        if damage == 1:
            del data[draw.randrange(len(data)) :]
        elif damage:
            start = 512 * draw.randrange(len(data) // 512)
            for _ in range(draw.choice([1, 1, 2])):
                data[start + draw.choice([*range(100, 160), *range(329, 346), 0, 99])] = draw.choice(b"\0 01789x5g/-")
            if damage == 3:  # a header that says something else, with its sum
                data[start + 148 : start + 156] = b"%06o\0 " % tarfile.calc_chksums(bytes(data[start : start + 512]))[0]
        compressed = number % 8 > 3
        tried.append((bytes(data), compressed, read(bytes(data), compressed)))
    monkeypatch.setattr(TarReader, "_plain", only_tarfile)
    for data, compressed, found in tried:
        assert read(data, compressed) == found
    assert {bool(end) for _, _, (_, end, _, _) in tried} == {True, False}


def test_headers_of_common_programs_are_plain():
    """As GNU tar, bsdtar and Python write them; `0000644` with a blank and a NUL, and without device numbers."""
    block = info_of("a/b.jpg", 1234).tobuf(tarfile.GNU_FORMAT)
    assert plain_header(block) == Header(b"a/b.jpg", 1234, FILE)
    assert plain_header(info_of("a", 0, type=tarfile.DIRTYPE).tobuf(tarfile.USTAR_FORMAT)) == Header(b"a/", 0, FOLDER)
    of_bsdtar = bytearray(info_of("a/b.jpg", 1234).tobuf(tarfile.USTAR_FORMAT))
    of_bsdtar[100:148] = b"000644 \0" + b"000765 \0" + b"000024 \0" + b"00000002322 " + b"14511240000 "
    of_bsdtar[148:156] = b"%06o\0 " % tarfile.calc_chksums(bytes(of_bsdtar))[0]
    assert tarfile.TarInfo.frombuf(bytes(of_bsdtar), "utf-8", "strict").size == 1234
    assert plain_header(bytes(of_bsdtar)) == Header(b"a/b.jpg", 1234, FILE)
    for_time = info_of("a.jpg", 1, mtime=1.5).tobuf(tarfile.PAX_FORMAT)
    header = plain_header(for_time[:512])
    assert header is not None and header.kind == TIME and is_time(header, for_time[512:1024])
    assert plain_header(for_time[1024:]) == Header(b"a.jpg", 1, FILE)


@pytest.mark.parametrize(
    "values",
    [
        {"size": 8**11},
        {"size": 1, "mtime": -5},
        {"size": 0, "type": tarfile.LNKTYPE, "linkname": "b"},
        {"size": 1, "name": "x" * 120},
    ],
)
def test_other_headers_are_left_to_tarfile(values):
    assert plain_header(info_of(**{"name": "a.jpg"} | values).tobuf(tarfile.GNU_FORMAT)[:512]) is None


def test_a_wrong_sum_is_no_header():
    block = bytearray(info_of("a.jpg", 10).tobuf(tarfile.USTAR_FORMAT))
    assert plain_header(bytes(block[:511])) is None
    block[300] += 1
    assert plain_header(bytes(block)) is None
