"""Classifiers of fine-tuned encoders as timm has them: convolutions, after a BatchNorm, several, others, none."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fastmoco.checkpoints.saving import write
from fastmoco.export import Args, Format, export, run
from fastmoco.layouts.encoders import FINETUNED, EncoderWeights, Head, read_encoder
from fastmoco.layouts.files import LayoutError
from fastmoco.model.encoders import backbone, fixed_size, shapes

timm = pytest.importorskip("timm")

LAYOUTS: tuple[Format, ...] = ("timm", "hf-hub")


def trained(arch: str, side: int) -> EncoderWeights:
    """An encoder whose BatchNorms have statistics that are not those of a new one."""
    torch.manual_seed(0)
    net = backbone(arch, image_size=side)
    with torch.no_grad():
        net.train()(torch.randn(8, 3, side, side))
    return EncoderWeights("", arch, net.state_dict(), image_size=side)


def tuned(weights: EncoderWeights, features: int) -> EncoderWeights:
    """The same with a classifier of three classes."""
    fc = {"fc.weight": torch.randn(3, features) / features**0.5, "fc.bias": torch.randn(3)}
    return replace(weights, head=Head(fc, ("a", "b", "c")))


def scores(weights: EncoderWeights, images: torch.Tensor) -> torch.Tensor:
    """Of fastmoco's network; its features without a classifier."""
    features = weights.encoder()(images)
    fc = {} if weights.head is None else weights.head.tensors
    return torch.nn.functional.linear(features, fc["fc.weight"], fc["fc.bias"]) if fc else features


def by_timm(weights: EncoderWeights, layout: Format, folder: Path) -> torch.nn.Module:
    """What timm makes of an export."""
    name, out = weights.arch.removeprefix("timm:"), folder / layout
    export(weights, layout, out)
    if layout == "hf-hub":
        return timm.create_model(f"local-dir:{out}", pretrained=True).eval()
    size = {"img_size": weights.image_size} if fixed_size(weights.arch) else {}
    net = timm.create_model(name, num_classes=0 if weights.head is None else 3, **size).eval()
    net.load_state_dict(torch.load(out, weights_only=True))
    return net


def long(arch: str, side: int):
    """A case that is left to the long tests."""
    return pytest.param(arch, side, marks=pytest.mark.long)


@pytest.mark.parametrize(
    ("arch", "side"),
    [
        ("timm:dla46x_c", 32),  # a convolution
        long("timm:dpn48b", 32),
        long("timm:resnetv2_18", 32),
        ("timm:shvit_s1", 32),  # after a BatchNorm
        long("timm:efficientvit_m0", 224),
        long("timm:iformer_t", 32),
        long("timm:levit_conv_256d", 224),
        ("timm:deit_tiny_distilled_patch16_224", 32),  # the mean of two classifiers, of two tokens
        ("timm:repvit_m1", 32),  # of two, each after a BatchNorm
        long("timm:pit_ti_distilled_224", 224),
        long("timm:levit_128s", 224),
        long("timm:levit_384_s8", 224),  # of which timm's settings name one
        long("timm:efficientformer_l1", 224),
        long("timm:efficientformerv2_s0", 224),
        long("timm:swiftformer_xs", 224),
        long("timm:fastvit_t8", 32),
    ],
)
def test_timm_gives_equal_scores(tmp_path, arch, side):
    weights = trained(arch, side)
    weights = tuned(weights, weights.encoder().out_dim)
    images = torch.randn(2, 3, side, side)
    for layout in LAYOUTS:
        # another order of fp32 sums, as timm's model is not channels-last
        torch.testing.assert_close(
            by_timm(weights, layout, tmp_path)(images), scores(weights, images), rtol=1e-5, atol=1e-5
        )


@pytest.mark.parametrize(
    ("arch", "side"),
    [
        ("timm:fastvit_t8", 32),  # several first convolutions
        ("timm:deit_tiny_distilled_patch16_224", 32),  # several classifiers
        long("timm:repvit_m1", 32),
        long("timm:mobileone_s1", 32),
        long("timm:repvgg_a0", 32),
        long("timm:crossvit_tiny_240", 240),
        long("timm:csatv2", 64),
        long("timm:efficientvim_m1", 32),
        long("timm:volo_d1_224", 224),
        long("timm:caformer_s18", 32),
    ],
)
def test_encoders_without_a_classifier_are_written(tmp_path, arch, side):
    weights = trained(arch, side)
    images = torch.randn(2, 3, side, side)
    for layout in LAYOUTS:
        # channels-last, as fastmoco's encoder is: another order of sums shows in features of thousands (MobileOne)
        theirs = by_timm(weights, layout, tmp_path).to(memory_format=torch.channels_last)
        torch.testing.assert_close(theirs(images), scores(weights, images), rtol=1e-5, atol=1e-5)


def test_the_hub_is_told_all_first_convolutions_and_classifiers(tmp_path):
    export(trained("timm:crossvit_tiny_240", 240), "hf-hub", tmp_path)
    settings = json.loads((tmp_path / "config.json").read_text())["pretrained_cfg"]
    assert settings["first_conv"] == ["patch_embed.0.proj", "patch_embed.1.proj"]
    assert settings["classifier"] == ["head.0", "head.1"]


def test_timm_replaces_both_classifiers(tmp_path):
    weights = tuned(trained("timm:repvit_m1", 32), 384)
    export(weights, "hf-hub", tmp_path)
    assert timm.create_model(f"local-dir:{tmp_path}", pretrained=True, num_classes=5).num_classes == 5


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    ("arch", "features", "message"),
    [
        (
            "timm:caformer_s18",
            512,
            r"has head\.fc\.fc1\.weight \[2048, 512\], .* and 3 more in place of .* layer \[3, 512\]",
        ),
        (
            "timm:crossvit_tiny_240",
            288,
            r"has head\.0\.weight \[3, 96\], .* in place of the one linear layer \[3, 288\]",
        ),
        ("timm:gemma4_vit_167m_enc", 768, "has no classifier"),
        pytest.param("timm:mobilenetv5_300m_enc", 2048, "has no classifier", marks=pytest.mark.long),
    ],
)
def test_other_heads_are_refused_before_anything_is_written(tmp_path, layout, arch, features, message):
    bare = {name: torch.empty(shape, device="meta") for name, shape in shapes(arch).items()}
    weights = tuned(EncoderWeights("", arch, bare), features)
    named = f"the classifier of {arch} cannot be written for timm: timm's {arch.removeprefix('timm:')} {message}"
    with pytest.raises(LayoutError, match=f"{named}.*; fastmoco embed, knn and linear take the file") as raised:
        export(weights, layout, tmp_path / "out")
    assert "--" not in str(raised.value)  # no flag that was not given
    assert not list(tmp_path.iterdir())


@pytest.mark.long
def test_classifiers_of_other_scores_are_refused(tmp_path):
    """VOLO's have the shapes of one, and are not averaged."""
    weights = tuned(trained("timm:volo_d1_224", 224), 384)
    with pytest.raises(LayoutError, match="computes other scores by aux_head and head than the one linear layer"):
        export(weights, "timm", tmp_path / "out.pth")
    assert not list(tmp_path.iterdir())


def test_a_run_is_exported_and_read_again(tmp_path):
    """Timm's names of a second classifier are not those of other programs' heads."""
    arch = "timm:deit_tiny_distilled_patch16_224"
    weights = tuned(trained(arch, 32), 192)
    assert weights.head is not None
    fc = {name.removeprefix("fc."): value for name, value in weights.head.tensors.items()}
    state = {"format": FINETUNED, "arch": arch, "image_size": 32, "classes": ["a", "b", "c"], "head": fc}
    write(tmp_path / "run.pt", state | {"encoder": dict(weights.tensors)})
    said = run(Args(out=tmp_path / "tuned.pth", checkpoint=tmp_path / "run.pt", format="timm"))
    assert "timm.create_model('deit_tiny_distilled_patch16_224', num_classes=3, img_size=32) loads it strictly" in said
    again = read_encoder(tmp_path / "tuned.pth", arch, 32)
    assert set(again.left_out) == {"head.weight", "head.bias", "head_dist.weight", "head_dist.bias"}
    assert all(torch.equal(again.tensors[name], value) for name, value in weights.tensors.items())
