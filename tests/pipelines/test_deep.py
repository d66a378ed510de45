"""Views of 16-bit images: against their definition in float64, beside those of 8 bits, and bad images among them."""

from __future__ import annotations

import hashlib
import json
import shutil
import struct
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision.transforms.v2.functional as TF
from PIL import Image

from fastmoco.demo.made import draw_image
from pipelines import LabelledCrops, LabelledPipeline, PipelineError, PipelineOptions, ViewPair, ViewSpec, build, draw
from pipelines.augmentation import GREY_MEAN, GREY_STD
from pipelines.choice import choose
from pipelines.decode import decode
from pipelines.deep import decode_16
from pipelines.pictures import compare
from pipelines.transform import CentreTransform
from pipelines.views import gaussian
from shards import ShardSet
from shards.format.index import npy_bytes
from shards.format.scaling import Scaling
from shards.images import deep
from tests.support.pictures import cells, gradient, jpeg, png_chunk
from tests.support.sets import pack_set
from tests.support.views import assert_same_views

imagecodecs = pytest.importorskip("imagecodecs")
GREY = {"mean": GREY_MEAN, "std": GREY_STD}
PAIR = ViewPair(*(replace(ViewSpec.moco_v2(32), turns=0.5, solarize=share) for share in (0.0, 0.5)))
"""Blur, turns, all colours, and solarization of half of the keys."""
CLOSE = 1e-4
"""Of normalised values up to 2.6 to their definition: sums in float32 of some thirty levels up to 255."""

ONE, THREE = Scaling((0.1, 99.9), (500,), (2500,)), Scaling((0.1, 99.9), (500, 100, 900), (2500, 3900, 1500))
"""Of other sets."""


def written(folder: Path, images: list[np.ndarray]) -> Path:
    """A set of 16-bit images."""
    for number, pixels in enumerate(images):
        path = folder / "images" / f"class {number % 2}" / f"{number:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(deep.png(pixels))
    return pack_set(folder / "images", folder / "set", keep_16_bit=True, shard_size=8)


@pytest.fixture(scope="module")
def sets(tmp_path_factory) -> dict[str, Path]:
    """Packed sets: `grey` and `bright`, of one channel; `colour`; and `mixed` of grey and of RGB images."""
    folder = tmp_path_factory.mktemp("deep")
    grey = [cells(40 + 7 * number, 90 - 3 * number, seed=number) for number in range(12)]
    bright = [np.uint16(20000) + 9 * pixels for pixels in (cells(60, 50, seed=number) for number in range(20, 28))]
    colour = [cells(64, 48, channels=3, seed=number) * np.uint16([1, 2, 3]) for number in range(30, 38)]
    return {
        name: written(folder / name, images)
        for name, images in {"grey": grey, "bright": bright, "colour": colour, "mixed": grey[:6] + colour}.items()
    }


def in_levels(shard_set: ShardSet, sample: int, channels: int, scaling: Scaling | None = None) -> torch.Tensor:
    """float64[channels, H, W] of an image, by the definition of `Scaling`."""
    pixels = imagecodecs.png_decode(shard_set.read(sample))
    pixels = pixels.reshape(*pixels.shape[:2], -1).astype(np.float64)
    scaling = scaling or shard_set.scaling
    low, high = np.array(scaling.low), np.array(scaling.high)
    levels = 255 * np.clip((pixels - low) / (high - low), 0, 1)
    return torch.from_numpy(np.broadcast_to(levels, (*levels.shape[:2], channels)).copy()).permute(2, 0, 1)


def defined(levels: torch.Tensor, spec: ViewSpec, params, slot: int) -> torch.Tensor:
    """float64[C, S, S]: the view of an image by torchvision, and colours by the definition of `ViewParams`."""
    size = [spec.image_size] * 2
    view = TF.resized_crop(levels, *params.box[slot].tolist(), size, antialias=True)
    if sigma := float(params.sigma[slot]):
        view = TF.gaussian_blur(view, [len(gaussian(sigma))] * 2, [sigma] * 2)
    for happens, dims in ((params.flip, [2]), (params.vertical_flip, [1])):
        view = view.flip(dims) if happens[slot] else view
    view = view.transpose(1, 2) if params.transpose[slot] else view
    rgb = view.expand(3, -1, -1)
    linear, gain = (torch.from_numpy(each[slot]).double() for each in (params.linear, params.mean_gain))
    mapped = torch.einsum("ij,jyx->iyx", linear, rgb) + (gain @ rgb.mean((1, 2)))[:, None, None]
    mapped = mapped.clamp(0, 255)
    mapped = torch.minimum(mapped, 255 - mapped) if params.solarize[slot] else mapped
    return TF.normalize(mapped[: spec.channels] / 255, list(spec.mean), list(spec.std))


def assert_defined(shards: list[ShardSet], pair: ViewPair) -> None:
    """Fail unless all views of an epoch are those that are defined, each image scaled by its own set."""
    counts = np.array([len(each) for each in shards])
    with build(shards, pair, PipelineOptions(threads=2), global_batch=4, seed=3) as pipeline:
        assert (pipeline.backend, pipeline.reason) == ("torch", "images have 16 bits, which DALI does not read")
        for batch in pipeline.epoch(0):
            ids = batch.ids.numpy()
            which = np.searchsorted(np.cumsum(counts), ids, side="right")
            own = ids - (np.cumsum(counts) - counts)[which]
            sizes = np.concatenate([shards[one].sizes(own[i : i + 1]) for i, one in enumerate(which)])
            for view, (found, spec) in enumerate(zip((batch.query, batch.key), pair, strict=True)):
                params = draw(spec, seed=3, epoch=0, ids=ids, sizes=sizes, view=view)
                for slot, one in enumerate(which):
                    levels = in_levels(shards[one], int(own[slot]), spec.channels)
                    expected = defined(levels, spec, params, slot)
                    torch.testing.assert_close(found[slot].double(), expected, rtol=0, atol=CLOSE)


@pytest.mark.parametrize(
    ("name", "normal", "size"), [("grey", GREY, 33), ("grey", {}, 16), ("colour", {}, 16), ("mixed", {}, 33)]
)
def test_views_are_those_of_the_definition(sets, name, normal, size):
    with ShardSet(sets[name]) as opened:
        assert_defined([opened], PAIR.changed(image_size=size, **normal))


@pytest.mark.parametrize(("names", "normal"), [(("grey", "bright"), GREY), (("bright", "colour", "grey"), {})])
def test_joined_sets_are_each_scaled_by_their_own(sets, names, normal):
    opened = [ShardSet(sets[name]) for name in names]
    assert len({each.scaling for each in opened}) == len(names)
    assert_defined(opened, PAIR.changed(**normal))


def test_threads_restarts_and_types_change_nothing(sets):
    def batches(threads, start=0, dtype=torch.float32):
        options = PipelineOptions(threads=threads)
        with ShardSet(sets["mixed"]) as opened, build(opened, PAIR, options, global_batch=7, dtype=dtype) as pipeline:
            return list(pipeline.epoch(1, start))

    first = batches(1)
    assert_same_views(batches(3), first)
    assert_same_views(batches(2, start=1), first[1:])
    half = batches(2, dtype=torch.bfloat16)
    assert all(torch.equal(a.query, b.query.bfloat16()) for a, b in zip(half, first, strict=True))


@pytest.fixture(scope="module")
def twins(tmp_path_factory) -> tuple[Path, Path]:
    """The same images in 8 bits, and in 16 as 257 times their levels, with the scaling [0, 65535]."""
    folder = tmp_path_factory.mktemp("twins")
    for number in range(8):
        image = draw_image(number % 4, 80 + number, 100, np.random.default_rng(number)).convert("L")
        image.paste(0, (0, 0, 16, 16))
        image.paste(255, (16, 0, 32, 16))
        data = jpeg(image)
        for name, content in (("8", data), ("16", deep.png(decode(data, channels=1)[..., 0] * np.uint16(257)))):
            path = folder / name / f"{number}.jpg"  # of the same name, so that they have the same ids
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(content)
    deep_set = pack_set(folder / "16", folder / "deep", keep_16_bit=True, percentiles=(0.0, 100.0))
    return pack_set(folder / "8", folder / "plain"), deep_set


@pytest.mark.parametrize("normal", [GREY, {}])
def test_views_are_those_of_8_bits_without_their_rounding(twins, normal):
    pair = ViewPair.of(replace(ViewSpec.moco_v2(48), solarize=0.2)).changed(**normal)
    found = []
    for place in twins:
        with ShardSet(place) as opened, build(opened, pair, global_batch=8, seed=5) as pipeline:
            assert place != twins[1] or (opened.scaling.low, opened.scaling.high) == ((0,), (65535,))
            found.append(next(iter(pipeline.epoch(0))))
    plain, exact = found
    assert torch.equal(plain.ids, exact.ids)
    ids = exact.ids.numpy()
    errors = {8: 0.0, 16: 0.0}
    with ShardSet(twins[1]) as opened:
        for view, (a, b, spec) in enumerate(zip((plain.query, plain.key), (exact.query, exact.key), pair, strict=True)):
            params = draw(spec, seed=5, epoch=0, ids=ids, sizes=opened.sizes(ids), view=view)
            for slot, sample in enumerate(ids.tolist()):
                expected = defined(in_levels(opened, sample, spec.channels), spec, params, slot)
                # the view's rounding, of half a level and the 16-bit arithmetic's share, after brightness and contrast
                bound = 0.52 / 255 * max(1, params.linear[slot][0].sum()) / torch.tensor(spec.std) + CLOSE
                difference = (a[slot].double() - expected).abs().amax((1, 2))
                assert (difference <= 1.5 * bound).all()  # contrast's mean has an error of its own
                errors[8] = max(errors[8], float(difference.max()))
                errors[16] = max(errors[16], float((b[slot].double() - expected).abs().max()))
    assert errors[16] <= CLOSE and errors[8] > 20 * errors[16]


@pytest.mark.parametrize(
    ("name", "normal", "given"),
    [("grey", GREY, None), ("grey", {}, None), ("mixed", {}, None), ("mixed", {}, ONE), ("grey", {}, THREE)],
)
def test_labelled_images_are_those_of_the_definition(sets, name, normal, given):
    with ShardSet(sets[name]) as opened:
        centre = LabelledPipeline(opened, resize=40, crop=32, batch_size=5, scaling=given, **normal)
        transform = CentreTransform(32, 40, scaling=given or opened.scaling, **normal)
        spec = replace(ViewSpec.probe(32), **normal)
        for batch in centre:
            for image, sample in zip(batch.images, batch.ids.tolist(), strict=True):
                levels = in_levels(opened, sample, spec.channels, given)
                height, width = levels.shape[1:]
                shape = [40, int(40 * width / height)] if height <= width else [int(40 * height / width), 40]
                resized = TF.resize(levels, shape, antialias=True)
                expected = TF.normalize(TF.center_crop(resized, [32, 32]) / 255, list(spec.mean), list(spec.std))
                torch.testing.assert_close(image.double(), expected, rtol=0, atol=CLOSE)
                assert torch.equal(transform(imagecodecs.png_decode(opened.read(sample))), image)
        crops = LabelledCrops(opened, spec, global_batch=6, seed=2, scaling=given)
        for batch in crops.epoch(1):
            ids = batch.ids.numpy()
            params = draw(spec, seed=2, epoch=1, ids=ids, sizes=opened.sizes(ids), view=0)
            for slot, sample in enumerate(ids.tolist()):
                expected = defined(in_levels(opened, sample, spec.channels, given), spec, params, slot)
                torch.testing.assert_close(batch.images[slot].double(), expected, rtol=0, atol=CLOSE)


def test_images_of_8_bits_have_no_scaling(twins):
    with (
        ShardSet(twins[0]) as opened,
        pytest.raises(PipelineError, match=rf"^scaling is of 16-bit values, and {twins[0]} has images of 8 bits"),
    ):
        LabelledPipeline(opened, resize=40, crop=32, batch_size=4, scaling=ONE)


def test_one_channel_is_not_scaled_as_three_are(sets):
    with (
        ShardSet(sets["grey"]) as opened,
        pytest.raises(PipelineError, match="scaling has 3 channels, and one is asked"),
    ):
        LabelledPipeline(opened, resize=40, crop=32, batch_size=4, scaling=THREE, keep_bad=True, **GREY)
    with pytest.raises(PipelineError, match="scaling has 3 channels, and one is asked"):
        CentreTransform(32, 40, scaling=THREE, **GREY)


def test_images_in_memory_of_another_kind_are_refused(sets):
    with ShardSet(sets["grey"]) as opened:
        one, eight = CentreTransform(32, 40, scaling=opened.scaling, **GREY), CentreTransform(32, 40, **GREY)
    pixels = cells()
    as_pillows = Image.fromarray(pixels)
    assert as_pillows.mode == "I;16" and torch.equal(one(as_pillows), one(pixels))
    as_pillows.info["exif"] = b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"
    assert torch.equal(one(as_pillows), one(np.ascontiguousarray(np.rot90(pixels, 3))))
    with pytest.raises(
        PipelineError, match=r"type uint8 and the shape \[48, 64\] is given, and the encoder was trained"
    ):
        one(as_pillows.convert("L"))
    with pytest.raises(PipelineError, match=r"the shape \[0, 64\] is given"):
        one(pixels[:0])
    with pytest.raises(PipelineError, match="an image of 16 bits has colours, and one channel is asked for"):
        one(cells(channels=3))
    with pytest.raises(PipelineError, match=r"an array is given, .* use Image\.fromarray"):
        eight(pixels)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kind", range(6))
def test_every_filter_of_a_line_is_undone(kind, channels):
    """Each of the five for all lines, and all of them in turn: by the specification, on values that wrap around."""
    pixels = np.random.default_rng(kind).integers(0, 65536, (11, 7, channels)).astype(np.uint16)
    flat, step = pixels.reshape(11, -1).astype(">u2").view(np.uint8).astype(np.int64), 2 * channels
    padded = np.pad(flat, ((1, 0), (step, 0)))
    up, left, corner = padded[:-1, step:], padded[1:, :-step], padded[:-1, :-step]
    away = np.stack([np.abs(up - corner), np.abs(left - corner), np.abs(left + up - 2 * corner)])
    nearest = np.choose(away.argmin(axis=0), [left, up, corner])
    filtered = [flat - other for other in (0, left, up, (left + up) // 2, nearest)]
    kinds = np.arange(11) % 5 if kind == 5 else np.full(11, kind)
    lines = np.column_stack([kinds, np.array([filtered[k][y] for y, k in enumerate(kinds)]) % 256]).astype(np.uint8)
    data = png_of_lines(lines, 7, channels)
    found = decode_16(data, (11, 7), 3)
    np.testing.assert_array_equal(found, pixels)
    np.testing.assert_array_equal(found, imagecodecs.png_decode(data).reshape(11, 7, channels))


def png_of_lines(lines: np.ndarray, width: int, channels: int, before: bytes = b"", cut: int = 0) -> bytes:
    """A PNG of 16 bits of filtered lines, with chunks before its pixels, without the last bytes of these."""
    header = struct.pack(">IIBBBBB", width, len(lines), 16, 0 if channels == 1 else 2, 0, 0, 0)
    body = zlib.compress(lines.tobytes()[: lines.size - cut])
    chunks = png_chunk(b"IHDR", header) + before + png_chunk(b"IDAT", body) + png_chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


def test_what_cannot_be_decoded_says_why():
    lines = np.zeros((4, 1 + 2 * 5), np.uint8)
    unknown = lines.copy()
    unknown[2, 0] = 5
    whole = png_of_lines(lines, 5, 1)
    assert decode_16(whole, (4, 5), 1).shape == (4, 5, 1)
    at = whole.index(b"IDAT") + 4
    broken = png_chunk(b"IDAT", b"\0" * 8 + whole[at + 8 : whole.index(b"IEND") - 8])
    for data, told in (
        (whole[:-20], "cannot be decoded: truncated: the PNG ends within a chunk"),
        (png_of_lines(lines, 5, 1, cut=3), "cannot be decoded: truncated: the PNG has 41 of 44 bytes of pixels"),
        (png_of_lines(np.zeros((4, 13), np.uint8), 5, 1), "pixels cannot be inflated to its size"),
        (whole[: at - 8] + broken + whole[whole.index(b"IEND") - 4 :], "pixels cannot be inflated to its size"),
        (whole[: at + 2] + b"\1" + whole[at + 3 :], r"cannot be decoded: damaged: the chunk of the PNG at byte 33"),
        (png_of_lines(unknown, 5, 1), "cannot be decoded: damaged: the PNG has a line of an unknown filter"),
        (png_of_lines(lines, 5, 1, png_chunk(b"tRNS", b"\0\1")), "is a PNG with transparency"),
        (png_of_lines(np.zeros((4, 31), np.uint8), 5, 3), "has colours, in a set of grey images"),
        (png_of_lines(lines[:3], 5, 1), "is no 16-bit PNG of 5 x 4 pixels"),
        (jpeg(gradient()), "is no 16-bit PNG of 5 x 4 pixels"),
    ):
        with pytest.raises(ValueError, match=told):
            decode_16(data, (4, 5), 1)


def undecodable(place: Path, row: int) -> None:
    """Damage an image of the first shard before its pixels are compressed again, so that all checksums are right."""
    tar, index = place / "shard-000000.tar", place / "shard-000000.npy"
    rows, data = np.load(index), bytearray(tar.read_bytes())
    start, size = int(rows["offset"][row]), int(rows["size"][row])
    data[start + 60 : start + 64] = bytes(4)  # in the pixels
    rows["crc32"][row] = zlib.crc32(data[start : start + size])
    with ShardSet(place) as opened:
        record = opened.manifest.records[0]
    tar.write_bytes(data)
    index.write_bytes(npy_bytes(rows))
    new = {"sha256": data, "index_sha256": npy_bytes(rows)}
    for path in (place / "shard-000000.json", place / "manifest.json"):
        text = path.read_text()
        for name, content in new.items():
            text = text.replace(getattr(record, name), hashlib.sha256(content).hexdigest())
        path.write_text(text)


def test_an_image_that_cannot_be_decoded_is_replaced_and_named(sets, tmp_path):
    """The replacement of another set is scaled by that set."""
    shutil.copytree(sets["grey"], tmp_path / "set")
    undecodable(tmp_path / "set", 3)
    pair = PAIR.changed(**GREY)
    with ShardSet(tmp_path / "set") as damaged, ShardSet(sets["bright"]) as other:
        with build([damaged, other], pair, global_batch=4, quarantine=tmp_path / "bad.jsonl") as pipeline:
            batches = list(pipeline.epoch(0))
        (line,) = map(json.loads, (tmp_path / "bad.jsonl").read_text().splitlines())
        assert line["sample"] == 3 and line["source"] == damaged.source(3)
        assert line["cause"] == "cannot be decoded: damaged: the chunk of the PNG at byte 33"
        (batch, slot) = next(
            (batch, slot)
            for number, batch in enumerate(batches)
            for slot, sample in enumerate(batch.ids.tolist())
            if number == line["step"] and sample == line["replaced_by"]
        )
        one, own = (damaged, line["replaced_by"]) if line["replaced_by"] < 12 else (other, line["replaced_by"] - 12)
        sizes = one.sizes(np.array([own]))
        params = draw(pair.query, seed=0, epoch=0, ids=batch.ids.numpy()[slot : slot + 1], sizes=sizes, view=0)
        expected = defined(in_levels(one, own, 1), pair.query, params, 0)
        torch.testing.assert_close(batch.query[slot].double(), expected, rtol=0, atol=CLOSE)
        with pytest.raises(
            PipelineError, match=r"sample 3 \(shard-000000.tar, key .*: class .*\) cannot be decoded: dam"
        ):
            list(LabelledPipeline(damaged, resize=40, crop=32, batch_size=4))
        kept = LabelledPipeline(damaged, resize=40, crop=32, batch_size=12, keep_bad=True)
        assert next(iter(kept)).bad == {3: line["cause"]}


def test_backends_and_packages_that_cannot_read_them_are_named(sets, monkeypatch):
    device = torch.device("cuda")
    assert choose("auto", device, bits=16) == ("torch", "images have 16 bits, which DALI does not read")
    assert choose("torch", device, bits=16) == ("torch", "as requested")
    with ShardSet(sets["grey"]) as opened:
        told = "backend 'dali' does not read images of 16 bits: use --pipeline torch"
        with pytest.raises(PipelineError, match=told):
            build(opened, PAIR, PipelineOptions(pipeline="dali"), global_batch=4)
        with pytest.raises(PipelineError, match=told):
            LabelledPipeline(opened, resize=40, crop=32, batch_size=4, options=PipelineOptions(pipeline="dali"))
        monkeypatch.setattr("pipelines.choice.find_spec", lambda name: None)
        for make in (
            lambda: build(opened, PAIR, global_batch=4),
            lambda: LabelledPipeline(opened, resize=40, crop=32, batch_size=4),
        ):
            with pytest.raises(
                PipelineError, match=r"need imagecodecs, which is not installed: pip install 'fastmoco\["
            ):
                make()


def test_pictures_show_them(sets, tmp_path):
    with ShardSet(sets["colour"]) as opened:
        assert len(compare(opened, PAIR, tmp_path / "views.png", count=2)) == 4
    assert np.asarray(Image.open(tmp_path / "views.png")).std() > 20  # by their full range they would be nearly black
