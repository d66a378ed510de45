"""Every command reads weight files of every project's layout, or says why not."""

from __future__ import annotations

import logging
import re
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torchvision

from fastmoco.architectures import ARCHITECTURES
from fastmoco.checkpoints import checkpoint
from fastmoco.export import Args, export, run
from fastmoco.layouts.encoders import read_encoder
from fastmoco.layouts.files import LayoutError
from fastmoco.layouts.original import from_original
from fastmoco.model import encoders
from fastmoco.model.moco import MoCo
from fastmoco.trainer.start import begin_from
from tests.support import weight_files, weight_table
from tests.support.weight_files import CONTENTS, REFUSED, linear, mlp, under

pytestmark = pytest.mark.usefixtures("one_thread")
MOCO = [name for name in CONTENTS if name.startswith("original MoCo")]


@pytest.fixture
def narrow(monkeypatch):
    monkeypatch.setitem(encoders._BUILDERS, "resnet10", weight_table.NARROW)


@pytest.fixture(scope="module")
def files(tmp_path_factory, one_thread):
    """Path and wanted tensors of each file, by name."""
    found = weight_table.files(tmp_path_factory.mktemp("files"))
    return {path.name: (path, wanted) for path, wanted in found.items()}


@pytest.mark.parametrize("command", weight_table.COMMANDS)
@pytest.mark.parametrize("name", ["fastmoco.train.pt", *CONTENTS])
def test_each_command_loads_exactly_the_evaluated_encoder_of_each_layout(files, name, command):
    said = weight_table.tried(command, *files[name])
    if command == "export --from-moco" and name not in MOCO:
        assert said.startswith("refused: --from-moco: ") and name in said
    else:
        assert said == "loads"


@pytest.mark.parametrize("command", [name for name in weight_table.COMMANDS if name != "export --from-moco"])
@pytest.mark.parametrize("name", REFUSED)
def test_each_command_refuses_what_is_no_encoder_or_ambiguous(files, name, command):
    said = weight_table.tried(command, *files[name])
    assert said.startswith("refused: ") and REFUSED[name][1] in said and name in said


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (
            "original MoCo, published.pth.tar",
            "original MoCo (its query encoder), resnet10: 72 names matched; left out: 4 of the head (fc.0.weight, "
            "fc.0.bias, fc.2.weight, …)",
        ),
        ("moco-v3.pth.tar", "moco-v3 (its base encoder), resnet10: 72 names matched; left out: 4 of the head"),
        ("DINO.pth", "DINO (its teacher), resnet10: 72 names matched; not used: 80 others (student.backbone.conv1"),
        ("torchvision, half.pt", "state dictionary (its encoder), resnet10: 72 names matched; converted from float16"),
        ("lightly, example.ckpt", "lightly (its backbone), resnet10: 72 names matched; not used: 81 others"),
        ("VISSL.torch", "VISSL (its trunk), resnet10"),
        ("solo-learn.ckpt", "solo-learn (its backbone), resnet10"),
        ("MMPretrain.pth", "MMSelfSup (its backbone), resnet10"),
        ("timm training, with average.pth.tar", "timm or torchvision training (the averaged weights), resnet10"),
        ("SwAV.pth.tar", "SwAV (its encoder), resnet10: 72 names matched; left out: 6 of the head"),
    ],
)
def test_the_log_says_what_was_recognised_and_which_names_were_not_used(files, narrow, caplog, name, said):
    caplog.set_level(logging.INFO)
    read_encoder(files[name][0])
    assert f"{files[name][0]}: {said}" in caplog.text


def test_no_two_architectures_have_the_same_shapes_and_each_is_found_by_them(tmp_path):
    every = [tuple(encoders.shapes(arch).items()) for arch in ARCHITECTURES]
    assert len(set(every)) == len(ARCHITECTURES)
    torch.save(torchvision.models.resnet18().state_dict(), tmp_path / "a.pth")
    assert read_encoder(tmp_path / "a.pth").arch == "resnet18"
    with pytest.raises(LayoutError, match="holds a resnet18, not a resnet50; give --arch resnet18"):
        read_encoder(tmp_path / "a.pth", "resnet50")


def test_a_recorded_architecture_has_to_agree_with_the_shapes(files, narrow, tmp_path):
    _, wanted = files["torchvision.pth"]
    torch.save({"arch": "resnet34", "state_dict": wanted}, tmp_path / "a.pth")
    with pytest.raises(LayoutError, match="does not hold the weights of its arch resnet34, but those of a resnet10"):
        read_encoder(tmp_path / "a.pth")


def test_a_checkpoint_of_ours_without_a_part_is_named(tmp_path):
    torch.save({"format": checkpoint.FORMAT, "config": {}}, tmp_path / "a.pt")
    with pytest.raises(LayoutError, match="lacks query_encoder, which a checkpoint of"):
        read_encoder(tmp_path / "a.pt")


def test_the_weights_that_the_authors_publish(tmp_path):
    """A ResNet-50 with encoder_q alone, in full size."""
    net = torchvision.models.resnet50(num_classes=128).state_dict()
    q = {name: value for name, value in net.items() if not name.startswith("fc.")}
    head = linear("fc.0", 2048, 2048) | linear("fc.2", 128, 2048)
    content = {"epoch": 800, "arch": "resnet50", "state_dict": under("module.encoder_q.", q | head)}
    torch.save(content, tmp_path / "moco_v2_800ep_pretrain.pth.tar")
    read = read_encoder(tmp_path / "moco_v2_800ep_pretrain.pth.tar")
    assert read.arch == "resnet50" and read.tensors.keys() == q.keys()
    assert all(torch.equal(read.tensors[name], q[name]) for name in q)
    assert read.left_out == tuple(head) and read.others == ()


def test_a_cut_file_becomes_a_checkpoint_with_a_copied_key_encoder_and_a_random_queue(files, narrow, caplog):
    caplog.set_level(logging.INFO)
    path, wanted = files["original MoCo, published.pth.tar"]
    state = from_original(path)
    config = state["config"]
    assert (config["head"], config["feature_dim"], config["queue_size"]) == ("mlp", 16, 65_536)
    assert (config["recipe"], state["progress"]["epoch"]) == ("moco-v2", 7)
    for part in ("query_encoder", "key_encoder"):
        assert all(torch.equal(state[part][f"backbone.{name}"], value) for name, value in wanted.items())
        assert torch.equal(state[part]["head.2.weight"], mlp("fc")["fc.2.weight"])
    norms = state["queue"]["queue_KD"].norm(dim=1)
    assert norms.shape == (65_536,) and torch.allclose(norms, torch.ones(()), atol=1e-5)
    assert int(state["queue"]["seen"]) == 0
    assert "the query encoder alone: the key encoder is a copy of it, and the queue is random" in caplog.text


def test_a_whole_file_keeps_its_queue(files, narrow):
    state = from_original(files["original MoCo, whole.pth.tar"][0])
    content = torch.load(files["original MoCo, whole.pth.tar"][0], weights_only=True)["state_dict"]
    assert torch.equal(state["queue"]["queue_KD"], content["module.queue"].T)
    assert torch.equal(state["key_encoder"]["backbone.conv1.weight"], content["module.encoder_k.conv1.weight"])


def test_a_torchscript_program_and_an_unknown_class_have_a_remedy(tmp_path):
    # an archive of torch.jit.save is recognised by its file of constants
    with zipfile.ZipFile(tmp_path / "a.pt", "w") as archive:
        archive.writestr("a/constants.pkl", b"")
    with pytest.raises(LayoutError, match=r"is a TorchScript program; save torch\.jit\.load\(FILE\)\.state_dict\(\)"):
        read_encoder(tmp_path / "a.pt")
    torch.save(torch.nn.Linear(2, 2), tmp_path / "b.pth")
    with pytest.raises(LayoutError, match=r"holds torch\.nn\.modules\.linear\.Linear, .*found\.state_dict\(\)"):
        read_encoder(tmp_path / "b.pth")


def begun(path: Path, **settings):
    config = replace(weight_table.SMALL, **settings)
    torch.manual_seed(9)
    model = MoCo(config)
    before = {name: {n: v.clone() for n, v in part.state_dict().items()} for name, part in model.parts().items()}
    begin_from(model, path, config, weight_table.HERE)
    return before, {name: part.state_dict() for name, part in model.parts().items()}


def assert_same(a, b):
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_init_takes_both_encoders_and_the_head_of_a_checkpoint_of_ours_and_no_queue(files, narrow, caplog):
    caplog.set_level(logging.INFO)
    path = files["fastmoco.train.pt"][0]
    state = checkpoint.load(path)
    before, after = begun(path)
    assert not torch.equal(
        state["query_encoder"]["backbone.conv1.weight"], state["key_encoder"]["backbone.conv1.weight"]
    )
    assert_same(after["query_encoder"], state["query_encoder"])
    assert_same(after["key_encoder"], state["key_encoder"])
    assert_same(after["queue"], before["queue"])
    assert f"begins with {path}: query encoder and key encoder, with the head; queue, optimiser" in caplog.text


def test_init_from_other_normalisation_warns_with_the_flags_that_keep_it(files, narrow, tmp_path, caplog):
    weights = replace(read_encoder(files["fastmoco.train.pt"][0]), mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
    export(weights, "timm", tmp_path / "encoder.safetensors")
    begun(tmp_path / "encoder.safetensors")
    (said,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert said.endswith("--mean 0.1 0.2 0.3 --std 0.5 0.6 0.7 keeps them") and "[0.485, 0.456, 0.406]" in said
    caplog.clear()
    begun(tmp_path / "encoder.safetensors", mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
    assert not [record for record in caplog.records if record.levelname == "WARNING"]


def test_init_with_another_head_takes_the_encoder_alone_and_says_so(files, narrow, caplog):
    caplog.set_level(logging.INFO)
    path = files["fastmoco.train.pt"][0]
    state = checkpoint.load(path)
    before, after = begun(path, head="linear")
    for part in ("query_encoder", "key_encoder"):
        assert torch.equal(after[part]["backbone.conv1.weight"], state["query_encoder"]["backbone.conv1.weight"])
        assert torch.equal(after[part]["head.weight"], before["query_encoder"]["head.weight"])
    said = "the head is new, since that of the file (mlp, 16 dimensions) is not the run's (linear, 16 dimensions)"
    assert said in caplog.text


@pytest.mark.parametrize(
    ("change", "file", "run"),
    [
        ({"head_layers": 3}, "mlp-bn, 16 dimensions, 2 layers, --head-width 8", "3 layers, --head-width 8"),
        ({"head_width": 4}, "2 layers, --head-width 8", "mlp-bn, 16 dimensions, 2 layers, --head-width 4"),
        ({"predictor": "mlp"}, "mlp-bn, 16 dimensions, 2 layers", "2 layers, predictor mlp, --head-width 8"),
    ],
)
def test_the_log_says_how_two_heads_of_v3_differ(tmp_path, narrow, caplog, change, file, run):
    caplog.set_level(logging.INFO)
    settings = {"head": "mlp-bn", "head_width": 8}
    config = replace(weight_table.SMALL, **settings)
    progress = {"epoch": 1, "step": 8, "samples": 64}
    state = {"format": checkpoint.FORMAT, "config": config.to_dict(), "progress": progress} | MoCo(config).state()
    torch.save(state, tmp_path / "v3.pt")
    begun(tmp_path / "v3.pt", **settings | change)
    said = re.search(r"that of the file \((.*)\) is not the run's \((.*)\);", caplog.text)
    assert said is not None and file in said[1] and run in said[2] and said[1] != said[2]


def test_a_run_on_other_images_begins_from_a_runs_folder(shard_sets, tmp_path, in_process):
    def train(out, shards, *more):
        return in_process(
            *("-m", "fastmoco.train", "--recipe", "demo", "--shards", shard_sets / shards, "--out", tmp_path / out),
            *("--steps", 1, "--batch-size", 8, "--queue-size", 32, "--pipeline", "torch", "--threads", 1, *more),
            check=False,
        )

    assert train("first", "train").returncode == 0
    done = train("second", "val", "--init", tmp_path / "first", "--lr", "1e-30")
    assert done.returncode == 0, done.stderr
    (first,), (second,) = (checkpoint.found(tmp_path / run / "checkpoints") for run in ("first", "second"))
    one, two = checkpoint.load(first), checkpoint.load(second)
    # m 0.99 of equal weights; the rate is too small to change a weight
    for name, value in one["query_encoder"].items():
        if not name.endswith(("running_mean", "running_var", "num_batches_tracked")):
            assert torch.equal(two["query_encoder"][name], value), name
    assert two["progress"]["step"] == 1 and int(two["queue"]["seen"]) == 8
    assert "query encoder and key encoder, with the head" in done.stderr
    refused = train("third", "val", "--resume", first)
    assert refused.returncode == 2 and f"to begin a new run from its weights, give --init {first}" in refused.stderr


def spoilt(folder: Path, steps: dict[int, float]) -> list[Path]:
    """Checkpoints of a run at steps, with a value in one running variance."""
    folder.mkdir(parents=True)
    q, k = weight_files.encoder(1), weight_files.encoder(2)
    paths = []
    for step, value in steps.items():
        q = q | {"layer2.0.bn1.running_var": torch.full((32,), value)}
        content = weight_table.ours(q, k) | {"progress": {"step": step}}
        paths.append(weight_files.write(content, folder / f"step-{step:08d}.pt"))
    return paths


@pytest.mark.parametrize("command", [name for name in weight_table.COMMANDS if name != "export --from-moco"])
def test_a_damaged_scaling_of_16_bit_images_is_refused_and_the_file_named(files, tmp_path, command):
    state = torch.load(files["fastmoco.train.pt"][0], weights_only=True)
    path = tmp_path / "spoilt.pt"
    torch.save(state | {"data": {"scaling": [{"low": [0]}]}}, path)
    said = weight_table.tried(command, path, {})
    assert said.startswith("refused: ")
    assert "spoilt.pt: the scaling of 16-bit images is damaged ([{'low': [0]}]); give another file" in said


@pytest.mark.parametrize("command", [name for name in weight_table.COMMANDS if name != "export --from-moco"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_an_encoder_that_is_not_finite_is_refused_and_the_last_sound_checkpoint_named(tmp_path, command, value):
    folder = tmp_path / "run" / "checkpoints"
    spoilt(folder, {200: 1.0, 400: 1.0, 600: value, 800: value})
    said = weight_table.tried(command, folder / "step-00000800.pt", {})
    named = "layer2.0.bn1.running_var has 32 of 32 values that are infinite or not a number"
    assert said.startswith("refused: ") and f"{named}; {folder}/step-00000400.pt is sound" in said
    in_run = weight_table.tried(command, tmp_path / "run", {})  # which names the folder by its last part alone
    assert f"step-00000800.pt: {named}; run/checkpoints/step-00000400.pt is sound" in in_run


def test_where_no_checkpoint_is_sound_that_is_said(tmp_path, narrow):
    folder = tmp_path / "checkpoints"
    *_, last = spoilt(folder, {200: float("nan"), 400: float("nan")})
    with pytest.raises(LayoutError, match="no checkpoint before it is sound"):
        read_encoder(last)


def test_export_prints_what_was_recognised(files, narrow, tmp_path, in_process):
    path = files["moco-v3.pth.tar"][0]
    done = in_process(
        *("-m", "fastmoco.export", "--checkpoint", path, "--format", "timm", "--out", tmp_path / "a.safetensors")
    )
    assert "moco-v3 (its base encoder), resnet10: 72 names matched" in done.stderr
    assert run(Args(checkpoint=path, format="timm", out=tmp_path / "b.pth")).startswith("wrote")
