"""Weights in other programs' layouts, and conversion from and to the original MoCo's checkpoints."""

from __future__ import annotations

import json
import pickle
import re
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import safetensors.torch
import torch
import torchvision
from torch import nn
from torchvision.models.resnet import BasicBlock, ResNet

import fastmoco.model.encoders
from fastmoco.architectures import ARCHITECTURES
from fastmoco.checkpoints import checkpoint, saving
from fastmoco.config import Config
from fastmoco.export import Args, export, run
from fastmoco.layouts.detectron2 import detectron2_name
from fastmoco.layouts.encoders import EncoderWeights, Head, encoder_of, read_encoder
from fastmoco.layouts.files import LayoutError
from fastmoco.layouts.original import from_original, to_original
from fastmoco.layouts.readers import READERS
from fastmoco.model.encoders import Encoder
from fastmoco.probes.encoders import open_encoder
from fastmoco.recipes import moco_v1, moco_v2
from fastmoco.trainer.resume import check_compatible
from fastmoco.trainer.step import TrainStep
from pipelines import TwoViews
from tests.support.runs import PickledCode


def trained(config, steps=2):
    """A run's state, as it is saved, after a few steps on noise."""
    step = TrainStep(config, torch.device("cpu"), 10)
    generator = torch.Generator().manual_seed(1)
    for number in range(steps):
        views = [torch.randn(8, 3, 32, 32, generator=generator) for _ in range(2)]
        step(TwoViews(*views, torch.arange(8)), number)
    progress = {"epoch": 3, "step": 24, "samples": 192, "window": {}}
    return {
        "config": config.to_dict(),
        "data": {"digest": "a" * 64, "samples": 64},
        "progress": progress,
    } | step.state()


def small(config, arch="resnet18"):
    return replace(config, arch=arch, image_size=32, batch_size=8, queue_size=24, feature_dim=16)


def assert_equal(a, b):
    """Equal bit for bit, through nested containers without strings."""
    torch.testing.assert_close(a, b, rtol=0, atol=0)


@pytest.fixture(scope="module")
def state():
    return trained(small(moco_v2()))


@pytest.fixture(scope="module")
def saved(state, tmp_path_factory):
    """A checkpoint, images, and their features by this program."""
    path = saving.save(tmp_path_factory.mktemp("run"), state, 1)
    images = torch.randn(5, 3, 64, 64, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        features = read_encoder(path).encoder()(images)
    assert features.std() > 0.1
    return path, images, features


def assert_same_features(model, images, features):
    with torch.no_grad():
        assert (model.eval()(images) - features).abs().max() <= 1e-5


@pytest.mark.parametrize("name", ["encoder.pth", "encoder.safetensors"])
def test_torchvision_loads_it_strictly_and_gives_the_same_features(state, saved, tmp_path, name):
    path, images, features = saved
    export(encoder_of(state), "torchvision", tmp_path / name)
    read = safetensors.torch.load_file if name.endswith("s") else torch.load
    model = torchvision.models.resnet18()
    model.fc = nn.Identity()
    model.load_state_dict(read(tmp_path / name))
    assert_same_features(model, images, features)
    # and back in, as an encoder to be probed
    again = open_encoder(str(tmp_path / name), "resnet18", seed=0)
    assert again.digest == open_encoder(str(path), None, seed=0).digest


def test_torchvision_and_timm_load_a_classifier_strictly_by_name(tmp_path):
    timm = pytest.importorskip("timm")
    net, fc = fastmoco.model.encoders.backbone("resnet18").eval(), nn.Linear(512, 3)
    head = Head({"fc.weight": fc.weight.detach(), "fc.bias": fc.bias.detach()}, ("ape", "caf\u00e9", "dog"))
    weights = EncoderWeights("a run", "resnet18", net.state_dict(), head=head)
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    models = {"torchvision": torchvision.models.resnet18, "timm": partial(timm.create_model, "resnet18")}
    for layout, make in models.items():
        export(weights, layout, tmp_path / f"{layout}.safetensors")
        model = make(num_classes=3).eval()
        model.load_state_dict(safetensors.torch.load_file(tmp_path / f"{layout}.safetensors"))
        with torch.no_grad():
            assert (model(images) - fc(net(images))).abs().max() <= 1e-5
        assert json.loads((tmp_path / f"{layout}.classes.json").read_text()) == ["ape", "caf\u00e9", "dog"]
        assert "resnet18" in READERS[layout]("resnet18", 3) and "num_classes=3" in READERS[layout]("resnet18", 3)
    export(weights, "detectron2", tmp_path / "encoder.pkl")
    assert not (tmp_path / "encoder.classes.json").exists()


@pytest.mark.parametrize("name", ["encoder.pth", "encoder.safetensors"])
def test_timm_loads_it_strictly_and_gives_the_same_features(state, saved, tmp_path, name):
    timm = pytest.importorskip("timm")
    _, images, features = saved
    export(encoder_of(state), "timm", tmp_path / name)
    model = timm.create_model("resnet18", num_classes=0)
    read = safetensors.torch.load_file if name.endswith("s") else torch.load
    model.load_state_dict(read(tmp_path / name))
    assert_same_features(model, images, features)


@pytest.mark.parametrize(
    ("mean", "std", "printed"),
    [
        (None, None, "PIXEL_MEAN [123.675, 116.28, 103.53], PIXEL_STD [58.395, 57.12, 57.375]"),
        ((0.2, 0.4, 0.6), (0.1, 0.3, 0.5), "PIXEL_MEAN [51.0, 102.0, 153.0], PIXEL_STD [25.5, 76.5, 127.5]"),
    ],
)
def test_detectron2_is_given_the_mean_and_std_of_the_training(mean, std, printed, tmp_path):
    net = fastmoco.model.encoders.backbone("resnet10")
    path = tmp_path / "encoder.safetensors"
    export(EncoderWeights("a run", "resnet10", net.state_dict(), mean=mean, std=std), "torchvision", path)
    assert printed in run(Args(checkpoint=path, format="detectron2", out=tmp_path / "encoder.pkl"))


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_every_encoder_has_the_names_and_shapes_of_the_module_that_the_message_names(arch):
    """torchvision's and timm's where they have one; for detectron2 the settings are those of the encoder."""
    libraries = {"torchvision": torchvision, "timm": pytest.importorskip("timm"), "fastmoco": fastmoco, "torch": torch}
    with torch.device("meta"):
        weights = encoder_of({"query_encoder": Encoder(arch, "mlp", 16).state_dict(), "config": {"arch": arch}}).tensors
        for name in ("torchvision", "timm"):
            said = READERS[name](arch).removeprefix(f"torchvision's {arch}")
            module, _, classifier = said.partition(" loads it strictly")[0].partition(" with fc = ")
            model = eval(module, libraries) if module else getattr(torchvision.models, arch)()
            if classifier:
                model.fc = eval(classifier, libraries)
            model.load_state_dict(weights, assign=True)
    said = READERS["detectron2"](arch)
    if arch == "resnet10":
        assert "MODEL.RESNETS.DEPTH has no resnet10" in said
        return
    given = {name: int(value) for name, value in re.findall(r"RESNETS\.([A-Z0-9_]+) (\d+)", said)}
    # of detectron2's build_resnet_backbone, as are the defaults
    blocks = {18: [2, 2, 2, 2], 34: [3, 4, 6, 3], 50: [3, 4, 6, 3], 101: [3, 4, 23, 3], 152: [3, 8, 36, 3]}
    counts = [len({key.split(".")[1] for key in weights if key.startswith(f"layer{stage}.")}) for stage in (1, 2, 3, 4)]
    assert blocks[given.get("DEPTH", 50)] == counts
    assert len(weights["conv1.weight"]) == given.get("STEM_OUT_CHANNELS", 64)
    last = "conv3" if "layer1.0.conv3.weight" in weights else "conv2"
    assert len(weights[f"layer1.0.{last}.weight"]) == given.get("RES2_OUT_CHANNELS", 256)
    if last == "conv3":
        groups, width = given.get("NUM_GROUPS", 1), given.get("WIDTH_PER_GROUP", 64)
        assert weights["layer1.0.conv2.weight"].shape[:2] == (groups * width, width)


class Norm(nn.Conv2d):
    """As detectron2's Conv2d: a convolution that has its normalisation inside."""

    def __init__(self, *args, **options):
        super().__init__(*args, bias=False, **options)
        self.norm = nn.BatchNorm2d(self.out_channels)

    def forward(self, images):
        return self.norm(super().forward(images))


class Block(nn.Module):
    """As detectron2's BasicBlock."""

    def __init__(self, in_channels, channels, stride):
        super().__init__()
        self.shortcut = None
        if stride > 1 or in_channels != channels:
            self.shortcut = Norm(in_channels, channels, 1, stride=stride)
        self.conv1 = Norm(in_channels, channels, 3, stride=stride, padding=1)
        self.conv2 = Norm(channels, channels, 3, padding=1)

    def forward(self, x):
        out = self.conv2(self.conv1(x).relu())
        return (out + (self.shortcut(x) if self.shortcut is not None else x)).relu()


class Detectron2ResNet18(nn.Module):
    """The modules of detectron2's ResNet-18 that features need, under its names."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Module()
        self.stem.conv1 = Norm(3, 64, 7, stride=2, padding=3)
        for stage, channels in zip(range(2, 6), (64, 128, 256, 512), strict=True):
            first = Block(max(64, channels // 2), channels, 1 if stage == 2 else 2)
            setattr(self, f"res{stage}", nn.Sequential(first, Block(channels, channels, 1)))

    def forward(self, images):
        x = nn.functional.max_pool2d(self.stem.conv1(images).relu(), 3, 2, 1)
        return self.res5(self.res4(self.res3(self.res2(x)))).mean((2, 3))


def test_detectron2s_names_fit_its_modules(state, saved, tmp_path):
    _, images, features = saved
    export(encoder_of(state), "detectron2", tmp_path / "encoder.pkl")
    with (tmp_path / "encoder.pkl").open("rb") as file:
        content = pickle.load(file)
    assert content["matching_heuristics"] is True and content["__author__"]
    assert all(isinstance(value, np.ndarray) for value in content["model"].values())
    model = Detectron2ResNet18()
    model.load_state_dict({name: torch.from_numpy(value) for name, value in content["model"].items()})
    assert_same_features(model, images, features)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("conv1.weight", "stem.conv1.weight"),
        ("bn1.running_mean", "stem.conv1.norm.running_mean"),
        ("layer1.0.conv3.weight", "res2.0.conv3.weight"),
        ("layer4.2.bn3.bias", "res5.2.conv3.norm.bias"),
        ("layer3.0.downsample.0.weight", "res4.0.shortcut.weight"),
        ("layer2.0.downsample.1.running_var", "res3.0.shortcut.norm.running_var"),
    ],
)
def test_detectron2s_names(ours, theirs):
    assert detectron2_name(ours) == theirs


class OriginalMoCo(nn.Module):
    """The modules and buffers of the original MoCo under its names."""

    def __init__(self, mlp, dim=16, size=24):
        super().__init__()
        self.encoder_q, self.encoder_k = (ResNet(BasicBlock, [1, 1, 1, 1], num_classes=dim) for _ in range(2))
        if mlp:
            for encoder in (self.encoder_q, self.encoder_k):
                encoder.fc = nn.Sequential(nn.Linear(512, 512), nn.ReLU(), encoder.fc)
        self.encoder_k.requires_grad_(False)
        self.register_buffer("queue", nn.functional.normalize(torch.randn(dim, size), dim=0))
        self.register_buffer("queue_ptr", torch.tensor([16]))


@pytest.fixture(params=[False, True], ids=["v1", "v2"])
def original(request):
    """A checkpoint in the original's layout with random weights, after a step of its optimiser."""
    torch.manual_seed(5)
    model = nn.Module()
    model.module = OriginalMoCo(request.param)  # as under DistributedDataParallel
    optimizer = torch.optim.SGD(model.parameters(), 0.03, momentum=0.9, weight_decay=1e-4)
    (0.01 * model.module.encoder_q(torch.randn(2, 3, 32, 32)).square().mean()).backward()
    optimizer.step()
    return {
        "epoch": 7, "arch": "resnet10", "state_dict": model.state_dict(), "optimizer": optimizer.state_dict(),
    }  # fmt: skip


def test_the_originals_layout_imports_exports_and_imports_again_unchanged(original, tmp_path, in_process):
    torch.save(original, tmp_path / "original.pth.tar")

    def exported(*arguments, out):
        return in_process("-m", "fastmoco.export", *arguments, "--out", tmp_path / out).stdout

    shown = exported("--from-moco", tmp_path / "original.pth.tar", out="first.pt")
    assert "first.pt: a checkpoint for fastmoco knn" in shown
    exported("--checkpoint", tmp_path / "first.pt", "--format", "moco", out="back.pth")
    exported("--from-moco", tmp_path / "back.pth", out="second.pt")
    back = torch.load(tmp_path / "back.pth", weights_only=True)
    assert list(back["state_dict"]) == list(original["state_dict"])
    assert (back["epoch"], back["arch"], back.keys()) == (7, "resnet10", original.keys())
    assert_equal(back["state_dict"], original["state_dict"])
    assert_equal(back["optimizer"], original["optimizer"])
    first, second = (checkpoint.load(tmp_path / name) for name in ("first.pt", "second.pt"))
    texts = ("format", "config", "data")
    assert [first[name] for name in texts] == [second[name] for name in texts] and first.keys() == second.keys()
    for name in first.keys() - set(texts):
        assert_equal(first[name], second[name])
    # it is the same encoder, and the settings match the tensors
    image = torch.randn(2, 3, 32, 32)
    model = OriginalMoCo("module.encoder_q.fc.2.weight" in original["state_dict"]).eval()
    model.load_state_dict({name.removeprefix("module."): value for name, value in original["state_dict"].items()})
    model.encoder_q.fc = nn.Identity()
    ours, config = read_encoder(tmp_path / "first.pt").encoder(), Config.from_dict(first["config"])
    with torch.no_grad():
        assert torch.allclose(ours(image), model.encoder_q(image), atol=1e-5)
    assert (config.queue_size, config.feature_dim, first["progress"]["epoch"]) == (24, 16, 7)
    with pytest.raises(checkpoint.CheckpointError, match="the shard set was not recorded, now"):
        check_compatible(tmp_path, first, config, "a" * 64)


@pytest.mark.parametrize("make", [moco_v1, moco_v2])
def test_the_original_resumes_from_what_is_exported(make):
    """Its model and its optimiser load the state, and continue with the same momentum."""
    ours = trained(small(make(), "resnet10"))
    written = to_original(ours)
    model = nn.Module()
    model.module = OriginalMoCo(make is moco_v2)
    model.load_state_dict(written["state_dict"])
    optimizer = torch.optim.SGD(model.parameters(), 1.0)
    optimizer.load_state_dict(written["optimizer"])
    buffers = [optimizer.state[p].get("momentum_buffer") for p in model.module.encoder_q.parameters()]
    theirs = [state["momentum_buffer"] for state in ours["optimiser"]["state"].values()]
    assert len(buffers) == len(theirs) > 30
    assert all(torch.equal(a, b) for a, b in zip(buffers, theirs, strict=True))
    assert not any(p in optimizer.state for p in model.module.encoder_k.parameters())
    assert torch.equal(model.module.queue.T, ours["queue"]["queue_KD"]) and written["epoch"] == 3


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"head": "mlp-bn"}, "--head mlp-bn, and the original MoCo continues runs with linear or mlp alone"),
        ({"predictor": "mlp"}, "--predictor mlp, and the original MoCo continues runs with none alone"),
        ({"optimiser": "adamw"}, "--optimiser adamw, and .* with sgd alone; use --format torchvision"),
        ({"weight_decay_on": "matrices"}, "--weight-decay-on matrices, and .* with all alone"),
    ],
)
def test_what_the_original_could_not_continue_is_refused(state, changes, said):
    """Its program has other heads and one optimiser with one group, and would end when it loads them."""
    with pytest.raises(LayoutError, match=said):
        to_original(state | {"config": state["config"] | changes})


def test_a_file_without_its_optimiser_is_taken(original, tmp_path):
    del original["optimizer"]
    torch.save(original, tmp_path / "released.pth.tar", _use_new_zipfile_serialization=False)
    state = from_original(tmp_path / "released.pth.tar")
    assert "optimizer" not in to_original(state)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda o: o.pop("state_dict"), "is no checkpoint of the original MoCo"),
        (lambda o: o.update(arch="alexnet"), "has an encoder 'alexnet'; known: resnet10"),
        (
            lambda o: o.update(arch="resnet18"),
            "of its arch resnet18, but those of a resnet10",
        ),
        (lambda o: o["state_dict"].pop("module.queue"), "lacks queue; give the checkpoint of a pretraining"),
        (lambda o: o["optimizer"]["state"].update({200: {}}), "are not the query encoder's"),
    ],
)
def test_other_files_are_refused(original, tmp_path, damage, message):
    damage(original)
    torch.save(original, tmp_path / "odd.pth")
    with pytest.raises(LayoutError, match=message):
        from_original(tmp_path / "odd.pth")


def test_code_in_a_file_is_not_run(original, tmp_path):
    torch.save(original | {"best_acc1": PickledCode()}, tmp_path / "bad.pth")
    with pytest.raises(LayoutError, match="cannot be read"):
        from_original(tmp_path / "bad.pth")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--checkpoint", "nowhere.pt", "--format", "timm", "--out", "a.pth"], "there is no file nowhere.pt"),
        (["--checkpoint", "RUN", "--format", "caffe", "--out", "a.pth"], "caffe"),
        (["--checkpoint", "RUN", "--format", "detectron2", "--out", "a.pth"], "end it in .pkl"),
        (["--checkpoint", "RUN", "--format", "moco", "--out", "a.safetensors"], "end it in .pth"),
        (["--checkpoint", "RUN", "--out", "a.pth"], "--format torchvision|timm|hf-hub|detectron2|moco"),
        (
            ["--checkpoint", "RUN", "--format", "timm", "--out", "/proc/none/a.pth"],
            "--out /proc/none/a.pth cannot be written: No such file or directory",
        ),
        (["--from-moco", "RUN", "--format", "moco", "--out", "a.pt"], "leave out --checkpoint"),
        (["--from-moco", "RUN", "--out", "a.pt"], "is no checkpoint of the original MoCo"),
        (["--from-moco", "nowhere", "--out", "a.pt"], "there is no file nowhere"),
    ],
)
def test_a_users_mistake_ends_in_one_line(saved, in_process, arguments, message):
    named = [saved[0] if argument == "RUN" else argument for argument in arguments]
    done = in_process("-m", "fastmoco.export", *named, check=False)
    assert done.returncode == 2 and message in done.stderr
