"""Sets of grey images, of 8 and of 16 bits, from training with one channel to features and exports."""

from __future__ import annotations

import io
import json
import logging
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image

import fastmoco
from fastmoco.checkpoints import checkpoint
from fastmoco.checkpoints.checkpoint import CheckpointError
from fastmoco.config import ConfigError
from fastmoco.doctor.dry_run import dry_run
from fastmoco.embedding import Args as Embed
from fastmoco.embedding import run as embed
from fastmoco.export import export
from fastmoco.features.parts import EmbeddingError
from fastmoco.finetuning.loop import Finetuning
from fastmoco.finetuning.settings import FinetuneSettings
from fastmoco.knn import Args as Knn
from fastmoco.knn import run as knn
from fastmoco.layouts.encoders import read_encoder
from fastmoco.mapping import Args as Map
from fastmoco.mapping import run as show
from fastmoco.maps.points import sheets
from fastmoco.probes.encoders import open_encoder
from fastmoco.probes.knn import Probe
from fastmoco.probes.linear import LinearProbe
from fastmoco.probes.linear_settings import LinearSettings
from fastmoco.ranks.world import World
from fastmoco.recipes import recipe
from fastmoco.report.neighbours import compute
from fastmoco.scalings import plain
from fastmoco.similar import run as similar
from pipelines import LabelledCrops, PipelineError, ViewSpec
from shards import ShardSet
from shards.errors import PackError, UserError
from tests.support.pictures import cells, encoded, png_16
from tests.support.runs import narrow_resnet10, resnet10_of
from tests.support.sets import pack_set

CPU = World(0, 1, torch.device("cpu"))
SMALL = {
    "recipe": "demo", "image_size": 32, "batch_size": 8, "queue_size": 16, "threads": 1, "log_every": 1, "steps": 4,
    "channels": 1,
}  # fmt: skip


class _Stop(fastmoco.Callback):
    def on_step(self, training):
        self.scaling = training.encoder.image_scaling
        if training.step == 2:
            training.stop()


def stripes(kind: int, seed: int) -> np.ndarray:
    """float64 [48, 64] about 0: stripes of a class's direction, at a place of their own, with a little noise."""
    chance = np.random.default_rng([kind, seed])
    y, x = np.mgrid[:48, :64]
    across = {0: x, 1: y, 2: x + y}[kind] + chance.uniform(0, 8)
    return np.sign(np.sin(across * 2 * np.pi / 8)) + chance.normal(0, 0.2, x.shape)


class Grey(NamedTuple):
    """A set for training and one for validation, with their images' folder."""

    bits: int
    images: Path
    train: Path
    val: Path


@pytest.fixture(scope="module", params=[pytest.param(8, marks=pytest.mark.long), 16])
def grey(request, tmp_path_factory):
    """Three classes of 8 and 4 images; with 16 bits in a range of a few values, which 8 bits lose."""
    folder = tmp_path_factory.mktemp("grey")
    middle, scale = (128, 60) if request.param == 8 else (2000, 12)
    for split, first, count in (("train", 0, 8), ("val", 100, 4)):
        for kind in range(3):
            (folder / split / f"class {kind}").mkdir(parents=True)
            for seed in range(first, first + count):
                pixels = (middle + scale * stripes(kind, seed)).round().clip(0)
                image = Image.fromarray(pixels.astype(np.uint8 if request.param == 8 else np.uint16))
                image.save(folder / split / f"class {kind}" / f"{seed}.png")
        pack_set(folder / split, folder / f"{split} set", shard_size=16, keep_16_bit=request.param == 16)
    return Grey(request.param, folder, folder / "train set", folder / "val set")


@pytest.fixture(scope="module", autouse=True)
def _narrow(one_thread):
    with resnet10_of(1 / 4):
        yield


@pytest.fixture(scope="module")
def whole(grey, tmp_path_factory):
    settings = {**SMALL, "knn_every": 1, "knn_val": grey.val, "knn_k": 3}
    return fastmoco.pretrain(grey.train, out=tmp_path_factory.mktemp("grey runs") / "whole", **settings)


@pytest.fixture(scope="module")
def colour(photos, tmp_path_factory):
    return pack_set(photos / "val", tmp_path_factory.mktemp("colour") / "set", shard_size=32)


def test_a_run_of_one_channel_continues_bit_for_bit(grey, whole, tmp_path):
    stopping = _Stop()
    fastmoco.pretrain(grey.train, out=tmp_path / "run", callbacks=[stopping], **SMALL)
    with ShardSet(grey.train) as shard_set:
        assert stopping.scaling == shard_set.scaling  # the probe during training scales as `fastmoco knn` does
    again = fastmoco.pretrain(grey.train, out=tmp_path / "run", **SMALL)
    ours, theirs = (checkpoint.load(run.checkpoint) for run in (again, whole))
    assert ours["query_encoder"]["backbone.conv1.weight"].shape == (16, 1, 7, 7)
    for part in ("query_encoder", "key_encoder", "queue"):
        assert all(torch.equal(ours[part][name], tensor) for name, tensor in theirs[part].items())
    losses = [[record["loss"] for record in run.metrics if "loss" in record] for run in (again, whole)]
    assert losses[0] == losses[1] and len(losses[0]) == 4
    assert any("knn_top1" in record for record in whole.metrics)
    config = json.loads((whole.folder / "config.json").read_text())
    assert (config["channels"], config["mean"], config["std"]) == (1, [0.449], [0.226])


def test_a_run_continues_on_its_grey_images_where_some_in_colour_were_appended(grey, whole, tmp_path, caplog):
    place, out, more = tmp_path / "set", tmp_path / "run", tmp_path / "more"
    shutil.copytree(grey.train, place)
    fastmoco.pretrain(place, out=out, callbacks=[_Stop()], **SMALL)
    more.mkdir()
    colours = cells(channels=3)
    data = png_16(colours) if grey.bits == 16 else encoded(Image.fromarray((colours >> 4).astype(np.uint8)), "PNG")
    (more / "1.png").write_bytes(data)
    pack_set(more, place, append=True, keep_16_bit=grey.bits == 16)
    found = {each.topic: each for each in dry_run(replace(recipe("demo"), **{**SMALL, "shards": place, "out": out}))}
    assert not [each for each in found.values() if each.level == "stop"] and "without them" in found["checkpoint"].text
    run = fastmoco.pretrain(place, out=out, **SMALL)
    assert "continues on the first 24" in caplog.text
    ours, theirs = (checkpoint.load(each.checkpoint)["query_encoder"] for each in (run, whole))
    assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())
    with pytest.raises(
        ConfigError, match=f"^--channels 1 takes images of one channel, and {place} has images in colour"
    ):
        fastmoco.pretrain(place, out=tmp_path / "anew", **SMALL)
    (images,) = [
        each for each in dry_run(replace(recipe("demo"), **{**SMALL, "shards": place})) if each.level == "stop"
    ]
    assert images.text.startswith("--channels 1 takes images of one channel")


def test_probes_find_the_classes(grey, whole, tmp_path):
    places = {"checkpoint": str(whole.folder), "train": grey.train, "val": grey.val, "threads": 1}
    assert knn(Knn(**places, k=(3,)))["knn_top1"] > 60  # of three classes
    frozen = open_encoder(whole.folder)
    settings = LinearSettings(**places, out=tmp_path / "linear", batch_size=8, epochs=1, lr=(1.0,))
    assert LinearProbe(settings, frozen, CPU).run()["val"] == 12
    settings = FinetuneSettings(**places, out=tmp_path / "tuned", batch_size=8, epochs=1)
    assert Finetuning(settings, open_encoder(whole.folder), CPU).run()["val"] == 12
    tuned = read_encoder(tmp_path / "tuned")
    assert (tuned.channels, tuned.mean, tuned.head is not None) == (1, (0.449,), True)


def test_features_of_the_set_and_of_its_files_agree(grey, whole, tmp_path, monkeypatch):
    encoder, transform = fastmoco.load_encoder(whole)
    assert transform.mean == (0.449,)
    found = fastmoco.embed(grey.train, whole)
    fastmoco.embed(grey.train, whole, out=tmp_path / "features")
    assert np.array_equal(fastmoco.load_embeddings(tmp_path / "features").features, found.features)
    files = [grey.images / "train" / name for name in found.names[:4]]
    of_files = fastmoco.embed(files, (encoder, transform))
    assert (transform.scaling is None) == (grey.bits == 8)
    assert np.abs(of_files.features - found.features[:4]).max() <= 1e-5 * np.abs(found.features).max()
    (matches,) = similar([str(files[0])], str(tmp_path / "features"), None, 2)
    assert matches[0].name == found.names[0] and matches[0].similarity > 0.99999
    monkeypatch.setenv("FASTMOCO_CACHE", str(tmp_path / "cache"))
    fastmoco.embed(files, (encoder, transform), out=tmp_path / "of files")  # packed with the bits that they have
    written = fastmoco.load_embeddings(tmp_path / "of files")
    places = [int(name.split()[1]) for name in written.names]  # item 2 (2.png)
    assert sorted(places) == [0, 1, 2, 3]
    assert np.abs(written.features - found.features[places]).max() <= 1e-5 * np.abs(found.features).max()


def test_a_report_shows_neighbours(whole):
    compute(whole.folder)
    with Image.open(whole.folder / "neighbours.png") as picture:
        assert len(picture.convert("L").getcolors(256) or range(256)) > 50  # not a blank sheet


def test_a_dry_run_counts_the_memory_of_one_channel(grey):
    config = replace(recipe("demo"), **{**SMALL, "shards": grey.train})
    found = {each.topic: each for each in dry_run(config)}
    assert {each.level for each in found.values()} <= {"ok", "note"}
    assert f"views {2 * 8 * 32 * 32 * 4 / 1e3:.1f} kB" in found["memory"].text


def test_a_set_of_grey_images_in_three_channels_is_said(grey, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    fastmoco.pretrain(grey.train, out=tmp_path / "run", **{**SMALL, "channels": 3, "steps": 1})
    assert "all images are grey; their value is repeated in three channels (--channels 1" in caplog.text


def test_images_in_colour_are_refused_with_the_encoder_and_the_set(grey, whole, colour, tmp_path):
    told = rf"takes images of one channel, and {colour} has images in colour, or was packed before sets recorded it"
    with pytest.raises(ConfigError, match=f"^--channels 1 {told}"):
        fastmoco.pretrain(colour, out=tmp_path / "run", **SMALL)
    with pytest.raises(ConfigError, match=f"^--channels 1 {told}"):
        settings = {**SMALL, "knn_every": 1, "knn_train": colour, "knn_val": colour}
        fastmoco.pretrain(grey.train, out=tmp_path / "run", **settings)
    encoder = rf"the encoder {whole.folder} {told}"
    places = {"checkpoint": str(whole.folder), "train": colour, "val": colour}
    with pytest.raises(ConfigError, match=encoder):
        knn(Knn(**places, k=(3,)))
    with pytest.raises(ConfigError, match=encoder):
        LinearProbe(LinearSettings(**places, out=tmp_path / "linear"), open_encoder(whole.folder), CPU)
    with pytest.raises(ConfigError, match=encoder):
        Finetuning(FinetuneSettings(**places, out=tmp_path / "tuned", batch_size=8), open_encoder(whole.folder), CPU)
    with pytest.raises(ConfigError, match=encoder):
        fastmoco.embed(colour, whole, out=tmp_path / "features")
    with pytest.raises(ConfigError, match=f"the encoder {told}"):
        fastmoco.embed(colour, fastmoco.load_encoder(whole))


@pytest.fixture
def deep(grey):
    if grey.bits == 8:
        pytest.skip("of 16 bits alone")
    return grey


@pytest.fixture(scope="module")
def others(grey, tmp_path_factory):
    """Two sets of 16 bits: other images, in a narrower range; and the training images with other percentiles."""
    if grey.bits == 8:
        pytest.skip("of 16 bits alone")
    folder = tmp_path_factory.mktemp("others")
    for kind in range(3):
        (folder / "images" / f"class {kind}").mkdir(parents=True)
        for seed in (200, 201):
            pixels = (2004 + 6 * stripes(kind, seed)).round().astype(np.uint16)
            Image.fromarray(pixels).save(folder / "images" / f"class {kind}" / f"{seed}.png")
    narrow = pack_set(folder / "images", folder / "narrow", keep_16_bit=True)
    again = pack_set(grey.images / "train", folder / "again", shard_size=16, keep_16_bit=True, percentiles=(5, 95))
    opened = [ShardSet(each) for each in (grey.train, narrow, again)]
    assert len({each.scaling for each in opened}) == 3 and opened[0].digest == opened[2].digest
    return folder / "images", narrow, again


@pytest.fixture(scope="module")
def silent(whole, tmp_path_factory):
    """The trained encoder in a file that records no scaling."""
    path = tmp_path_factory.mktemp("silent") / "encoder.safetensors"
    export(replace(read_encoder(whole.folder), scaling=None), "torchvision", path)
    return path


def features_of(images, shards, encoder):
    """A file of a set, its values, and its features in the set."""
    found = fastmoco.embed(shards, encoder)
    path = images / found.names[0]
    with Image.open(path) as image:
        return path, np.array(image), found.features[0]


def assert_close(features, wanted):
    assert np.abs(np.asarray(features).reshape(-1) - wanted).max() <= 1e-5 * np.abs(wanted).max()


def test_8_bits_would_lose_the_classes(deep):
    with Image.open(deep.images / "train" / "class 0" / "0.png") as image:
        values = np.array(image)
    assert values.dtype == np.uint16 and len(np.unique(values // 256)) == 1 and len(np.unique(values)) > 20


@pytest.mark.parametrize("which", ["train", "narrow"])
def test_the_documented_lines_make_an_exported_encoders_input(deep, whole, others, tmp_path, monkeypatch, which):
    images, shards = (deep.images / "train", deep.train) if which == "train" else others[:2]
    path, _, wanted = features_of(images, shards, whole)
    weights = read_encoder(whole.folder)
    with ShardSet(deep.train) as shard_set:
        assert weights.scaling == shard_set.scaling
    export(weights, "torchvision", tmp_path / "cells.safetensors")
    page = (Path(__file__).parents[2] / "docs" / "how-to" / "grey.md").read_text(encoding="utf-8")
    (block,) = (one for one in re.findall(r"```python\n(.*?)```", page, re.S) if "safe_open" in one)
    for shown, here in {
        "torchvision.models.resnet18()": "resnet10()", "Conv2d(1, 64": "Conv2d(1, 16", "[256]": "[40]",
        "microscopy/1.png": str(path),
    }.items():  # fmt: skip
        assert block.count(shown) == 1
        block = block.replace(shown, here)
    monkeypatch.chdir(tmp_path)
    names = {"resnet10": narrow_resnet10(1 / 4)}
    exec(block, names)
    assert_close(names["features"].detach(), wanted)
    encoder, transform = fastmoco.load_encoder(tmp_path / "cells.safetensors")
    assert_close(encoder(transform(names["image"])[None]).detach(), wanted)
    assert_close(fastmoco.embed([names["image"]], (encoder, transform)).features, wanted)


def test_the_lines_of_a_model_card_do_so_too(deep, tmp_path, monkeypatch):
    timm = pytest.importorskip("timm")
    run = fastmoco.pretrain(deep.train, out=tmp_path / "run", **{**SMALL, "steps": 1, "arch": "timm:test_vit"})
    weights = read_encoder(run.folder)
    export(weights, "hf-hub", tmp_path / "hub")
    about, card = (json.loads((tmp_path / "hub/config.json").read_text()), (tmp_path / "hub/README.md").read_text())
    scaling = weights.scaling
    assert scaling is not None and about["scaling"]["low"] == list(scaling.low)
    assert f"with low {list(scaling.low)} and high {list(scaling.high)}, up to which 0.1 % and 99.9 % of the" in card
    (block,) = re.findall(r"```python\n(.*?)```", card, re.S)
    _, values, _ = features_of(deep.images / "train", deep.train, run)
    encoder, transform = fastmoco.load_encoder(run)
    wanted = encoder(transform(values)[None]).detach().numpy().reshape(-1)
    names = {"image": values}
    monkeypatch.chdir(tmp_path)
    exec(block.replace("local-dir:FOLDER", f"local-dir:{tmp_path}/hub"), names)
    assert_close(names["output"].detach(), wanted)
    assert timm.create_model(f"local-dir:{tmp_path}/hub", pretrained=True).num_features == wanted.size


def test_written_features_and_queries_of_another_set_are_scaled_as_the_training_was(whole, others, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    images, narrow, _ = others
    fastmoco.embed(narrow, whole, out=tmp_path / "features")
    (line,) = [line for line in caplog.messages if "16-bit values" in line]
    assert re.fullmatch(rf"16-bit values are scaled from 1,\d+ to 2,\d+, not by the percentiles of {narrow}", line)
    found = fastmoco.load_embeddings(tmp_path / "features")
    files = [images / name for name in found.names]
    assert_close(fastmoco.embed(files, whole).features, found.features.reshape(-1))  # by the encoder's transform
    (matches,) = similar([str(files[0])], str(tmp_path / "features"), None, 2)
    assert matches[0].name == found.names[0] and matches[0].similarity > 0.99999


def test_a_folder_is_packed_with_the_bits_of_the_encoder(whole, others, tmp_path, monkeypatch):
    images, narrow, _ = others
    monkeypatch.setenv("FASTMOCO_CACHE", str(tmp_path / "cache"))
    mixed, features = shutil.copytree(images, tmp_path / "mixed"), tmp_path / "features"
    Image.new("L", (48, 48), 9).save(mixed / "class 0" / "8 bits.png")
    found, wanted = fastmoco.embed(mixed, whole), fastmoco.embed(narrow, whole)
    order = np.argsort(wanted.names)
    assert list(found.names) == [wanted.names[place] for place in order]  # without that of 8 bits
    assert_close(found.features, wanted.features[order].reshape(-1))
    embed(Embed(checkpoint=str(whole.folder), images=str(mixed), out=str(features)))
    written = fastmoco.load_embeddings(features)
    assert_close(written.features, wanted.features[[wanted.names.index(name) for name in written.names]].reshape(-1))
    show(str(features), (), Map(images=str(mixed), out=tmp_path / "map.html", method="pca", k=2))
    assert (tmp_path / "map.html").exists()
    for path in mixed.rglob("20?.png"):
        path.unlink()
    with pytest.raises(UserError, match="not 16 bits: a PNG of 8 bits"):
        fastmoco.embed(mixed, whole)


@pytest.mark.parametrize("recorded", [True, False])
def test_equal_values_of_both_sets_have_equal_features(deep, whole, silent, others, tmp_path, caplog, recorded):
    """The sets hold the same images; the training set's scaling is that of the encoder or another one."""
    caplog.set_level(logging.INFO)
    again, checkpoint_of = others[2], str(whole.folder if recorded else silent)
    train, val = (again, deep.train) if recorded else (deep.train, again)
    with ShardSet(deep.train) as shard_set:
        scaling = shard_set.scaling
    wanted = fastmoco.embed(deep.train, whole).features.reshape(-1)
    frozen = open_encoder(checkpoint_of)
    assert frozen.encoder.image_scaling == (scaling if recorded else None)
    probe = Probe(train, val, 32, 40, CPU)
    for bank in (*probe.banks(frozen.encoder), *probe.banks(frozen.encoder)):
        assert_close(bank.rows(np.arange(24)), wanted)
    assert [again.name in line for line in caplog.messages if "16-bit values" in line] == [True]  # once
    settings = FinetuneSettings(checkpoint_of, train, val, out=tmp_path / "tuned", batch_size=8, epochs=1, threads=1)
    made = Finetuning(settings, frozen, CPU)
    sets = made.sets
    for each, ids in ((sets.train, sets.train_ids), (sets.val, sets.val_ids)):
        assert_close(made.extractor.bank(each, ids).rows(np.arange(24)), wanted)
    spec = replace(ViewSpec.probe(32), **made.extractor.normalisation)
    with ShardSet(deep.train) as shard_set:
        crops = next(LabelledCrops(shard_set, spec, global_batch=8).epoch(0))
    assert torch.equal(next(made.crops().epoch(0)).images, crops.images)
    assert made.state()["scaling"] == made.identity()["scaling"][:1] == [plain(scaling)]


def test_other_percentiles_are_other_images_unless_the_encoder_records_its_own(deep, whole, silent, tmp_path):
    """The manifest alone differs, so that digests do not tell."""
    place = shutil.copytree(deep.train, tmp_path / "set")
    for encoder, name in ((whole, "recorded"), (silent, "features")):
        fastmoco.embed(place, encoder, out=tmp_path / name)
    knn_of = [Knn(str(path), place, deep.val, cache=tmp_path / "cache", k=(3,)) for path in (silent, whole.folder)]
    knn(knn_of[0])
    assert len(list((tmp_path / "cache").iterdir())) == 2
    shutil.copytree(whole.folder, tmp_path / "run")
    pack_set(deep.images / "train", place, shard_size=16, keep_16_bit=True, percentiles=(5, 95))
    with ShardSet(place) as after, ShardSet(deep.train) as before:
        assert after.digest == before.digest and after.scaling != before.scaling
    told = r"values of 16 bits were scaled from \d,\d+ to 2,\d+, now \d,\d+ to \d,\d+ \(--percentiles of packing\)"
    with pytest.raises(CheckpointError, match=told):
        fastmoco.pretrain(place, out=tmp_path / "run", **SMALL)
    with pytest.raises(EmbeddingError, match=r"holds other features: scaling was \d,\d+ to 2,\d+, now \d,\d+ to"):
        fastmoco.embed(place, silent, out=tmp_path / "features")
    fastmoco.embed(place, whole, out=tmp_path / "recorded")
    knn(knn_of[0])
    assert len(list((tmp_path / "cache").iterdir())) == 4  # both sets are scaled by the new ones
    knn(knn_of[1])
    assert len(list((tmp_path / "cache").iterdir())) == 4  # and by the encoder's, which are those of before


def test_images_of_8_bits_are_no_query(deep, whole, tmp_path):
    fastmoco.embed(deep.val, whole, out=tmp_path / "features")
    Image.new("L", (64, 48), 7).save(tmp_path / "8.png")
    with pytest.raises(PackError, match=r"item 0 \(.*8.png\) cannot be used: not 16 bits: .*; the encoder was trained"):
        similar([str(tmp_path / "8.png")], str(tmp_path / "features"), None, 2)


def test_a_map_shows_the_scaled_values(deep, monkeypatch):
    with ShardSet(deep.train) as shard_set:
        (sheet,), blank = sheets(shard_set, np.arange(4), 32)
        # the features may come from another machine, which has it
        monkeypatch.setattr("shards.images.deep.DECODER", "no_such_package")
        with pytest.raises(PackError, match="a picture of a 16-bit image needs imagecodecs: pip install"):
            sheets(shard_set, np.arange(4), 32)
    with Image.open(io.BytesIO(sheet)) as picture:
        assert blank == 0 and np.ptp(np.asarray(picture.convert("L"))) > 200


def test_a_dry_run_says_what_does_not_read_16_bits(deep):
    config = replace(recipe("demo"), **{**SMALL, "shards": deep.train, "pipeline": "dali"})
    stops = [each.text for each in dry_run(config) if each.level == "stop"]
    assert any("backend 'dali' does not read images of 16 bits: use --pipeline torch" in text for text in stops)


def test_sets_that_are_scaled_differently_have_no_common_scaling(deep, tmp_path, monkeypatch):
    other = pack_set(deep.images / "val", tmp_path / "other", keep_16_bit=True, percentiles=(5, 95))
    run = fastmoco.pretrain([deep.train, other], out=tmp_path / "run", **{**SMALL, "steps": 1})
    recorded = checkpoint.load(run.checkpoint)["data"]["scaling"]
    assert len(recorded) == 2 and recorded[0] != recorded[1]
    weights = read_encoder(run.folder)
    assert (weights.scaling, weights.bits) == (None, 16)
    # a folder is packed with 16 bits and scaled by its own percentiles, as the set of its images is
    monkeypatch.setenv("FASTMOCO_CACHE", str(tmp_path / "cache"))
    found = fastmoco.embed(deep.images / "val", run.folder)
    own = pack_set(deep.images / "val", tmp_path / "own", keep_16_bit=True)
    wanted = fastmoco.embed(own, run.folder)
    order = np.argsort(wanted.names)
    assert_close(found.features, wanted.features[order].reshape(-1))
    # of a single image none is known
    unknown = "the encoder was trained on several sets of 16 bits, each scaled by its own values"
    for form in ("timm", "torchvision"):
        file = tmp_path / f"{form}.safetensors"
        export(weights, form, file)
        _, transform = fastmoco.load_encoder(file)
        with pytest.raises(PipelineError, match=unknown):
            transform(cells())
    with pytest.raises(PackError, match=rf"item 0 cannot be used: {unknown}"):
        fastmoco.embed([cells()], run.folder)
    with ShardSet(own) as shard_set:
        scaled = replace(transform, scaling=shard_set.scaling)
    assert scaled(cells()).shape == (1, 32, 32)
