"""Fine-tuning: which labels, the rates of both groups, against plain torch, resumed, exported, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from fastmoco.checkpoints import checkpoint
from fastmoco.config import ConfigError
from fastmoco.finetuning.labels import choose, drawn, named
from fastmoco.finetuning.loop import Finetuning
from fastmoco.finetuning.settings import RECIPES, FinetuneSettings, LabelSettings
from fastmoco.finetuning.step import FinetuneStep
from fastmoco.layouts.encoders import FINETUNED, read_encoder
from fastmoco.model import encoders
from fastmoco.model.encoders import backbone
from fastmoco.probes.encoders import open_encoder
from fastmoco.probes.features import FeatureError
from fastmoco.probes.sets import ProbeError
from fastmoco.ranks.world import World
from fastmoco.report.reading import read_run
from fastmoco.runs.errors import TrainingError
from pipelines import LabelledCrops, PipelineOptions, ViewSpec
from shards import ShardSet
from tests.support.runs import metrics, narrow_resnet10, resnet10_of
from tests.support.sets import pack_set

SCRIPT = Path(__file__).parent / "scripts" / "finetuned.py"
CPU = World(0, 1, torch.device("cpu"))
COLOURS = {"blue": (20, 30, 200), "green": (20, 190, 40), "red": (210, 20, 30)}
pytestmark = pytest.mark.usefixtures("one_thread", "narrow")


@pytest.fixture(scope="module", autouse=True)
def narrow():
    with resnet10_of(1 / 8):
        yield


@pytest.fixture(scope="module")
def colours(tmp_path_factory):
    """Images of one colour and noise, 16 and 3 of each of three classes: what any network separates."""
    folder = tmp_path_factory.mktemp("colours")
    numbers = np.random.default_rng(0)
    for name, count in (("train", 16), ("val", 3)):
        for colour, value in COLOURS.items():
            (folder / "images" / name / colour).mkdir(parents=True)
            for number in range(count):
                # noise, without which a channel's variance is that of three colours, and rounding grows in BatchNorm
                pixels = np.clip(np.array(value) + numbers.integers(-20, 21, (36, 40, 3)), 0, 255)
                image = Image.fromarray(pixels.astype(np.uint8))
                image.save(folder / "images" / name / colour / f"{colour}_{number}.JPEG")
        pack_set(folder / "images" / name, folder / name)
    return folder


def settings(sets, out, **more):
    few = {"image_size": 32, "batch_size": 24, "epochs": 5, "threads": 1, "arch": "resnet10"}
    rates = {"recipe": "swav-10", "lr": 0.05, "head_lr": 0.5}
    return FinetuneSettings("untrained", sets / "train", sets / "val", out=out, **few | rates | more)


def finetuned(chosen, kind=Finetuning):
    """The training after its run, its result, and its last checkpoint."""
    made = kind(chosen, open_encoder("untrained", "resnet10"), CPU)
    result = made.run()
    return made, result, checkpoint.load(checkpoint.found(chosen.out / "checkpoints")[0], FINETUNED)


class Watched(Finetuning):
    """Keeps the rates of both groups at each step."""

    def _log(self, *arguments):
        super()._log(*arguments)
        self.seen = [*getattr(self, "seen", []), [group["lr"] for group in self.train_step.optimiser.param_groups]]


@pytest.fixture(scope="module")
def whole(shard_sets, tmp_path_factory):
    """An undisturbed training of 5 epochs of 4 steps."""
    return finetuned(settings(shard_sets, tmp_path_factory.mktemp("whole"), log_every=1), Watched)


def assert_equal(a, b):
    torch.testing.assert_close(a, b, rtol=0, atol=0)


# which labels


def test_a_share_is_balanced_and_a_smaller_one_is_a_part_of_it():
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(4), [40, 3, 25, 60]))  # 128 images
    before = set()
    for share, counts in (
        (0.001, [1, 1, 1, 1]),
        (0.125, [4, 3, 5, 4]),
        (0.29, [11, 3, 12, 11]),
        (0.5, [20, 3, 21, 20]),
        (1.0, [40, 3, 25, 60]),
    ):
        chosen = drawn(np.arange(128), labels, share, seed=0).tolist()
        assert chosen == sorted(set(chosen)) and before <= set(chosen)
        assert np.bincount(labels[chosen]).tolist() == counts
        before = set(chosen)
    assert set(drawn(np.arange(128), labels, 0.125, seed=1).tolist()) != set(drawn(np.arange(128), labels, 0.125, 0))


def test_the_draw_is_the_same_in_all_versions_and_as_large_as_the_papers():
    chosen = drawn(np.arange(300), np.arange(300) % 10, 0.04, seed=7)
    assert chosen.tolist() == [25, 32, 33, 49, 64, 101, 106, 120, 125, 197, 228, 278]
    # of ImageNet's 1,281,167 images 12,811 and 128,116: rounded down
    many = np.arange(128_117)
    assert [len(drawn(many, many % 100, share, 0)) for share in (0.01, 0.1)] == [1281, 12_811]


@pytest.fixture
def train(colours):
    with ShardSet(colours / "train") as opened:
        yield opened


def listed(train, tmp_path, *lines):
    (tmp_path / "list.txt").write_text("\n".join(lines) + "\n")
    return named(train, np.arange(len(train)), tmp_path / "list.txt")


def test_a_list_of_file_names_selects_the_images_and_names_those_it_misses(train, tmp_path, caplog):
    chosen = listed(
        train, tmp_path, "red_3.JPEG", "blue_11.JPEG", "n01440764_10026.JPEG", "", "red_3.JPEG", "blue/blue_0.JPEG"
    )
    assert set(train.names(chosen.ids)) == {"red/red_3.JPEG", "blue/blue_11.JPEG", "blue/blue_0.JPEG"}
    assert chosen.missing == ("n01440764_10026.JPEG",) and chosen.ids.tolist() == sorted(chosen.ids.tolist())
    assert "1 of 4 names are no labelled images of" in caplog.text and ": n01440764_10026.JPEG" in caplog.text


def test_a_written_list_selects_the_same_images(train, tmp_path):
    ids = np.arange(len(train))
    first = choose(train, ids, LabelSettings(fraction=0.25, write_list=tmp_path / "new/list.txt"), seed=3)
    assert len((tmp_path / "new/list.txt").read_text().splitlines()) == len(first.ids) == 12
    again = choose(train, ids, LabelSettings(list=tmp_path / "new/list.txt"), seed=0)
    assert again.ids.tolist() == first.ids.tolist()
    assert choose(train, ids, LabelSettings(), 0).ids is ids


def test_lists_that_cannot_be_right_are_refused(train, tmp_path, photos):
    with pytest.raises(
        ProbeError, match=r"names no labelled image of .*: its first line is a\.jpg, and an image of the"
    ):
        listed(train, tmp_path, "a.jpg", "3.JPEG")
    with pytest.raises(ProbeError, match=r"list\.txt is empty"):
        listed(train, tmp_path, "", " ")
    (tmp_path / "list.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ProbeError, match="is no text; give a file with the name of an image in each line"):
        named(train, np.arange(48), tmp_path / "list.txt")
    twice = pack_set(photos / "val", tmp_path / "set")  # its classes have the same file names
    with ShardSet(twice) as opened:
        same = opened.names(np.arange(1))[0].rpartition("/")[2]
        with pytest.raises(ProbeError, match=rf"list\.txt: {same} fits several images of .*; write their paths"):
            listed(opened, tmp_path, same)
    with ShardSet(pack_set(photos / "val", tmp_path / "nameless", names=False)) as opened:
        for chosen in (LabelSettings(list=tmp_path / "list.txt"), LabelSettings(write_list=tmp_path / "l.txt")):
            with pytest.raises(ProbeError, match=r"list needs the names of the images, which .*nameless does not keep"):
                choose(opened, np.arange(24), chosen, 0)


# how they are trained


def rates(recipe, steps_per_epoch=3):
    """The distinct pairs of rates of a recipe with the number of epochs that each lasts, at batch 256."""
    made = FinetuneSettings("x", "a", "b", recipe=recipe).training(0.1)
    each = [made.factor(epoch * steps_per_epoch + 2, steps_per_epoch) for epoch in range(made.epochs)]
    found = [(round(made.lr * factor, 9), round(made.head_lr * factor, 9)) for factor in each]
    return {pair: found.count(pair) for pair in dict.fromkeys(found)}


def test_the_rates_are_the_papers():
    assert rates("swav-1") == {(0.02, 5.0): 12, (0.004, 1.0): 4, (0.0008, 0.2): 4}
    assert rates("swav-10") == {(0.01, 0.2): 12, (0.002, 0.04): 4, (0.0004, 0.008): 4}
    assert rates("scratch") == {(0.1, 0.1): 30, (0.01, 0.01): 30, (0.001, 0.001): 20, (0.0001, 0.0001): 10}
    all_labels = FinetuneSettings("x", "a", "b", batch_size=4096).training(1.0)
    assert (all_labels.name, all_labels.epochs, all_labels.lr, all_labels.head_lr) == ("simclr", 30, 0.8, 0.8)
    assert [all_labels.factor(step, 10) for step in (0, 150, 300)] == pytest.approx([1, 0.5, 0])
    assert {name: (made().nesterov, made().weight_decay) for name, made in RECIPES.items()} == {
        "swav-1": (False, 0), "swav-10": (False, 0), "simclr": (True, 0), "scratch": (True, 1e-4),
    }  # fmt: skip


def test_the_recipe_follows_the_share_and_flags_override_it():
    few = FinetuneSettings("x", "a", "b", batch_size=64, head_lr=3.0, milestones=(10, 15), weight_decay=1e-3)
    names = [few.training(share).name for share in (0.01, 0.03, 0.031, 0.1, 0.3)]
    assert names == ["swav-1", "swav-1", "swav-10", "swav-10", "swav-10"]
    made = few.training(0.01)
    assert (made.lr, made.head_lr, made.milestones, made.weight_decay) == (0.005, 3.0, (0.5, 0.75), 1e-3)
    assert FinetuneSettings("untrained", "a", "b").training(0.01).name == "scratch"


def test_both_groups_of_the_optimiser_have_their_rates_at_every_step(whole):
    made, result, _ = whole
    pairs = [(0.05, 0.5)] * 12 + [(0.01, 0.1)] * 4 + [(0.002, 0.02)] * 4
    assert np.allclose(made.seen, pairs, rtol=1e-12)
    sizes = [sum(p.numel() for p in group["params"]) for group in made.train_step.optimiser.param_groups]
    head = 4 * (made.train_step.network.encoder.out_dim + 1)
    assert sizes == [sum(p.numel() for p in backbone("resnet10").parameters()), head]
    assert np.allclose([(r["lr"], r["head_lr"]) for r in metrics(made.settings.out) if "lr" in r], pairs, rtol=1e-12)
    assert result["labels"] == {"images": 96, "of": 96, "fraction": None, "list": None, "missing": 0}


def test_the_weights_are_those_of_plain_torch(shard_sets, whole):
    encoder = open_encoder("untrained", "resnet10").encoder.train().requires_grad_(True)
    head = nn.Linear(64, 4)
    head.weight.data.normal_(0, 0.01, generator=torch.Generator().manual_seed(0))
    head.bias.data.zero_()
    groups = [{"params": encoder.parameters()}, {"params": head.parameters(), "lr": 0.5}]
    optimiser = torch.optim.SGD(groups, lr=0.05, momentum=0.9)
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimiser, [3, 4], 0.2)
    with ShardSet(shard_sets / "train") as train:
        crops = LabelledCrops(train, ViewSpec.probe(32), global_batch=24, options=PipelineOptions(threads=1))
        for epoch in range(5):
            for batch in crops.epoch(epoch):
                optimiser.zero_grad()
                nn.CrossEntropyLoss()(head(encoder(batch.images)), batch.labels).backward()
                optimiser.step()
            schedule.step()
    ours, first = whole[2], open_encoder("untrained", "resnet10").encoder.state_dict()
    for name, value in encoder.state_dict().items():
        # float32 over 20 steps; the factors 0.2 and 0.04 of the rates are rounded in another order
        assert (ours["encoder"][name] - value).abs().max() <= 1e-4 * max(1.0, value.abs().max()), name
    assert (ours["head"]["weight"] - head.weight).abs().max() <= 1e-4
    moved = (ours["encoder"]["conv1.weight"] - first["conv1.weight"]).abs().max()
    assert moved > 1e-2 and not torch.equal(ours["encoder"]["bn1.running_mean"], first["bn1.running_mean"])


class Killed(Exception):
    pass


def test_a_training_that_was_cut_off_continues_bit_for_bit(shard_sets, tmp_path, whole):
    class Failing(Finetuning):
        def _evaluated(self):
            if self.step == 4:
                raise Killed
            return super()._evaluated()

    class Cut(Finetuning):
        def _log(self, *arguments):
            super()._log(*arguments)
            if self.step == 11:
                raise Killed

    chosen = settings(shard_sets, tmp_path, checkpoint_every=3, log_every=1)
    # an evaluation that fails is owed, and the steps before it are saved
    for kind, saved in ((Failing, {"step": 4, "owed": True}), (Cut, {"step": 9, "owed": False})):
        with pytest.raises(Killed):
            finetuned(chosen, kind)
        newest = checkpoint.newest(tmp_path / "checkpoints", FINETUNED)
        assert newest is not None and newest[1]["progress"] == {**saved, "bad": []}
    _, result, state = finetuned(chosen)
    assert (state["finetune"], state["progress"]) == (whole[2]["finetune"], {"step": 20, "owed": False, "bad": []})
    for name in ("encoder", "head", "optimiser"):
        assert_equal(state[name], whole[2][name])
    found = {r["step"]: r["top1"] for r in metrics(tmp_path) if "top1" in r}
    assert result == whole[1] and list(found) == [4, 8, 12, 16, 20] and found[20] == result["finetune_top1"]


def test_an_encoder_that_drops_features_drops_the_same_ones_in_a_training_that_was_cut_off(
    shard_sets, tmp_path, monkeypatch
):
    """As GhostNet and VGG of timm do before they are asked."""

    def dropping(**options):
        net = narrow_resnet10(1 / 8)(**options)
        net.add_module("drop", nn.Dropout(0.5))
        return net

    monkeypatch.setitem(encoders._BUILDERS, "resnet10", dropping)

    class Cut(Finetuning):
        def _log(self, *arguments):
            super()._log(*arguments)
            if self.step == 3:
                raise Killed

    options = {"epochs": 1, "log_every": 1, "checkpoint_every": 2}
    _, _, wanted = finetuned(settings(shard_sets, tmp_path / "whole", **options))
    with pytest.raises(Killed):
        finetuned(settings(shard_sets, tmp_path / "cut", **options), Cut)
    _, _, found = finetuned(settings(shard_sets, tmp_path / "cut", **options))
    for name in ("encoder", "head", "optimiser"):
        assert_equal(found[name], wanted[name])


def test_a_finished_training_reports_its_result_again_and_another_is_refused(shard_sets, whole):
    made, result, _ = whole
    assert finetuned(made.settings)[1] == result
    for change, message in (({"head_lr": 1.0}, r"head_lr was 0\.5, now 1\.0"), ({"fraction": 0.5}, "images was ")):
        with pytest.raises(checkpoint.CheckpointError, match=f"another finetune run: .*{message}"):
            finetuned(settings(shard_sets, made.settings.out, **change))
    run = read_run(made.settings.out)
    assert (run.kind, run.state, run.settings["recipe"], run.settings["lr"]) == (
        "finetune",
        "finished",
        "swav-10",
        0.05,
    )


def test_colours_are_told_apart_and_the_figures_are_exact(colours, tmp_path, in_process):
    # the batch is all that is trained on, so that BatchNorm's running statistics become those of the batches
    where = ("--train", colours / "train", "--val", colours / "val", "--out", tmp_path / "run")
    few = ("--arch", "resnet10", "--image-size", 32, "--batch-size", 24, "--epochs", 20, "--threads", 1)
    how = ("--fraction", 0.5, "--lr", 0.02, "--head-lr", 0.2, "--json", tmp_path / "r.json")
    done = in_process("-m", "fastmoco", "finetune", "--checkpoint", "untrained", *where, *few, *how)
    line = "fine-tuned top-1 100.00 %, top-5 100.00 %, trained on 24 of 48 labelled images (9 images, 3 classes)"
    assert done.stdout.strip() == line
    assert "training on 24 of 48 labelled images (50 %): 8 of each of 3 classes" in done.stderr
    assert "recipe scratch: 20 epochs, learning rate 0.02, classifier 0.2, × 0.1 at epochs 7, 13 and 18" in done.stderr
    result = json.loads((tmp_path / "r.json").read_text())
    assert (result["finetune_top1"], result["train"], result["val"], result["steps"]) == (100, 24, 9, 20)
    # in place of a pretrained encoder, by the next command, from the folder of the run
    from_it = in_process("-m", "fastmoco", "knn", "--checkpoint", tmp_path / "run", *where[:4], "--k", 1)
    assert "checkpoint of fastmoco finetune, resnet10" in from_it.stderr and "kNN top-1 100.00 %" in from_it.stdout
    config = ("--config", tmp_path / "run/config.json")
    assert (
        in_process("-m", "fastmoco", "finetune", *config, "--checkpoint", "untrained", *where[:4]).stdout == done.stdout
    )


@pytest.mark.long
@pytest.mark.distributed
def test_two_ranks_and_a_validation_set_of_odd_size_give_the_result_of_one(colours, tmp_path, torchrun):
    torchrun(2, SCRIPT, colours / "train", colours / "val", tmp_path)
    first, second = (json.loads((tmp_path / f"rank-{rank}.json").read_text()) for rank in (0, 1))
    assert first == second
    alone = settings(colours, tmp_path / "alone", recipe="auto", lr=0.02, head_lr=0.2, epochs=2)
    _, result, state = finetuned(alone)
    theirs = checkpoint.load(checkpoint.found(tmp_path / "run/checkpoints")[0], FINETUNED)
    assert first == result and result["val"] == 9 and theirs["finetune"] == state["finetune"]
    for name, value in theirs["encoder"].items():
        # BatchNorm has the statistics of both ranks' images; sums in another order
        assert (value - state["encoder"][name]).abs().max() <= 1e-3 * max(1.0, value.abs().max()), name


# what it takes and leaves


def test_the_exported_classifier_gives_the_same_scores(whole, tmp_path, in_process):
    made, _, _ = whole
    out = ("--format", "torchvision", "--out", tmp_path / "classifier.pth")
    said = in_process("-m", "fastmoco", "export", "--checkpoint", made.settings.out, *out).stdout
    assert (
        "torchvision.models.ResNet(torchvision.models.resnet.BasicBlock, [1, 1, 1, 1], num_classes=4) loads it" in said
    )
    assert f"{tmp_path / 'classifier.classes.json'} has the names of its classes" in said
    assert json.loads((tmp_path / "classifier.classes.json").read_text()) == list(made.sets.train.classes)
    net = narrow_resnet10(1 / 8)()
    net.fc = nn.Linear(64, 4)
    net.load_state_dict(torch.load(tmp_path / "classifier.pth", weights_only=True))
    images = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        ours = made.train_step.network.eval()(images)
        assert (net.eval()(images) - ours).abs().max() <= 1e-4 * ours.abs().max()
    assert read_encoder(made.settings.out).image_size == 32


def batch(bad, size=4):
    images, ids = torch.arange(float(size)).view(size, 1), torch.arange(10, 10 + size)
    return SimpleNamespace(images=images, labels=torch.arange(size) * 2, ids=ids, bad=dict.fromkeys(bad, "damaged"))


def test_the_next_good_image_stands_in_for_a_bad_one(whole):
    made = whole[0]
    images, labels = made._good(batch([0, 1, 3]))
    assert images.flatten().tolist() == [2, 2, 2, 2] and labels.tolist() == [4, 4, 4, 4]
    images, labels = made._good(batch([3]))
    assert images.flatten().tolist() == [0, 1, 2, 0] and labels.tolist() == [0, 2, 4, 0]
    with pytest.raises(FeatureError, match="all 4 images of a batch are bad"):
        made._good(batch(range(4)))


def test_a_loss_that_is_not_finite_ends_the_training(shard_sets, tmp_path):
    with pytest.raises(TrainingError, match=r"the loss is nan at step \d+; start another run with a lower --lr"):
        finetuned(settings(shard_sets, tmp_path, lr=1e6, head_lr=1e6, log_every=1))


def test_fp16_scales_the_loss_and_keeps_the_factor():
    torch.manual_seed(0)
    step = FinetuneStep(backbone("resnet10"), 3, RECIPES["simclr"](), 0.9, 0, "fp16", CPU)
    step.begin(32)
    images = torch.randn(4, 3, 32, 32)
    losses = [float(step(images, torch.tensor([0, 1, 2, 0]), 1.0)) for _ in range(6)]
    assert losses[0] == pytest.approx(np.log(3), abs=0.05) and losses[-1] < 0.8 * losses[0]
    assert step.state()["scaler"]["scale"] == 65536.0 and step.optimiser.defaults["nesterov"]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"fraction": 0.0}, r"--fraction is 0\.0"),
        ({"fraction": 1.5}, r"--fraction is 1\.5"),
        ({"fraction": 0.1, "list": Path("a.txt")}, r"--fraction 0\.1 draws the labels and --list a\.txt names them"),
        ({"head_lr": 0.0}, r"--head-lr is 0\.0"),
        ({"epochs": 10, "milestones": (4, 20)}, "epoch 20 is not within --epochs 10"),
        ({"epochs": 10, "recipe": "simclr", "milestones": (4,)}, "--milestones is for --schedule step"),
        ({"epochs": 10, "recipe": "simclr", "momentum": 0.0}, "--nesterov needs --momentum above 0"),
    ],
)
def test_impossible_settings_are_named(more, message):
    with pytest.raises(ConfigError, match=message):
        FinetuneSettings("x", "a", "b", **more)


def test_a_batch_larger_than_the_images_is_refused(shard_sets, tmp_path):
    with pytest.raises(ProbeError, match="--batch-size is 24, more than the 19 images that are trained on"):
        finetuned(settings(shard_sets, tmp_path, fraction=0.2))
