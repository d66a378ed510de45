"""The two kinds of files that torch.save writes, checked before torch.load reads them.

torch's own reader of archives looks at no checksum, believes attributes and sizes, and gives memory that it never wrote
where a member is marked as a folder or as compressed to nothing. Files from before torch 1.6 are pickles followed by
the storages' bytes; a storage without bytes stays as it was allocated.
"""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from pathlib import Path
from typing import BinaryIO

import torch

from fastmoco.checkpoints.pickled_parts import LONGEST, Refused, Storage
from fastmoco.checkpoints.pickles import scan

_LOCAL = struct.Struct("<4s22xHH")  # signature, lengths of name and extra field of a member's own header
# the three parts of the end: those for large archives may be missing
_ENDS = struct.Struct("<4sQ2H2L4Q" + "4sLQL" + "4s4H2LH")
_END_BYTES = 22
_MOST = (0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF)  # say that the part for large archives has the number
_FOLDER = 0x10  # of a member's attributes
_UNPLAIN = 0x1 | 0x20 | 0x40 | 0x2000  # flags of encrypted and patched members
_CHUNK = 1 << 22


def check(path: Path, whole: bool = True) -> None:
    """Refuse a file that torch.load would read otherwise than it was written, or at the cost of more than its size.

    Args:
        path: the file.
        whole: compare the checksums of all members, which reads the file once.

    Raises:
        Refused: the message says why.
        Exception: the file is damaged.
    """
    size = path.stat().st_size
    if zipfile.is_zipfile(path):
        with path.open("rb") as file:
            _check_archive(file, size, whole)
    else:
        with path.open("rb") as file:
            if file.read(2) == b"PK":
                raise Refused("it is cut short: the end of the archive is missing")
            file.seek(0)
            _check_stream(file, size)


def _check_archive(file: BinaryIO, size: int, whole: bool) -> None:
    with zipfile.ZipFile(file) as archive:
        members = archive.infolist()
        _check_end(file, size, archive.start_dir, len(members))
    if not members:
        raise Refused("the archive is empty")
    if any(member.filename.endswith("/constants.pkl") for member in members):
        raise Refused(
            "it is a TorchScript program; save torch.jit.load(FILE).state_dict() by torch.save, and give that"
        )
    root = members[0].filename.split("/")[0]
    places = _places(file, members)
    for name, (member, begin) in places.items():
        if whole and _crc(file, begin, member.file_size) != member.CRC:
            raise Refused(f"the checksum of {name} is wrong")
    described = places.get(f"{root}/data.pkl")
    if described is None:
        raise Refused(f"it has no {root}/data.pkl, so torch.save did not write it")
    file.seek(described[1])
    stored = scan(io.BytesIO(file.read(described[0].file_size)), size).storages
    for storage in stored.values():
        member = places.get(f"{root}/data/{storage.key}")
        held = 0 if member is None else member[0].file_size
        if held != storage.size:
            raise Refused(f"its storage {storage.key!r} is to have {storage.size:,} bytes, and has {held:,}")


def _places(file: BinaryIO, members: list[zipfile.ZipInfo]) -> dict[str, tuple[zipfile.ZipInfo, int]]:
    """Each member of an archive and where its bytes begin, by name."""
    places: dict[str, tuple[zipfile.ZipInfo, int]] = {}
    end = 0
    for member in sorted(members, key=lambda member: member.header_offset):
        name = member.filename
        if member.compress_type != zipfile.ZIP_STORED or member.compress_size != member.file_size:
            raise Refused(f"its member {name} is compressed, which torch.save does not do; unpack it and save it anew")
        if member.flag_bits & _UNPLAIN or member.external_attr & _FOLDER or name.endswith("/"):
            raise Refused(f"its member {name} is marked as a folder or as encrypted")
        if member.header_offset < end:
            raise Refused(f"its member {name} overlaps with the one before it")
        file.seek(member.header_offset)
        signature, named, extra = _LOCAL.unpack(file.read(_LOCAL.size))
        if signature != b"PK\3\4" or file.read(named) != member.orig_filename.encode(
            "utf-8" if member.flag_bits & 0x800 else "cp437"
        ):
            raise Refused(f"its member {name} has another header than the archive's directory says")
        begin = member.header_offset + _LOCAL.size + named + extra
        end = begin + member.file_size
        if name.lower() in places:  # torch's reader does not tell capitals from small letters
            raise Refused(f"it has two members {name}")
        places[name.lower()] = member, begin
    return {member.filename: (member, begin) for member, begin in places.values()}


def _check_end(file: BinaryIO, size: int, begin: int, members: int) -> None:
    """An archive can have several directories, of which Python and torch take different ones: allow one alone.

    Args:
        file: the archive.
        size: its size.
        begin: where the directory begins that Python takes.
        members: its number of members.
    """
    file.seek(max(0, size - _ENDS.size))
    ends = file.read(_ENDS.size).rjust(_ENDS.size, b"\0")
    wide, _, _, _, _, _, here, every, length, place, locator, _, at, _, last, *narrow, comment = _ENDS.unpack(ends)
    stop, counts = size - _END_BYTES, narrow[2:]
    if locator == b"PK\6\7":
        stop = size - _ENDS.size
        large = [here, every, length, place]
        same = all(one in (two, most) for one, two, most in zip(counts, large, _MOST, strict=True))
        if wide != b"PK\6\6" or at != stop or not same:
            raise Refused("its two ends differ")
        counts = large
    if last != b"PK\5\6" or comment or counts != [members, members, stop - begin, begin]:
        raise Refused("its directory is not at its end")


def _crc(file: BinaryIO, begin: int, size: int) -> int:
    file.seek(begin)
    crc = 0
    while size:
        chunk = file.read(min(size, _CHUNK))
        if not chunk:
            raise Refused("it ends within its last member")
        crc, size = zlib.crc32(chunk, crc), size - len(chunk)
    return crc


def _check_stream(file: BinaryIO, size: int) -> None:
    """A file from before torch 1.6: four pickles, the list of the storages' keys, and their bytes."""
    # in memory: to read a string of 4 GB from a file, Python allocates as much, whatever the file has
    head = io.BytesIO(file.read(LONGEST))
    if scan(head, size).value != torch.serialization.MAGIC_NUMBER:
        raise Refused("it does not begin as a file of torch.save")
    scan(head, size)  # the version
    scan(head, size)  # the machine that wrote it
    stored = scan(head, size).storages
    keys = scan(head, size).strings()
    if keys is None or len(set(keys)) < len(keys) or set(keys) != stored.keys():
        raise Refused("its list of storages is not that of its tensors")
    file.seek(head.tell())
    for key in keys:
        _skip(file, stored[key], size)


def _skip(file: BinaryIO, storage: Storage, size: int) -> None:
    (count,) = struct.unpack("<q", file.read(8))
    end = file.tell() + storage.size
    if count * storage.width != storage.size or end > size:
        raise Refused(f"its storage {storage.key!r} is to have {storage.size:,} bytes, and has others")
    file.seek(end)
