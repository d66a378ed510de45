"""JPEGs that libjpeg reads and other decoders reject or turn: packed with the same pixels, or left out by name."""

from __future__ import annotations

import io
import struct
import time

import numpy as np
import pytest
from PIL import Image

from shards.foreign.tar_index import index_tar
from shards.images.encode import Rejected, encode
from shards.images.jpeg import read_header
from shards.images.options import EncodeOptions
from tests.fuzz.faults import damaged
from tests.fuzz.running import kind_of
from tests.support import pictures
from tests.support.tars import tar_bytes

PLAIN = pictures.jpeg(pictures.gradient())
UNCHECKED = EncodeOptions(check=False)


def segment(marker: int, data: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(data) + 2) + data


def after_start(*extra: bytes) -> bytes:
    return PLAIN[:2] + b"".join(extra) + PLAIN[2:]


def before_scan(extra: bytes) -> bytes:
    place = PLAIN.index(b"\xff\xda")
    return PLAIN[:place] + extra + PLAIN[place:]


def exif(value: int | None, kind: int = 3, order: str = "<", count: int = 1) -> bytes:
    """An EXIF segment with an orientation of a TIFF type, or without one."""
    start = {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(order + "I", 8)
    if value is None:
        return segment(0xE1, b"Exif\0\0" + start + struct.pack(order + "HI", 0, 0))
    number = struct.pack(order + {1: "B3x", 4: "I", 9: "i"}.get(kind, "H2x"), value)
    return segment(0xE1, b"Exif\0\0" + start + struct.pack(order + "HHHI", 1, 0x0112, kind, count) + number + bytes(4))


ODD = {
    "a length of 1": after_start(b"\xff\xe5\0\1"),
    "a length of 0": after_start(b"\xff\xe5\0\0"),
    "an empty table": after_start(b"\xff\xc4\0\0"),
    "bytes after the start": after_start(b"\0\0\0"),
    "bytes before the scan": before_scan(b"AB"),
    "a stuffed byte": after_start(b"\xff\0"),
    "two starts": after_start(b"\xff\xd8"),
    "a restart marker": before_scan(b"\xff\xd3"),
    "a temporary marker": after_start(b"\xff\x01"),
    "a reserved marker": after_start(segment(0x02, b"reserved")),
    "a JPG marker": after_start(segment(0xF0, b"extension")),
    "fill bytes": after_start(b"\xff\xff"),
    "orientation 6 after 1": after_start(exif(1), exif(6)),
    "two EXIF segments": after_start(exif(1), exif(1)),
    "an orientation of text": after_start(exif(6, kind=2)),
}


@pytest.mark.parametrize("options", [EncodeOptions(), UNCHECKED])
@pytest.mark.parametrize("name", ODD)
def test_odd_headers_are_rewritten_without_loss(name, options):
    found = encode(ODD[name], options).data
    assert found != ODD[name]
    assert found[found.index(b"\xff\xdb") :] == PLAIN[PLAIN.index(b"\xff\xdb") :]
    assert np.array_equal(Image.open(io.BytesIO(found)), Image.open(io.BytesIO(PLAIN)))
    header = read_header(found)
    assert header is not None
    assert header.standard
    assert encode(found).data == found


def test_ordinary_metadata_stays_byte_for_byte():
    profile = segment(0xE2, b"ICC_PROFILE\0\1\1" + bytes(500))
    xmp = segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0<x/>")
    data = after_start(exif(1), xmp, profile, segment(0xED, b"Photoshop 3.0\0"), segment(0xFE, b"hello"))
    for ordinary in (data, after_start(exif(0)), after_start(exif(None, order=">")), PLAIN[:2] + PLAIN[20:]):
        assert encode(ordinary).data == ordinary


def test_the_marker_that_names_the_colours_is_kept():
    """RGB, not YCbCr: without a JFIF segment, only Adobe's marker says so."""
    rgb = pictures.jpeg(pictures.gradient(), keep_rgb=True)
    odd = rgb[:2] + b"\xff\xe5\0\1" + rgb[2:]
    found = encode(odd).data
    assert found != odd
    assert np.array_equal(Image.open(io.BytesIO(found)), Image.open(io.BytesIO(rgb)))


@pytest.mark.parametrize(
    ("segments", "turned"),
    [
        ([exif(6), exif(1)], True),
        ([exif(None), exif(6)], True),
        ([exif(1), exif(6)], False),
        ([exif(6, 4)], True),
        ([exif(6, 4, ">")], True),
        ([exif(6, 1, ">")], True),
        ([exif(6, 9)], True),
        ([exif(6, count=0)], True),
    ],
)
def test_the_first_orientation_counts_and_is_baked_in(segments, turned):
    found = encode(after_start(*segments), EncodeOptions(quality=95))
    expected = pictures.gradient().transpose(Image.Transpose.ROTATE_270) if turned else pictures.gradient()
    assert (found.width, found.height) == expected.size
    image = Image.open(io.BytesIO(found.data))
    assert np.abs(np.asarray(image).astype(int) - np.asarray(expected)).mean() < 6
    assert not image.getexif()


@pytest.mark.dali
def test_dali_parses_and_never_turns_what_was_packed():
    nvimgcodec = pytest.importorskip("nvidia.nvimgcodec")
    from nvidia.dali import fn, pipeline_def

    rejected = [name for name, data in ODD.items() if not _parses(nvimgcodec, data)]
    assert len(rejected) == 9  # these are why headers are rewritten; if there are none, DALI's parser has changed
    packed = [encode(data).data for data in ODD.values()]
    assert all(_parses(nvimgcodec, data) for data in packed)

    @pipeline_def(batch_size=len(packed), num_threads=1, device_id=None, prefetch_queue_depth=1)
    def decode():
        return fn.decoders.image(fn.external_source([[np.frombuffer(data, np.uint8) for data in packed]]))

    pipeline = decode()
    pipeline.build()
    (pixels,) = pipeline.run()
    expected = np.asarray(Image.open(io.BytesIO(PLAIN)))
    assert all(np.array_equal(np.asarray(image), expected) for image in pixels)


@pytest.mark.dali
def test_dali_parses_what_is_accepted_of_damaged_jpegs():
    nvimgcodec = pytest.importorskip("nvidia.nvimgcodec")
    jpegs, accepted = kind_of("jpeg"), 0
    for number in range(400):
        for options in (EncodeOptions(), UNCHECKED):
            try:
                found = encode(damaged(jpegs, 11, number), options)
            except Rejected:
                continue
            header = nvimgcodec.CodeStream(found.data)
            assert (header.height, header.width) == (found.height, found.width), number
            accepted += 1
    assert accepted > 100


def _parses(nvimgcodec, data: bytes) -> bool:
    try:
        return nvimgcodec.CodeStream(data).height == 48
    except RuntimeError:
        return False


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (PLAIN.replace(b"\xff\xc0\0\x11\x08", b"\xff\xc1\0\x11\x0c"), "12-bit JPEG"),
        (PLAIN.replace(b"\xff\xc0", b"\xff\xf7"), "JPEG-LS"),
        (PLAIN.replace(b"\xff\xc0", b"\xff\xc3"), "lossless JPEG"),
        (PLAIN.replace(b"\xff\xc0", b"\xff\xc5"), "hierarchical JPEG"),
        (PLAIN.replace(b"\0\x30\0\x40\x03", b"\0\0\0\x40\x03"), r"JPEG with its height after its data \(DNL\)"),
        (PLAIN.replace(b"\0\x30\0\x40\x03", b"\0\x30\0\x40\x02"), "JPEG of 2 components"),
    ],
)
def test_jpegs_of_other_kinds_are_named(data, kind):
    assert data != PLAIN
    for options in (EncodeOptions(), UNCHECKED):
        with pytest.raises(Rejected, match=f"^unsupported: {kind}$"):
            encode(data, options)


@pytest.mark.parametrize("options", [EncodeOptions(), UNCHECKED])
def test_two_frame_headers_are_damage(options):
    place = PLAIN.index(b"\xff\xc0")
    with pytest.raises(Rejected, match=r"^damaged"):
        encode(before_scan(PLAIN[place : place + 19]), options)


def many_scans(scans: int, side: int) -> bytes:
    """A sequential JPEG of one colour with `scans` empty scans of its last component."""
    data = pictures.jpeg(Image.new("RGB", (side, side), (90, 120, 150)), subsampling=0)
    place = data.index(b"\xff\xda")
    scan = [
        b"\xff\xda\0\x08\x01" + bytes((component, table, 0, 63, 0)) for component, table in enumerate((0, 17, 17), 1)
    ]
    # The first component's data are those of all three: decoders read as much as they need.
    return data[:place] + scan[0] + data[place + 14 : -2] + scan[1] + b"\0" + (scan[2] + b"\0") * scans + b"\xff\xd9"


@pytest.mark.parametrize("options", [EncodeOptions(), UNCHECKED])
def test_a_sequential_jpeg_of_many_scans_becomes_one_of_one_scan(options):
    data = many_scans(100, 128)
    header = read_header(encode(data, options).data)
    assert header is not None
    assert header.single_scan
    assert (header.width, header.height) == (128, 128)
    assert encode(many_scans(1, 128)).data == many_scans(1, 128)  # a scan for each component: as encoders write


@pytest.mark.parametrize("options", [EncodeOptions(), UNCHECKED])
def test_too_many_scans_for_the_size_are_rejected_at_once(options):
    data = many_scans(20_000, 2000)
    begun = time.process_time()
    with pytest.raises(Rejected, match=r"^too large: a sequential JPEG of 20,002 scans of 2000 x 2000 pixels"):
        encode(data, options)
    assert time.process_time() - begun < 1  # decoding takes a minute


def test_a_second_picture_adds_no_scans():
    """As in phones' files of several pictures, whose first one has a scan for each component."""
    data = many_scans(1, 128) + PLAIN * 5
    assert encode(data).data == data


@pytest.mark.parametrize(
    ("name", "cause"),
    [
        ("bytes after the start", "needs converting: a header that not every decoder reads alike"),
        ("orientation 6 after 1", "needs converting: a header that not every decoder reads alike"),
    ],
)
def test_indexing_leaves_odd_headers_out(name, cause):
    """Indexing does not rewrite tars, and DALI would read these bytes as they are."""
    found = index_tar(io.BytesIO(tar_bytes({"1.jpg": ODD[name]})), "some.tar", check=True)
    assert [item.reason for item in found.left_out] == [cause]
    assert len(found.rows) == 0


@pytest.mark.parametrize(
    "extra", [segment(0xE0, b"JFIF\0"), segment(0xEE, b"Adobe"), segment(0xED, b"Photoshop 3.0\0" + b"8BIM" * 9)]
)
@pytest.mark.parametrize("options", [EncodeOptions(), EncodeOptions(resize=24)])
def test_short_metadata_do_not_reject(extra, options):
    """libjpeg ignores them."""
    data = PLAIN[:2] + extra + PLAIN[20:]
    found = encode(data, options)
    assert options.resize or found.data == data
