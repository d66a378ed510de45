"""Damaged zips: checkpoints and arrays given as weights, and images in a zip given as a source."""

from __future__ import annotations

import functools
import io
import json
import zipfile
from pathlib import Path

import numpy as np

from fastmoco.layouts.files import LayoutError
from fastmoco.layouts.files import read as read_weights
from shards.errors import PackError
from shards.packing.options import PackOptions
from shards.packing.pack import pack
from tests.fuzz.faults import ACCEPTED, Field, Kind, names_nothing
from tests.fuzz.images import JPEG
from tests.fuzz.weights import tiny
from tests.support.saved_files import saved, with_crcs


@functools.cache
def _zips() -> list[bytes]:
    arrays = io.BytesIO()
    np.savez(arrays, weight=np.arange(12.0), bias=np.zeros(3))
    images = io.BytesIO()
    with zipfile.ZipFile(images, "w", zipfile.ZIP_DEFLATED) as archive:
        for number, data in enumerate(JPEG.originals()[:2]):
            archive.writestr(f"images/{number}.jpg", data)
    return [saved(tiny()), saved({"state_dict": tiny(), "epoch": 3}), arrays.getvalue(), images.getvalue()]


def _of_zip(data: bytes) -> list[Field]:
    fields = []
    for signature, places in (
        (b"PK\3\4", ((14, "<I"), (18, "<I"), (22, "<I"), (26, "<H"), (28, "<H"), (8, "<H"))),
        (b"PK\1\2", ((10, "<H"), (16, "<I"), (20, "<I"), (24, "<I"), (28, "<H"), (30, "<H"), (32, "<H"), (42, "<I"))),
        (b"PK\5\6", ((8, "<H"), (10, "<H"), (12, "<I"), (16, "<I"), (20, "<H"))),
    ):
        place = data.find(signature)
        while place >= 0:
            fields += [Field(place + offset, form) for offset, form in places if place + offset + 4 <= len(data)]
            place = data.find(signature, place + 1)
    return fields


def _zip_outcome(data: bytes, number: int, folder: Path) -> str:
    """A zip given as weights, or as a source of images."""
    if number % 4 == 0:
        path = folder / "x.zip"
        path.write_bytes(data)
        try:
            pack(PackOptions(src=path, out=folder / "out", workers=1), progress=False)
        except PackError as error:
            return "rejected: " + str(error).replace(str(folder), "")
        left_out = [json.loads(line) for line in (folder / "out/quarantine.jsonl").read_text().splitlines()]
        wrong = [line for line in left_out if names_nothing(line["reason"])]
        if wrong:
            return f"FAULT: left out without a cause: {wrong[0]}"
        return "in part: some was left out" if left_out else ACCEPTED
    path = folder / "x.pth"
    path.write_bytes(data)
    try:
        read_weights(path)
    except LayoutError as error:
        return "rejected: " + str(error).replace(str(folder), "")
    return ACCEPTED


ZIP = Kind(_zips, _of_zip, with_crcs, _zip_outcome)
