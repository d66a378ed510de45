"""Why an image cannot be decoded, from its bytes or from the decoder's error."""

from __future__ import annotations

import re

from PIL import features

from shards.images.formats import SIGNATURES
from shards.images.tiff import read_tiff


class Rejected(Exception):
    """An image is to be left out; the message is the reason, as `cause: detail`."""


def needs_formats(kind: str) -> str:
    """Cause for a file of a format whose decoder is not installed."""
    return f"needs pip install 'fastmoco[formats]': {kind}"


def not_an_image(data: bytes) -> str:
    """Cause for bytes that no decoder accepts, by their first bytes."""
    head = data[:512].lstrip()
    tiff = read_tiff(data)
    if tiff is not None and tiff.plausible:
        return f"unsupported: {tiff}"
    for kind, signature in SIGNATURES.items():
        if re.match(signature, data, re.DOTALL):
            if kind == "AVIF" and not features.check("avif"):  # Pillow before 11.3
                return needs_formats(kind)
            return f"damaged: begins as a {kind}, but its header cannot be read"
    if data[4:8] == b"ftyp" and data[8:12] in (b"mif1", b"msf1"):
        return "unsupported: HEIF of another codec than HEVC and AV1"
    if re.match(rb"<(!doctype html|html|\?xml|head|body|svg)", head, re.IGNORECASE):
        return "not an image: HTML or XML"
    if not data.strip(b"\0"):
        return "not an image: zero bytes only"
    if re.fullmatch(rb"[\t\n\r\x20-\x7e\x80-\xff]*", head):
        return "not an image: text"
    return "not an image: no known format"


def of_error(error: Exception) -> str:
    """Cause for a decoder's error."""
    # On one line and without memory addresses: the text is in the shard's record, which is the same in every run.
    text = re.sub(r"\s*(<[^<>]* at )?0x[0-9a-f]{6,}>?", "", " ".join(str(error).split()))[:300]
    if re.search(
        "truncated|not enough|too short|end of|EOF|needed more|incomplete|stream too small|Read error on",
        text,
        re.IGNORECASE,
    ):
        return f"truncated: {text}"
    return f"damaged: {text or type(error).__name__}"
