"""Files of torch.save for tests, and their checksums."""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from typing import Any

import numpy as np
import torch


def saved(content: Any, zipped: bool = True) -> bytes:
    """The file of torch.save."""
    buffer = io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=zipped)
    return buffer.getvalue()


def with_crcs(data: bytes, rng: np.random.Generator) -> bytes:
    """The zip with the checksums of its members set right, as far as it can be read without them; else as it is."""
    result = bytearray(data)
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = archive.infolist()
    except Exception:  # whatever is wrong is what the reader has to say
        return data
    for member in members:
        place = member.header_offset
        if data[place : place + 4] != b"PK\3\4" or member.compress_type != zipfile.ZIP_STORED:
            continue
        name, extra = struct.unpack_from("<HH", data, place + 26)
        body = data[place + 30 + name + extra :][: member.file_size]
        old, new = struct.pack("<I", member.CRC), struct.pack("<I", zlib.crc32(body))
        result = bytearray(bytes(result).replace(old, new))  # in the header, the descriptor and the directory
    return bytes(result)
