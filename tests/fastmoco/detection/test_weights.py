"""Weights of all layouts enter both detectors with every name accounted for."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
import torchvision
from torch import nn

from fastmoco.checkpoints import checkpoint
from fastmoco.checkpoints.checkpoint import CheckpointError
from fastmoco.config import ConfigError
from fastmoco.detection.loop import Transfer
from fastmoco.detection.models import build_detector, encoder_name
from fastmoco.detection.settings import DetectSettings
from fastmoco.detection.step import DetectStep, _optimiser
from fastmoco.detection.weights import load_encoder
from fastmoco.export import export
from fastmoco.layouts.encoders import encoder_of, read_encoder
from fastmoco.layouts.files import LayoutError
from fastmoco.model.batchnorm import SyncBatchNorm2d
from fastmoco.probes.encoders import digest_of
from fastmoco.ranks.world import World
from fastmoco.recipes import recipe
from fastmoco.trainer.loop import train

pytestmark = pytest.mark.usefixtures("one_thread")
DETECTORS = pytest.mark.parametrize("detector", ["c4", "fpn"])
OWN = {
    "c4": ("rpn.", "roi_heads.box_head.norm.", "roi_heads.box_predictor.", "roi_heads.mask_predictor."),
    "fpn": ("rpn.", "backbone.fpn.", "roi_heads."),
}


@pytest.fixture(scope="module")
def pretrained(shard_sets, tmp_path_factory, narrow, one_thread):
    """Checkpoint of two steps of MoCo."""
    out = tmp_path_factory.mktemp("moco")
    few = {"steps": 2, "epochs": None, "batch_size": 8, "queue_size": 32, "threads": 1, "pipeline": "torch"}
    config = replace(recipe("demo"), shards=str(shard_sets / "train"), out=out, **few)
    return checkpoint.found(train(config) / "checkpoints")[0]


def small(detector, arch="resnet10"):
    return DetectSettings(detector=detector, mask=True, arch=arch, fpn_channels=16)


def loaded(detector, path, arch="resnet10"):
    model = build_detector(small(detector, arch), 3)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    said = load_encoder(model, detector, str(path), read_encoder(path, arch))
    return model, before, said


@DETECTORS
@pytest.mark.parametrize("layout", ["run", "original", "torchvision", "safetensors"])
def test_moco_weights_enter_with_no_name_missing_or_unexpected_but_the_heads(pretrained, tmp_path, detector, layout):
    path = pretrained
    if layout != "run":
        path = tmp_path / ("encoder.safetensors" if layout == "safetensors" else "encoder.pth")
        export(encoder_of(checkpoint.load(pretrained)), "moco" if layout == "original" else "torchvision", path)
    model, before, said = loaded(detector, path)
    encoder = read_encoder(pretrained).encoder()
    wanted = encoder.state_dict()
    assert set(said.loaded) == set(wanted)
    assert all(name.startswith(OWN[detector]) for name in said.missing)
    heads = {"run": "head.", "original": "fc."}
    assert bool(said.unexpected) == (layout in heads)
    assert all(name.startswith(heads[layout]) for name in said.unexpected)
    assert len(said.loaded) + len(said.missing) == len(before)
    for name, value in model.state_dict().items():
        inside = encoder_name(detector, name)
        expected = before[name] if inside is None else wanted[inside]
        assert torch.equal(value, expected), name
    assert "missing" in str(said) and str(path) in str(said)


@DETECTORS
def test_the_detector_computes_what_the_encoder_computes(pretrained, detector):
    model, *_ = loaded(detector, pretrained)
    encoder = read_encoder(pretrained).encoder()
    images = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        model.eval()
        if detector == "c4":
            last = model.roi_heads.box_head.layer4(model.backbone(images)["0"])
        else:
            last = model.backbone.body(images)["3"]
        torch.testing.assert_close(last.mean((2, 3)), encoder(images), rtol=1e-4, atol=1e-5)


def test_the_detector_normalises_as_the_encoders_training_did_also_when_resumed(pretrained):
    weights = replace(read_encoder(pretrained), mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
    first, again = (DetectStep(small("c4"), 3, World(0, 1, torch.device("cpu"))) for _ in range(2))
    load_encoder(first.detector, "c4", "file", weights)
    again.load_state(first.state())
    for step in (first, again):
        normalised = step.detector.transform.normalize(torch.ones(3, 2, 2))[:, 0, 0]
        torch.testing.assert_close(normalised, torch.tensor([0.9 / 0.5, 0.8 / 0.6, 0.7 / 0.7]))
    again.load_state({name: value for name, value in first.state().items() if name != "normalisation"})


@DETECTORS
def test_a_supervised_models_weights_enter_also_without_counters(tmp_path, detector):
    state = torchvision.models.resnet18(num_classes=7).state_dict()
    old = {name: value for name, value in state.items() if not name.endswith("num_batches_tracked")}
    torch.save(old, tmp_path / "resnet18.pth")
    model, _, said = loaded(detector, tmp_path / "resnet18.pth", "resnet18")
    assert said.unexpected == ("fc.weight", "fc.bias") and set(said.loaded) == set(state) - set(said.unexpected)
    body = model.backbone if detector == "c4" else model.backbone.body
    assert torch.equal(body.layer3[1].conv2.weight, state["layer3.1.conv2.weight"])


def test_bottlenecks_have_their_places_as_well():
    with torch.device("meta"):
        for detector, places in (("c4", 1024), ("fpn", 256)):
            model = build_detector(DetectSettings(detector=detector, mask=True), 20)
            names = {encoder_name(detector, name) for name in model.state_dict()} - {None}
            assert names == {n for n in torchvision.models.resnet50().state_dict() if not n.startswith("fc.")}
            assert model.rpn.head.conv[0][0].in_channels == places


@DETECTORS
def test_a_resnet_of_timm_computes_what_it_computes_in_timm(tmp_path, detector):
    timm = pytest.importorskip("timm")
    theirs = timm.create_model("test_resnet", num_classes=0).eval()
    torch.save(theirs.state_dict(), tmp_path / "theirs.pth")
    model, before, said = loaded(detector, tmp_path / "theirs.pth", "timm:test_resnet")
    assert set(said.loaded) == set(theirs.state_dict()) and not said.unexpected
    assert len(said.loaded) + len(said.missing) == len(before)
    assert model.transform.image_mean == list(theirs.pretrained_cfg["mean"])
    images = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        maps = model.eval().backbone(images)
        stages = theirs.forward_intermediates(images, indices=(1, 2, 3, 4), intermediates_only=True)
        assert [64 // stage.shape[2] for stage in stages] == [4, 8, 16, 32]  # the strides of the regions' pooling
        if detector == "c4":
            torch.testing.assert_close(maps["0"], stages[2])
            torch.testing.assert_close(model.roi_heads.box_head.layer4(maps["0"]), stages[3])
        else:
            for place, stage in enumerate(stages):
                torch.testing.assert_close(model.backbone.body(images)[str(place)], stage)
    model.train()
    target = {"boxes": torch.tensor([[4.0, 4.0, 40.0, 40.0]]), "labels": torch.tensor([1])}
    target["masks"] = torch.ones(1, 64, 64, dtype=torch.uint8)
    losses = model([torch.rand(3, 64, 64)], [target])
    sum(losses.values()).backward()
    assert all(parameter.grad is not None for name, parameter in model.named_parameters() if "layer" in name)


@pytest.mark.parametrize(
    ("arch", "message"),
    [
        (
            "timm:test_convnext",
            "--arch timm:test_convnext is no backbone of the detectors.* or a ResNet of timm, such as",
        ),
        ("timm:test_vit", "--arch timm:test_vit is no backbone"),
        ("timm:regnetx_002", "--arch timm:regnetx_002 is no backbone"),
        ("moco_v3_vit_small", "--arch moco_v3_vit_small is no backbone"),
        ("resnet9", "unknown --arch 'resnet9'"),
    ],
)
def test_what_is_no_resnet_is_refused(arch, message):
    pytest.importorskip("timm")
    with torch.device("meta"), pytest.raises(ConfigError, match=message):
        build_detector(DetectSettings(arch=arch), 3)


def test_bottlenecks_and_other_norms_of_timm_have_their_places():
    timm = pytest.importorskip("timm")
    with torch.device("meta"):
        for name in ("seresnext26d_32x4d", "resnet50_gn"):
            model = build_detector(DetectSettings(detector="fpn", arch=f"timm:{name}"), 20)
            names = {encoder_name("fpn", name) for name in model.state_dict()} - {None}
            assert names == set(timm.create_model(name, num_classes=0).state_dict())
            assert [conv[0].in_channels for conv in model.backbone.fpn.inner_blocks] == [256, 512, 1024, 2048]


@pytest.mark.parametrize(
    ("settings", "norms"),
    [
        ({"detector": "c4"}, 53 + 1),  # the encoder's and the extra one
        ({"detector": "fpn"}, 53 + 8 + 4),  # and the pyramid's, the mask head's
        ({"detector": "fpn", "box_head": "4conv1fc", "mask": False}, 53 + 8 + 4),  # the box head's
    ],
)
def test_every_batchnorm_is_trained_and_synchronised(settings, norms):
    with torch.device("meta"):
        model = build_detector(DetectSettings(**{"mask": True} | settings), 20)
    found = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    assert len(found) == norms and all(isinstance(module, SyncBatchNorm2d) for module in found)
    assert all(parameter.requires_grad for parameter in model.parameters())
    groups = _optimiser(model, DetectSettings()).param_groups
    decayed = {id(parameter) for group in groups if group["weight_decay"] for parameter in group["params"]}
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))
    assert not decayed & {id(parameter) for module in found for parameter in module.parameters()}
    assert len(decayed) == len(list(model.parameters())) - 2 * norms


def test_another_architecture_is_refused_by_its_name(pretrained):
    with pytest.raises(LayoutError, match="holds a resnet10, not a resnet50; give --arch resnet10"):
        read_encoder(pretrained, "resnet50")


def without_wrapper(state):
    """The original's checkpoint as saved without DistributedDataParallel."""
    return state | {"state_dict": {name.removeprefix("module."): value for name, value in state["state_dict"].items()}}


@pytest.fixture(scope="module")
def files(pretrained, tmp_path_factory):
    """The same encoder in every kind of file that is read."""
    folder = tmp_path_factory.mktemp("files")
    names = {"original": "original.pth.tar", "torchvision": "encoder.pth", "safetensors": "encoder.safetensors"}
    found = {"run": pretrained} | {kind: folder / name for kind, name in names.items()}
    weights = read_encoder(pretrained)
    for kind, path in list(found.items())[1:]:
        export(weights, "moco" if kind == "original" else "torchvision", path)
    original = torch.load(found["original"], weights_only=True)
    supervised = weights.tensors | {"fc.weight": torch.zeros(7, 128), "fc.bias": torch.zeros(7)}
    more = {
        "original, unwrapped": without_wrapper(original),
        "original, tensors alone": original["state_dict"],
        "with a classifier": supervised,
        "without counters": {name: v for name, v in weights.tensors.items() if "num_batches" not in name},
    }
    for kind, content in more.items():
        found[kind] = folder / f"{kind}.pth"
        torch.save(content, found[kind], _use_new_zipfile_serialization=kind != "without counters")
    return found


KINDS = (
    *("run", "original", "original, unwrapped", "original, tensors alone"),
    *("torchvision", "safetensors", "with a classifier", "without counters"),
)


def test_a_transfer_is_of_the_encoder_and_not_of_its_files_name(pretrained, made, tmp_path):
    path = tmp_path / "encoder.pth"
    export(encoder_of(checkpoint.load(pretrained)), "torchvision", path)
    settings = made.settings("voc-c4", tmp_path / "run", init=str(path), arch="resnet10", epochs=None, iterations=1)
    result = Transfer(settings, made.here).run()
    assert Transfer(settings, made.here).run() == result  # finished
    state = torch.load(path)
    torch.save(state | {"bn1.weight": state["bn1.weight"] + 1}, path)
    with pytest.raises(CheckpointError, match=r"encoder was [0-9a-f]{12}, now [0-9a-f]{12}. Choose another --out"):
        Transfer(settings, made.here).run()


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        # all commands read by the same function: each reads two kinds in `make test`, and one of them all
        pytest.param(name, kind, marks=[] if name == "knn" or kind in KINDS[:2] else pytest.mark.long)
        for name in ("train", "knn", "linear", "detect", "export")
        for kind in KINDS
    ],
)
def test_every_command_reads_every_kind_of_file(files, pretrained, made, shard_sets, tmp_path, in_process, kind, name):
    wanted = read_encoder(pretrained)
    digest, path = digest_of(wanted.encoder()), files[kind]
    sets = ("--train", shard_sets / "train", "--val", shard_sets / "val", "--image-size", 32, "--threads", 1)
    out, result = tmp_path / "run", tmp_path / "result.json"
    arguments = {
        "train": (
            *("--init", path, "--shards", shard_sets / "train", "--out", out, "--image-size", 32, "--batch-size", 8),
            *("--queue-size", 32, "--steps", 1, "--lr", 1e-30, "--threads", 1, "--pipeline", "torch"),
            *("--resume", "none"),
        ),
        "knn": ("--checkpoint", path, *sets, "--json", result),
        "linear": (
            *("--checkpoint", path, *sets, "--json", result),
            *("--out", out, "--fast", "--epochs", 1, "--batch-size", 32),
        ),
        "detect": (
            *("--init", path, "--out", out, "--iterations", 0, "--threads", 1, "--test-size", 80, "--max-size", 128),
            *("--train", f"{made.voc}:trainval", "--val", f"{made.voc}:test", "--classes", *made.classes),
        ),
        "export": ("--checkpoint", path, "--format", "timm", "--out", tmp_path / "encoder.pth"),
    }
    said = in_process("-m", f"fastmoco.{name}", "--arch", "resnet10", *arguments[name]).stderr
    if name == "train":
        state = checkpoint.load(checkpoint.found(out / "checkpoints")[0])
        for part in ("query_encoder", "key_encoder"):
            for name in dict(wanted.encoder().named_parameters()):
                value = wanted.tensors[name]
                # a run's key encoder is taken, too, and has moved once towards the query encoder
                if part == "key_encoder" and kind == "run":
                    value = wanted.checkpoint[part][f"backbone.{name}"].lerp(value, 1 - state["config"]["momentum_key"])
                assert torch.equal(state[part][f"backbone.{name}"], value), (part, name)
    elif name == "knn":
        assert (json.loads(result.read_text())["encoder"] == digest) == (kind != "without counters")
    elif name == "linear":
        assert (json.loads(result.read_text())["probe"]["encoder"] == digest) == (kind != "without counters")
    elif name == "detect":
        assert f"loaded {len(wanted.tensors)} tensors of the encoder" in said
    else:
        again = read_encoder(tmp_path / "encoder.pth", "resnet10")
        assert digest_of(again.encoder()) == digest or kind == "without counters"
