"""Encoders of timm in files: exported for timm and the Hugging Face hub, and read from its weights."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import safetensors.torch
import torch

from fastmoco.checkpoints.checkpoint import CheckpointError
from fastmoco.export import Args, export, run
from fastmoco.layouts import hub
from fastmoco.layouts.encoders import EncoderWeights, Head, encoder_of, read_encoder
from fastmoco.layouts.files import LayoutError
from fastmoco.model.encoders import backbone
from fastmoco.model.moco import MoCo
from fastmoco.probes.encoders import digest_of, open_encoder, transform_of
from fastmoco.ranks.world import World
from fastmoco.recipes import moco_v2
from fastmoco.trainer.start import begin_from
from fastmoco.views import resize_for
from pipelines import ViewPair
from pipelines.views_file import recorded
from tests.support.families import FAMILIES

timm = pytest.importorskip("timm")

CPU = World(0, 1, torch.device("cpu"))
EXPORTED = [*FAMILIES, pytest.param("resnet18", 64, marks=pytest.mark.long)]
HALF = (0.5, 0.5, 0.5)


def trained(arch: str, side: int) -> EncoderWeights:
    """Weights as a checkpoint of training has them, with statistics that are not those of a new encoder."""
    config = replace(moco_v2(), arch=arch, image_size=side, queue_size=8, feature_dim=8, mean=HALF, std=HALF)
    torch.manual_seed(0)
    model = MoCo(config)
    model.encoder(torch.randn(8, 3, side, side))
    progress = {"epoch": 1, "step": 8, "samples": 64}
    data = {"digest": "a" * 64, "samples": 64}
    state = {"format": "fastmoco-train/1", "config": config.to_dict(), "data": data, "progress": progress}
    return encoder_of(state | model.state())


def timms(arch: str, side: int, **more) -> torch.nn.Module:
    """What timm.create_model makes, by a name and arguments that do not come from the code under test."""
    names = {"moco_v3_vit_small": ("vit_small_patch16_224", {"num_heads": 12})}
    name, arguments = names.get(arch, (arch.removeprefix("timm:"), {}))
    if "vit" in arch or "swin" in arch:
        arguments = arguments | {"img_size": side}
    return timm.create_model(name, **{"num_classes": 0} | arguments | more).eval()


@pytest.mark.parametrize(("arch", "side"), EXPORTED)
def test_timm_loads_an_export_strictly_with_equal_features(tmp_path, arch, side):
    weights = trained(arch, side)
    images = torch.randn(2, 3, side, side)
    wanted = weights.encoder()(images)
    for name in ("encoder.pth", "encoder.safetensors"):
        export(weights, "timm", tmp_path / name)
    theirs = timms(arch, side)
    theirs.load_state_dict(torch.load(tmp_path / "encoder.pth", weights_only=True))
    torch.testing.assert_close(theirs(images), wanted, rtol=1e-5, atol=1e-5)
    theirs.load_state_dict(safetensors.torch.load_file(tmp_path / "encoder.safetensors"))
    torch.testing.assert_close(theirs(images), wanted, rtol=1e-5, atol=1e-5)
    # safetensors say what they are, so that nothing has to be named again
    again = read_encoder(tmp_path / "encoder.safetensors")
    assert (again.arch, again.image_size, again.mean) == (arch, side, HALF)
    assert torch.equal(again.encoder()(images), wanted)
    assert torch.equal(read_encoder(tmp_path / "encoder.pth", arch, side).encoder()(images), wanted)


@pytest.mark.parametrize(("arch", "side"), EXPORTED)
def test_timm_loads_a_folder_for_the_hub_with_equal_features(tmp_path, arch, side):
    weights = trained(arch, side)
    export(weights, "hf-hub", tmp_path / "hub")
    theirs = timm.create_model(f"local-dir:{tmp_path}/hub", pretrained=True).eval()
    images = torch.randn(2, 3, side, side)
    torch.testing.assert_close(theirs(images), weights.encoder()(images), rtol=1e-5, atol=1e-5)
    data = timm.data.resolve_model_data_config(theirs)
    assert [tuple(data[name]) for name in ("mean", "std", "input_size")] == [HALF, HALF, (3, side, side)]
    # images are prepared as in the evaluations, by timm and by what reads the file here
    again = open_encoder(tmp_path / "hub" / "model.safetensors")
    assert (again.arch, again.image_size, again.digest) == (arch, side, digest_of(weights.encoder()))
    transform = transform_of(again.encoder, again.image_size)
    assert transform == transform_of(weights.encoder(), side)
    assert timm.data.create_transform(**data).transforms[0].size == transform.resize
    with_classifier = timm.create_model(f"local-dir:{tmp_path}/hub", pretrained=True, num_classes=3)
    assert with_classifier(images).shape == (2, 3)
    card = (tmp_path / "hub" / "README.md").read_text()
    assert (
        "library_name: timm" in card and "recipe:** moco-v2" in card and "8 steps, 64 images, from a set of 64" in card
    )


def test_the_folder_itself_is_answered_with_its_file(tmp_path):
    export(trained("timm:test_convnext", 32), "hf-hub", tmp_path / "hub")
    with pytest.raises(CheckpointError, match=r"hub is a folder without checkpoints; give .*hub/model\.safetensors"):
        read_encoder(tmp_path / "hub")


def test_timm_resizes_to_the_short_side_of_the_evaluations():
    assert hub._crop(224) == 0.875
    for side in range(16, 513, 8):
        transform = timm.data.create_transform((3, side, side), crop_pct=hub._crop(side), crop_mode="center")
        assert transform.transforms[0].size == resize_for(side)


def test_the_card_says_of_the_training_what_the_file_does(tmp_path):
    weights = trained("timm:test_convnext", 32)
    state, head = weights.checkpoint, Head({"fc.weight": torch.ones(2, 64), "fc.bias": torch.ones(2)}, ("a", "b"))
    assert state is not None
    bank = state | {"config": state["config"] | {"mechanism": "memory-bank", "init": "/somewhere/colour.pth"}}
    imported = state | {"data": {"digest": "not recorded", "samples": 0}}
    views = recorded(replace(ViewPair.moco_v3(32), name="mine.toml"))
    of_file = state | {"config": state["config"] | {"augmentation": None, "views": views}}
    steps = "**training:** 8 steps, 64 images, from a set of 64\n"
    for made, *said in (
        (weights, "encoder pretrained by Momentum Contrast (MoCo), without labels, with fastmoco.\n", steps),
        (
            replace(weights, checkpoint=bank),
            "with a memory bank, without labels, with fastmoco, from the weights of",
            steps,
        ),
        (
            replace(weights, checkpoint=of_file),
            '**views:** `{"file": "mine.toml", "query": {"area": [0.2, 1.0], ',
            steps,
        ),
        (replace(weights, bits=16), "take those of your images", "np.float32(LOW), np.float32(HIGH)", steps),
        (replace(weights, checkpoint=imported), "with the original MoCo's program.\n", "**training:** 1 epoch\n"),
        (replace(weights, checkpoint=None), "that fastmoco read it from does not record how it was trained.\n"),
        (replace(weights, checkpoint=None, head=head), "is a classifier of images, trained by `fastmoco finetune`.\n"),
    ):
        export(made, "hf-hub", tmp_path / "hub")
        card = (tmp_path / "hub" / "README.md").read_text()
        assert all(each in card for each in said)
        assert ("recipe:" in card) == (steps in said)
        assert "somewhere" not in card and "augmentation None" not in card


def test_layers_that_blocks_share_are_written_for_each(tmp_path):
    """Of CoaT: several names of a state dictionary are one tensor, which safetensors do not have."""
    net = backbone("timm:coat_lite_tiny", image_size=32)
    tensors = net.state_dict()
    assert len({value.data_ptr() for value in tensors.values()}) < len(tensors)
    weights = EncoderWeights("", "timm:coat_lite_tiny", tensors, image_size=32)
    export(weights, "timm", tmp_path / "w.safetensors")
    export(weights, "hf-hub", tmp_path / "hub")
    for path in (tmp_path / "w.safetensors", tmp_path / "hub" / "model.safetensors"):
        found = read_encoder(path).tensors
        assert found.keys() == tensors.keys()
        assert all(torch.equal(found[name], value) for name, value in tensors.items())


def test_a_fine_tuned_encoder_has_timms_classifier(tmp_path):
    weights = trained("timm:test_convnext", 32)
    head = {"fc.weight": torch.randn(3, 64), "fc.bias": torch.randn(3)}
    tuned = replace(weights, head=Head(head, ("a", "b", "ç")), checkpoint=None)
    images = torch.randn(2, 3, 32, 32)
    wanted = tuned.encoder()(images) @ head["fc.weight"].T + head["fc.bias"]
    export(tuned, "timm", tmp_path / "tuned.pth")
    theirs = timms("timm:test_convnext", 32, num_classes=3)
    theirs.load_state_dict(torch.load(tmp_path / "tuned.pth", weights_only=True))
    torch.testing.assert_close(theirs(images), wanted, rtol=1e-5, atol=1e-5)
    assert json.loads((tmp_path / "tuned.classes.json").read_text()) == ["a", "b", "ç"]
    export(tuned, "hf-hub", tmp_path / "hub")
    from_folder = timm.create_model(f"local-dir:{tmp_path}/hub", pretrained=True).eval()
    torch.testing.assert_close(from_folder(images), wanted, rtol=1e-5, atol=1e-5)
    assert json.loads((tmp_path / "hub" / "config.json").read_text())["label_names"] == ["a", "b", "ç"]
    # and it is read again without the classifier
    assert read_encoder(tmp_path / "tuned.pth", "timm:test_convnext").left_out == ("head.fc.weight", "head.fc.bias")


def test_the_command_says_what_loads_its_file(tmp_path):
    weights = trained("timm:test_vit", 32)
    export(weights, "timm", tmp_path / "a.safetensors")
    said = run(Args(out=tmp_path / "b.pth", checkpoint=tmp_path / "a.safetensors", format="timm"))
    assert "timm.create_model('test_vit', num_classes=0, img_size=32) loads it strictly" in said
    assert "local-dir" in run(Args(out=tmp_path / "hub", checkpoint=tmp_path / "a.safetensors", format="hf-hub"))


@pytest.mark.parametrize("with_head", [True, False])
def test_training_begins_with_timms_weights(tmp_path, with_head):
    theirs = timms("timm:test_vit", 32, num_classes=10 if with_head else 0)
    torch.save(theirs.state_dict(), tmp_path / "theirs.pth")
    safetensors.torch.save_file(theirs.state_dict(), tmp_path / "theirs.safetensors")
    config = replace(moco_v2(), arch="timm:test_vit", image_size=32, queue_size=8)
    images = torch.randn(2, 3, 32, 32)
    theirs.reset_classifier(0)
    for name in ("theirs.pth", "theirs.safetensors"):
        model = MoCo(config).eval()
        begin_from(model, tmp_path / name, config, CPU)
        torch.testing.assert_close(model.encoder.backbone(images), theirs(images))
        torch.testing.assert_close(model.parts()["key_encoder"].backbone(images), theirs(images))


@pytest.mark.parametrize(
    ("arch", "size", "message"),
    [
        ("timm:test_vit", 64, "is for images of 32 pixels, .* give --image-size 32, not 64"),
        ("timm:test_convnext", None, "holds no timm:test_convnext: of its"),
        ("resnet18", None, "holds a vision transformer of 64 dimensions; its architecture is not searched for"),
        ("timm:test_vit5", None, "has no test_vit5; did you mean"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path, arch, size, message):
    torch.save(timms("timm:test_vit", 32).state_dict(), tmp_path / "theirs.pth")
    with pytest.raises(ValueError, match=message) if "5" in arch else pytest.raises(LayoutError, match=message):
        read_encoder(tmp_path / "theirs.pth", arch, size)


def test_a_file_may_record_a_former_name_of_timms(tmp_path):
    """As older versions of timm's training wrote it; the encoder is the same under its present name."""
    tensors = timm.create_model("semnasnet_100", num_classes=0).state_dict()
    for number, name in enumerate(("semnasnet_100", "mnasnet_a1")):
        path = tmp_path / f"{number}.pth.tar"
        torch.save({"arch": name, "state_dict": tensors}, path)
        assert read_encoder(path).arch == read_encoder(path, "timm:semnasnet_100").arch == "timm:semnasnet_100"


def test_a_missing_and_an_unexpected_tensor_are_named(tmp_path):
    tensors = timms("timm:test_convnext", 32).state_dict()
    torch.save({k: v for k, v in tensors.items() if k != "stem.1.bias"} | {"odd": torch.zeros(1)}, tmp_path / "w.pth")
    with pytest.raises(LayoutError, match=r"stem\.1.bias is missing; odd is unexpected, 2 in all; is --arch right"):
        read_encoder(tmp_path / "w.pth", "timm:test_convnext")


def test_twelve_heads_are_not_taken_for_six(tmp_path):
    """By what the file records, and else by its position embeddings, which MoCo v3 fixes."""
    v3 = backbone("moco_v3_vit_small", image_size=32)
    six = v3.state_dict() | {"pos_embed": torch.randn(1, 5, 384)}  # timm's has the same names and shapes
    torch.save(v3.state_dict(), tmp_path / "v3.pth")
    torch.save(six, tmp_path / "six.pth")
    published = {"arch": "vit_small", "state_dict": {f"module.base_encoder.{k}": v for k, v in v3.state_dict().items()}}
    torch.save(published, tmp_path / "v3.pth.tar")
    assert read_encoder(tmp_path / "v3.pth", "moco_v3_vit_small").image_size == 32
    assert read_encoder(tmp_path / "v3.pth.tar").arch == "moco_v3_vit_small"
    with pytest.raises(LayoutError, match="holds a moco_v3_vit_small, not a timm:vit_small_patch16_224"):
        read_encoder(tmp_path / "v3.pth.tar", "timm:vit_small_patch16_224")
    with pytest.raises(LayoutError, match=r"12 attention heads .* give --arch moco_v3_vit_small"):
        read_encoder(tmp_path / "v3.pth", "timm:vit_small_patch16_224")
    with pytest.raises(LayoutError, match="other position embeddings than the fixed ones of moco_v3_vit_small"):
        read_encoder(tmp_path / "six.pth", "moco_v3_vit_small")


def test_equal_weights_in_another_encoder_are_another_encoder(tmp_path):
    """By the hash under which features are cached, and runs of a probe continued."""
    tensors = timms("timm:vit_small_patch16_224", 32).state_dict()  # their shapes do not show the 12 heads of MoCo v3
    digests = []
    for arch in ("timm:vit_small_patch16_224", "timm:vit_small_patch16_224.dino", "moco_v3_vit_small"):
        net = backbone(arch, image_size=32)
        net.load_state_dict(tensors)
        digests.append(digest_of(net))
    assert digests[0] == digests[1] != digests[2]


@pytest.mark.parametrize("layout", ["torchvision", "detectron2", "moco"])
def test_layouts_of_resnets_refuse_others(tmp_path, layout):
    weights = trained("timm:test_convnext", 32)
    with pytest.raises(LayoutError, match=f"--format {layout} is a layout of torchvision's ResNets.*timm or hf-hub"):
        export(weights, layout, tmp_path / ("w.pkl" if layout == "detectron2" else "w.pth"))


def test_the_hubs_folder_replaces_an_earlier_export_and_no_other_file(tmp_path, caplog):
    """As a run's config.json has the same name, and a project has a README.md."""
    weights = trained("timm:test_convnext", 32)
    for _ in range(2):
        export(weights, "hf-hub", tmp_path / "hub")
    card = (tmp_path / "hub" / "README.md").read_text()
    edited = card.replace("---\ntags", "---\nlicense: mit\ntags")
    for content, kept in ((edited, True), (card, False)):
        (tmp_path / "hub" / "README.md").write_text(content)
        export(replace(weights, mean=(0.1, 0.2, 0.3)), "hf-hub", tmp_path / "hub")
        export(weights, "hf-hub", tmp_path / "hub")
        assert (tmp_path / "hub" / "README.md").read_text() == content
        assert ("README.md was edited and stays as it is" in caplog.text) == kept
        caplog.clear()
    of_others = [("config.json", text) for text in ('{"recipe": "moco-v2"}', '{"architecture": "resnet50"}', "[")]
    for name, content in (*of_others, ("README.md", "# A project")):
        (folder := tmp_path / "other" / name).mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)
        with pytest.raises(LayoutError, match=f"--out {folder} holds a {name} that no export wrote; name an empty"):
            export(weights, "hf-hub", folder)
        assert [path.name for path in folder.iterdir()] == [name] and (folder / name).read_text() == content


def test_a_class_without_a_name_is_not_for_the_hub(tmp_path):
    weights = trained("resnet10", 32)
    with pytest.raises(LayoutError, match="timm builds a resnet10, and it has none; use --format timm"):
        export(weights, "hf-hub", tmp_path / "hub")


@pytest.mark.parametrize("said", ['{"image_size": "x"}', '{"mean": [1, 2]}', "7.5", "not JSON"])
def test_damaged_metadata_are_named(tmp_path, said):
    tensors = backbone("timm:test_convnext").state_dict()
    about = {"format": "pt", "arch": "timm:test_convnext", "fastmoco": said}
    safetensors.torch.save_file(tensors, tmp_path / "w.safetensors", about)
    with pytest.raises(LayoutError, match=r"w.safetensors has damaged metadata: .*; export it again"):
        read_encoder(tmp_path / "w.safetensors")


def test_probes_give_an_encoder_its_own_images(tmp_path):
    weights = trained("timm:test_convnext", 32)
    export(weights, "timm", tmp_path / "w.safetensors")
    frozen = open_encoder(tmp_path / "w.safetensors")
    assert (frozen.image_size, frozen.encoder.image_mean) == (32, HALF)
    transform = transform_of(frozen.encoder, frozen.image_size)
    assert (transform.image_size, transform.resize, transform.mean) == (32, 40, HALF)
    untrained = open_encoder("untrained", "timm:test_vit", image_size=64)
    assert (untrained.image_size, untrained.encoder.image_std) == (64, HALF)
