"""Encoders of images with one channel: settings, weights from and for other programs, and refusals."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import safetensors.torch
import torch
import torchvision

from fastmoco.channels import averaged
from fastmoco.checkpoints import saving
from fastmoco.config import Config, ConfigError
from fastmoco.detection.weights import load_encoder
from fastmoco.export import Args, export, run
from fastmoco.layouts.encoders import Head, encoder_of, read_encoder
from fastmoco.layouts.files import LayoutError
from fastmoco.model.encoders import backbone
from fastmoco.model.moco import MoCo
from fastmoco.ranks.world import World
from fastmoco.recipes import moco_v2
from fastmoco.train import parse
from fastmoco.trainer.start import begin_from
from pipelines.augmentation import GREY_MEAN, GREY_STD, IMAGENET_MEAN, IMAGENET_STD
from tests.support.runs import resnet10_of

CPU = World(0, 1, torch.device("cpu"))
HALF, QUARTER = 0.5, 0.25
SMALL = {"image_size": 32, "batch_size": 8, "queue_size": 24, "feature_dim": 16}
GREY = {**SMALL, "channels": 1, "mean": (HALF,), "std": (QUARTER,)}
COLOUR = {**SMALL, "mean": (HALF,) * 3, "std": (QUARTER,) * 3}


@pytest.fixture(autouse=True, scope="module")
def narrow():
    with resnet10_of(1 / 8):
        yield


def trained(arch: str = "resnet10", **settings) -> dict:
    """What a checkpoint of training holds, with running statistics that are not those of a new encoder."""
    config = replace(moco_v2(), arch=arch, **settings)
    torch.manual_seed(3)
    model = MoCo(config)
    model.encoder(torch.randn(8, config.channels, 32, 32))
    model.copy_to_key_encoder()
    progress = {"epoch": 1, "step": 8, "samples": 64}
    state = {"config": config.to_dict(), "data": {"digest": "a" * 64, "samples": 64}, "progress": progress}
    return state | model.state()


def grey_images(count: int = 3, side: int = 32) -> torch.Tensor:
    return torch.randn(count, 1, side, side, generator=torch.Generator().manual_seed(1))


def test_the_defaults_of_one_channel_are_the_averages_of_imagenets():
    config = parse(["--channels", "1"])
    assert (config.channels, config.mean, config.std) == (1, (0.449,), (0.226,)) == (1, GREY_MEAN, GREY_STD)
    assert (averaged(IMAGENET_MEAN), averaged(IMAGENET_STD)) == (GREY_MEAN, GREY_STD)
    assert Config.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert parse(["--channels", "1", "--mean", "0.2", "--std", "0.1"]).mean == (0.2,)
    assert config.view_pair.query.mean == GREY_MEAN
    assert Config().channels == 3  # and of runs from before the setting
    pytest.importorskip("timm")
    assert parse(["--channels", "1", "--arch", "timm:test_vit"]).std == (HALF,)
    assert parse(["--channels", "1", "--arch", "timm:test_vit", "--std", "0.1"]).std == (0.1,)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--channels", "2"], "--channels is 2; it must be 3, or 1 for grey images"),
        (["--channels", "1", "--mean", "0.4", "0.5", "0.6"], "--mean 0.4 0.5 0.6 has 3 values; give one, for --chan"),
        (["--std", "0.2"], "--std 0.2 has 1 value; give one each for red, green and blue"),
        (["--channels", "1", "--stream", "a.tar"], "--channels 1 is for sets that record that all images are grey"),
    ],
)
def test_settings_that_cannot_work_are_refused(flags, message):
    with pytest.raises(ConfigError, match=message):
        parse(flags)


@pytest.mark.parametrize("arch", ["resnet10", "resnext50_32x8d", "resnet50_w2", "timm:test_convnext", "timm:test_vit"])
def test_an_encoder_takes_one_channel_and_is_otherwise_the_same(arch):
    if arch.startswith("timm:"):
        pytest.importorskip("timm")
    with torch.device("meta"):
        grey, colour = backbone(arch, image_size=32, channels=1), backbone(arch, image_size=32)
        assert grey.eval()(torch.empty(2, 1, 32, 32)).shape == (2, colour.out_dim)
    assert (grey.channels, len(grey.image_mean), len(grey.image_std), colour.channels) == (1, 1, 1, 3)
    pairs = zip(grey.state_dict().items(), colour.state_dict().items(), strict=True)
    differing = [(a.shape[1], b.shape[1]) for (one, a), (other, b) in pairs if one != other or a.shape != b.shape]
    assert differing == [(1, 3)]


@pytest.mark.filterwarnings("ignore:CSATv2 is designed for")
@pytest.mark.parametrize("arch", ["timm:tresnet_m", "timm:naflexvit_base_patch16_map", "timm:csatv2"])
def test_encoders_whose_weights_would_not_show_one_channel_are_refused(arch):
    """After a training no command could have read them: pixels are rearranged, a linear layer comes first, or a DCT."""
    pytest.importorskip("timm")
    said = rf"--channels 1: timm's {arch.removeprefix('timm:')} takes images of three channels alone"
    with torch.device("meta"), pytest.raises(ConfigError, match=said):
        backbone(arch, channels=1)


def test_the_first_convolution_begins_as_torchvisions():
    torch.manual_seed(0)
    weight = backbone("resnet18", channels=1).conv1.weight
    # kaiming's fan-out: the deviation does not depend on the channels
    assert weight.std().item() == pytest.approx((2 / (64 * 49)) ** 0.5, rel=0.05)


@pytest.mark.long
def test_the_patches_of_moco_v3_stay_random():
    pytest.importorskip("timm")
    net = backbone("moco_v3_vit_small", image_size=32, channels=1)
    assert net.patch_embed.proj.weight.shape == (384, 1, 16, 16) and not net.patch_embed.proj.weight.requires_grad
    bound = (6 / (16 * 16 + 384)) ** 0.5  # Glorot and Bengio's, of a patch of one channel
    assert net.patch_embed.proj.weight.abs().max().item() == pytest.approx(bound, rel=0.01)


@pytest.mark.parametrize(
    ("arch", "from_run"), [("resnet10", True), ("timm:test_vit", False), ("timm:test_convnext", True)]
)
def test_init_makes_an_encoder_of_one_channel_with_the_same_features(tmp_path, arch, from_run):
    if arch.startswith("timm:"):
        pytest.importorskip("timm")
    state = trained(arch, **COLOUR)
    path = saving.save(tmp_path, state, 1) if from_run else tmp_path / "w.safetensors"
    if not from_run:
        export(encoder_of(state), "timm", path)
    config = replace(moco_v2(), arch=arch, **GREY)
    model = MoCo(config).eval()
    begin_from(model, path, config, CPU)
    # in float64, which leaves the rounding of the sums alone
    grey, model, three = grey_images().double(), model.double(), read_encoder(path).encoder().double()
    wanted = three(grey.expand(-1, 3, -1, -1))
    assert (model.encoder.backbone(grey) - wanted).abs().max() <= 1e-6
    assert (model.parts()["key_encoder"].backbone(grey) - wanted).abs().max() <= 1e-6
    heads = model.encoder.head.state_dict().items()
    kept = all(torch.equal(value.float(), state["query_encoder"][f"head.{name}"]) for name, value in heads)
    assert kept == from_run


def test_init_of_three_channels_refuses_an_encoder_of_one(tmp_path):
    path = saving.save(tmp_path, trained(**GREY), 1)
    config = replace(moco_v2(), arch="resnet10", **COLOUR)
    with pytest.raises(LayoutError, match=r"--init: .*step-00000008.pt holds a resnet10 of one channel.*--channels 1"):
        begin_from(MoCo(config), path, config, CPU)


def test_files_are_recognised_by_the_first_convolution(tmp_path):
    torch.save(torchvision.models.resnet18().state_dict(), tmp_path / "colour.pth")
    assert read_encoder(tmp_path / "colour.pth").channels == 3
    grey = torchvision.models.resnet18()
    grey.conv1 = torch.nn.Conv2d(1, 64, 7, stride=2, padding=3, bias=False)
    torch.save(grey.state_dict(), tmp_path / "grey.pth")
    held = read_encoder(tmp_path / "grey.pth")
    assert (held.arch, held.channels, held.mean) == ("resnet18", 1, None) and "resnet18 of one channel" in str(held)
    assert held.encoder().image_mean == GREY_MEAN
    grey.fc = torch.nn.Identity()
    torch.testing.assert_close(held.encoder()(grey_images()), grey.eval()(grey_images()), rtol=1e-5, atol=1e-5)
    grey.conv1 = torch.nn.Conv2d(4, 64, 7, bias=False)
    torch.save(grey.state_dict(), tmp_path / "four.pth")
    with pytest.raises(LayoutError, match=r"four.pth holds a ResNet of images with 4 channels; those of --arch have 3"):
        read_encoder(tmp_path / "four.pth")


def test_a_run_of_one_channel_is_not_continued_with_three(tmp_path):
    from fastmoco.checkpoints.checkpoint import CheckpointError
    from fastmoco.trainer.resume import check_compatible

    state = trained(**GREY)
    check_compatible(tmp_path, state, Config.from_dict(state["config"]), "a" * 64)
    with pytest.raises(CheckpointError, match="--channels was 1, now 3"):
        check_compatible(tmp_path, state, replace(moco_v2(), arch="resnet10", **COLOUR), "a" * 64)


def test_torchvision_loads_an_export_strictly_as_the_message_says(tmp_path):
    weights = encoder_of(trained("resnet18", **GREY))
    export(weights, "torchvision", tmp_path / "a.safetensors")
    again = read_encoder(tmp_path / "a.safetensors")
    assert (again.arch, again.channels, again.mean, again.std) == ("resnet18", 1, (HALF,), (QUARTER,))
    said = run(Args(out=tmp_path / "b.pth", checkpoint=tmp_path / "a.safetensors", format="torchvision"))
    told, _, replaced = said.partition(": ")[2].partition(" loads it strictly")[0].partition(" with ")
    model = torchvision.models.resnet18()
    assert told == "torchvision's resnet18"
    for each in replaced.split(" and "):
        name, _, module = each.partition(" = ")
        setattr(model, name, eval(module, {"torch": torch}))
    model.load_state_dict(torch.load(tmp_path / "b.pth"))
    torch.testing.assert_close(model.eval()(grey_images()), weights.encoder()(grey_images()), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "arch", [pytest.param("resnet18", marks=pytest.mark.long), "timm:test_vit", "timm:test_resnet"]
)
def test_timm_loads_exports_strictly_with_one_channel(tmp_path, arch):
    timm = pytest.importorskip("timm")
    weights = encoder_of(trained(arch, **GREY))
    images = grey_images()
    wanted = weights.encoder()(images)
    export(weights, "timm", tmp_path / "a.safetensors")
    said = run(Args(out=tmp_path / "a.pth", checkpoint=tmp_path / "a.safetensors", format="timm"))
    made = said.partition(": ")[2].partition(" loads it strictly")[0]
    assert "in_chans=1" in made
    model = eval(made, {"timm": timm}).eval()
    model.load_state_dict(torch.load(tmp_path / "a.pth"))
    torch.testing.assert_close(model(images), wanted, rtol=1e-5, atol=1e-5)
    export(weights, "hf-hub", tmp_path / "hub")
    model = timm.create_model(f"local-dir:{tmp_path}/hub", pretrained=True).eval()
    torch.testing.assert_close(model(images), wanted, rtol=1e-5, atol=1e-5)
    data = timm.data.resolve_model_data_config(model)
    assert [tuple(data[name]) for name in ("mean", "std", "input_size")] == [(HALF,), (QUARTER,), (1, 32, 32)]
    card = (tmp_path / "hub" / "README.md").read_text()
    assert "one channel (grey)" in card and 'transform(image.convert("L"))' in card


def test_a_classifier_of_one_channel_is_exported(tmp_path):
    timm = pytest.importorskip("timm")
    weights = encoder_of(trained("timm:test_vit", **GREY))
    head = Head({"fc.weight": torch.randn(3, 64), "fc.bias": torch.randn(3)}, ("a", "b", "c"))
    export(replace(weights, head=head, checkpoint=None), "timm", tmp_path / "a.safetensors")
    model = timm.create_model("test_vit", num_classes=3, in_chans=1, img_size=32).eval()
    model.load_state_dict(safetensors.torch.load_file(tmp_path / "a.safetensors"))
    wanted = weights.encoder()(grey_images()) @ head.tensors["fc.weight"].T + head.tensors["fc.bias"]
    torch.testing.assert_close(model(grey_images()), wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("layout", ["detectron2", "moco"])
def test_layouts_of_three_channels_are_refused(tmp_path, layout):
    out = tmp_path / ("a.pkl" if layout == "detectron2" else "a.pth")
    with pytest.raises(LayoutError, match=rf"--format {layout} is for encoders of three channels, and this one has 1"):
        export(encoder_of(trained(**GREY)), layout, out)
    assert not out.exists()


def test_detectors_refuse_an_encoder_of_one_channel():
    weights = encoder_of(trained(**GREY))
    with pytest.raises(LayoutError, match="RUN holds an encoder of one channel, and detectors take photographs in col"):
        load_encoder(torch.nn.Module(), "c4", "RUN", weights)


@pytest.mark.parametrize("said", [{"channels": 1, "mean": [0.5] * 3}, {"channels": 2}, {"mean": [0.5]}])
def test_metadata_that_do_not_fit_are_refused(tmp_path, said):
    tensors = {name: value.contiguous() for name, value in backbone("resnet10").state_dict().items()}
    about = {"format": "pt", "arch": "resnet10", "fastmoco": json.dumps(said)}
    safetensors.torch.save_file(tensors, tmp_path / "a.safetensors", about)
    with pytest.raises(LayoutError, match=r"a.safetensors has damaged metadata: fastmoco is .*; export it again"):
        read_encoder(tmp_path / "a.safetensors")
