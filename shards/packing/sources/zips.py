"""Images in zips."""

from __future__ import annotations

import stat
import struct
import zipfile

from shards.errors import PackError
from shards.format.hidden import hidden_part
from shards.format.manifest import Quarantined
from shards.images.formats import EXTENSIONS
from shards.images.options import MAX_FILE
from shards.packing.members import DEFLATED, STORED
from shards.packing.plan import source_name
from shards.packing.sources.archives import Archives, Found
from shards.packing.sources.record import Record
from shards.storage.store import open_place
from shards.words import display

_ENCRYPTED, _UTF8 = 1 << 0, 1 << 11  # flags of a member
_DOS = 0  # system that wrote a member
_DAMAGE = (zipfile.BadZipFile, NotImplementedError, ValueError, struct.error, IndexError, OverflowError)


class ZipSource(Archives):
    """Images in a zip, or in the zips of a folder, by the members' extensions. Only a zip's directory is read here.

    A record's offset is that of the member's header, its size that of the data as they are stored.
    """

    kind = "zips"
    noun = "zip"
    extensions = (b"zip",)

    def _read(self, path: bytes, place: str) -> Found:
        try:
            with open_place(place) as file, zipfile.ZipFile(file) as archive:
                members = archive.infolist()
        except _DAMAGE as error:
            cause = f"damaged: no directory of a zip at its end ({error}); is it cut off?"
            if self._single is not None:
                raise PackError(f"cannot read --src {display(place)}: {cause}") from None
            yield self._damage(display(path), cause)
            return
        hidden: dict[bytes, bool] = {}
        for info in members:
            name = _name(info)
            if info.is_dir() or name.endswith(b"/") or self.selection.excludes(name):
                continue
            if name.rpartition(b"/")[2].rpartition(b".")[2].lower() not in EXTENSIONS:
                self.ignored += 1
            elif not self.selection.include_hidden and (part := hidden_part(name)):
                hidden[part] = len(part) < len(name)
            elif fault := _fault(info, name):
                yield Quarantined(source_name(path, name), fault)
            else:
                yield Record(path, info.compress_size, None, name, info.header_offset)
        for part, is_folder in hidden.items():
            self.selection.hide(part, is_folder)


def _name(info: zipfile.ZipInfo) -> bytes:
    """A member's name as bytes: zipfile decodes those that are not marked as UTF-8 as cp437, UTF-8 or not."""
    name = info.orig_filename.encode("utf-8" if info.flag_bits & _UTF8 else "cp437")
    # Some programs on Windows write backslashes, which are part of a name elsewhere.
    return name.replace(b"\\", b"/") if info.create_system == _DOS and b"/" not in name else name


def _fault(info: zipfile.ZipInfo, name: bytes) -> str:
    """Why a member cannot be packed; empty if it can."""
    if b"\0" in name:  # it would terminate the name in the plan
        return "bad name: it holds a zero byte"
    if info.flag_bits & _ENCRYPTED:
        return "encrypted: unpack the zip with its password, and pack the folder"
    if stat.S_ISLNK(info.external_attr >> 16):
        return "link: not a regular file of the zip"
    if info.compress_type not in (STORED, DEFLATED):
        method = zipfile.compressor_names.get(info.compress_type, "a method")  # type: ignore[attr-defined]
        return f"compressed by {method} ({info.compress_type}): write the zip with deflate, or without compression"
    if info.file_size > MAX_FILE:
        return f"too large: a file of {info.file_size:,} bytes"
    return ""
