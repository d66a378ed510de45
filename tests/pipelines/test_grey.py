"""Views of one channel: those of grey images in three channels, at a third of the work; and sets that have colours."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from fastmoco.demo.made import draw_image
from pipelines import (
    LabelledCrops,
    LabelledPipeline,
    PipelineError,
    PipelineOptions,
    ViewPair,
    ViewSpec,
    build,
    build_stream,
    draw,
)
from pipelines._threads import worker_pool
from pipelines.augmentation import GREY_MEAN, GREY_STD, IMAGENET_MEAN, IMAGENET_STD
from pipelines.choice import installed
from pipelines.decode import decode
from pipelines.pictures import compare, sheet
from pipelines.transform import CentreTransform
from shards import ShardSet, ShardSetError
from tests.support.pictures import gradient, jpeg
from tests.support.sets import pack_set

DALI = pytest.param("dali", marks=[pytest.mark.dali, pytest.mark.skipif(not installed(), reason="needs NVIDIA DALI")])
BACKENDS = ["torch", DALI]
SIZES = [(96, 128), (150, 40), (33, 70), (300, 320)]
"""Heights and widths; the last one is shrunk in decoding."""
GREY = {"mean": GREY_MEAN, "std": GREY_STD}
EQUAL = {"mean": GREY_MEAN * 3, "std": GREY_STD * 3}
"""Normalisation of three channels that is the same in each."""
# blur, turns, all colours and solarization: half of the keys
PAIR = ViewPair(*(replace(ViewSpec.moco_v2(32), turns=0.5, solarize=share, **GREY) for share in (0.0, 0.5)))


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """Packed sets: `grey`, and `colour` of the same pictures with colours."""
    folder = tmp_path_factory.mktemp("grey")
    for number, (height, width) in enumerate(SIZES * 4):
        image = draw_image(number % 4, height, width, np.random.default_rng(number))
        for name, picture in (("grey", image.convert("L")), ("colour", image)):
            path = folder / f"{name}-images" / f"class {number % 2}" / f"{number}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            picture.save(path)
    return {name: pack_set(folder / f"{name}-images", folder / name) for name in ("grey", "colour")}


@pytest.fixture
def shards(sets):
    with ShardSet(sets["grey"]) as opened:
        yield opened


def views(shards, pair, backend="torch", dtype=torch.float32):
    options = PipelineOptions(pipeline=backend, threads=2)
    with build(shards, pair, options, global_batch=16, seed=4, dtype=dtype) as pipeline:
        return next(iter(pipeline.epoch(0)))


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_view_is_one_of_the_three_equal_channels(shards, backend):
    one, three = views(shards, PAIR, backend), views(shards, PAIR.changed(**EQUAL), backend)
    assert torch.equal(one.ids, three.ids)
    for grey, rgb in ((one.query, three.query), (one.key, three.key)):
        assert grey.shape == (16, 1, 32, 32)
        assert grey.is_contiguous(memory_format=torch.channels_last)
        # values up to 2.5 in float32, as a sum of one product and not of three
        torch.testing.assert_close(grey.expand_as(rgb), rgb, rtol=0, atol=3e-6)
    half = views(shards, PAIR, backend, torch.bfloat16)
    assert torch.equal(half.key, one.key.bfloat16())


@pytest.mark.dali
@pytest.mark.skipif(not installed(), reason="needs NVIDIA DALI")
def test_dali_makes_the_views_of_torch(shards):
    """In levels; as close as in three channels (`test_views`), where the torch backend decodes in full size, too."""
    ours, theirs = views(shards, PAIR), views(shards, PAIR, "dali")
    small = torch.tensor(shards.sizes(ours.ids.numpy()).max(axis=1) < 300)
    for a, b in ((ours.query, theirs.query), (ours.key, theirs.key)):
        difference = (a - b)[small].abs() * GREY_STD[0] * 255
        assert difference.mean() < 2


@pytest.mark.dali
@pytest.mark.skipif(not installed(), reason="needs NVIDIA DALI")
@pytest.mark.parametrize("normal", [GREY, EQUAL])
def test_dalis_views_are_its_own_memory(shards, monkeypatch, normal):
    """Whoever holds them can keep it until a stream has read it; a copy's source would be free at once."""
    from nvidia.dali import Pipeline

    from pipelines.dali import DaliBackend

    taken, outputs = [], Pipeline.outputs
    monkeypatch.setattr(Pipeline, "outputs", lambda self, stream: taken.extend(outputs(self, stream)) or taken)
    ids, pair = np.arange(16), PAIR.changed(**normal)
    sizes = shards.sizes(ids)
    params = [draw(spec, seed=4, epoch=0, ids=ids, sizes=sizes, view=view) for view, spec in enumerate(pair)]
    with worker_pool(2, "pipelines-test") as pool:
        backend = DaliBackend(pair, 16, torch.device("cpu"), pool, 2)
        found = backend.views([shards.read(sample) for sample in ids], sizes, params)
        assert [view.data_ptr() for view in found] == [out.as_tensor().data_ptr() for out in taken]
        assert all(view.is_contiguous() and view.shape == (16, 32, 32, len(normal["mean"])) for view in found)
        taken.clear()
        backend.close()


@pytest.mark.parametrize("backend", BACKENDS)
def test_labelled_images_are_one_of_the_three_equal_channels(shards, backend):
    options = PipelineOptions(pipeline=backend, threads=2)
    found = {}
    for normal in (GREY, EQUAL):
        centre = LabelledPipeline(shards, resize=40, crop=32, batch_size=16, options=options, **normal)
        spec = replace(ViewSpec.probe(32), **normal)
        crops = LabelledCrops(shards, spec, global_batch=16, seed=1, options=options)
        found[len(normal["mean"])] = [next(iter(centre)).images, next(iter(crops.epoch(0))).images]
    for one, three in zip(found[1], found[3], strict=True):
        assert one.shape == (16, 1, 32, 32)
        torch.testing.assert_close(one.expand_as(three), three, rtol=0, atol=1e-6)


def test_an_image_in_memory_is_the_packed_one(shards):
    transform = CentreTransform(32, 40, **GREY)
    (batch,) = LabelledPipeline(shards, resize=40, crop=32, batch_size=16, **GREY)
    for sample in range(16):
        pixels = decode(shards.read(sample), channels=1)
        for image in (Image.fromarray(pixels[..., 0]), Image.fromarray(np.repeat(pixels, 3, axis=2))):
            assert torch.equal(transform(image), batch.images[sample])
    with pytest.raises(PipelineError, match=r"an image of mode RGB has colours, and one channel is asked for"):
        transform(gradient())


def test_a_rare_jpeg_is_decoded_to_one_channel():
    whole = jpeg(gradient().convert("L"))
    odd = whole[:-2] + b"\0\0" + whole[-2:]  # simplejpeg refuses it, and Pillow reads it
    assert decode(odd, channels=1).shape == (48, 64, 1)
    np.testing.assert_array_equal(np.repeat(decode(odd, channels=1), 3, axis=2), decode(whole))


def test_sets_with_colours_are_refused_by_name(sets):
    with ShardSet(sets["grey"]) as grey, ShardSet(sets["colour"]) as colour:
        for refused in (
            lambda: build(colour, PAIR, global_batch=4),
            lambda: build([grey, colour], PAIR, global_batch=4),
            lambda: LabelledPipeline(colour, resize=40, crop=32, batch_size=4, **GREY),
            lambda: LabelledCrops(colour, replace(ViewSpec.probe(32), **GREY), global_batch=4),
        ):
            with pytest.raises(
                ShardSetError, match=rf"^{sets['colour']} has images with colours, .* use three channels"
            ):
                refused()
    with pytest.raises(PipelineError, match="views of one channel, and nothing says that all images of a stream are"):
        build_stream(["a.tar"], PAIR, images_per_epoch=8, global_batch=4)


def test_pictures_are_of_levels(shards, tmp_path):
    batch = views(shards, PAIR)
    sheet(batch, PAIR, tmp_path / "sheet.png", count=2, columns=2)
    pixels = np.asarray(Image.open(tmp_path / "sheet.png"))[:, :32]
    levels = (batch.query[0, 0] * GREY_STD[0] + GREY_MEAN[0]) * 255
    np.testing.assert_array_equal(pixels, np.repeat(levels.round().numpy()[..., None], 3, axis=2))
    assert len(compare(shards, PAIR, tmp_path / "compared.png", count=2)) == 4


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"mean": (0.5, 0.5)}, r"mean=\(0.5, 0.5\) must have 3 values, of red, green and blue, or 1"),
        ({"mean": GREY_MEAN}, r"std=.* must have as many values as mean, 1"),
        ({"mean": GREY_MEAN, "std": IMAGENET_STD}, r"std=.* must have as many values as mean, 1"),
    ],
)
def test_means_and_deviations_are_of_the_same_channels(values, message):
    with pytest.raises(PipelineError, match=message):
        ViewSpec(**values)


def test_the_default_is_the_average_of_imagenets():
    assert GREY_MEAN[0] == pytest.approx(np.mean(IMAGENET_MEAN)) and GREY_STD[0] == pytest.approx(np.mean(IMAGENET_STD))
    assert (ViewSpec().channels, PAIR.channels) == (3, 1)
