from __future__ import annotations

import json
import re
import shutil

import numpy as np
import pytest
import torch
import torchvision
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fastmoco.checkpoints.checkpoint import found
from fastmoco.model.encoders import backbone
from fastmoco.probes.encoders import open_encoder, unchanged
from fastmoco.probes.features import Bank
from fastmoco.probes.knn import CHUNK, TILE, Probe, knn_table, knn_top1, nearest
from fastmoco.probes.sets import ProbeError
from fastmoco.ranks.world import World
from fastmoco.views import resize_for
from pipelines.choice import installed
from shards import PackOptions, pack
from tests.support.runs import metrics


def votes_one_by_one(train, train_labels, val, val_labels, k, temperature):
    """The definition, sample by sample, in float64."""
    right = 0
    for feature, label in zip(val.double(), val_labels.tolist(), strict=True):
        similarity = train.double() @ feature
        nearest = sorted(range(len(train)), key=lambda i: -similarity[i])[:k]
        score = {}
        for i in nearest:
            name = train_labels[i].item()
            score[name] = score.get(name, 0) + (similarity[i] / temperature).exp().item()
        right += max(score, key=score.get) == label
    return 100 * right / len(val)


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("k", [1, 5, 20, 1000])
def test_equals_its_definition(k):
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(7, 16, generator=generator)
    train_labels = torch.randint(7, (200,), generator=generator)
    val_labels = torch.randint(7, (90,), generator=generator)

    def near(labels):
        return F.normalize(centres[labels] + 2.5 * torch.randn(len(labels), 16, generator=generator), dim=1)

    train, val = near(train_labels), near(val_labels)
    ours = knn_top1(train, train_labels, val, val_labels, k, 0.07)
    assert 20 < ours < 100
    assert ours == pytest.approx(votes_one_by_one(train, train_labels, val, val_labels, k, 0.07))


@pytest.mark.parametrize(("crop", "short_side"), [(224, 256), (64, 72), (32, 40), (96, 112)])
def test_resize_before_the_crop(crop, short_side):
    assert resize_for(crop) == short_side


def test_the_command_gives_what_the_training_monitor_gave(shard_sets, tmp_path, in_process, monkeypatch):
    monkeypatch.setattr("shards.progress.FIRST_LINE", 0.0)  # as if all of this were long work
    monkeypatch.setattr("shards.progress.LINE_EVERY", 0.0)
    run = tmp_path / "run"
    sets = ["--shards", shard_sets / "train", "--knn-val", shard_sets / "val"]
    train = ["--recipe", "demo", "--image-size", "32", "--batch-size", "32", "--queue-size", "40", "--epochs", "1"]
    in_process("-m", "fastmoco.train", *train, *sets, "--out", run, "--knn-every", "1")
    monitor = metrics(run)[-1]
    probe = ["--checkpoint", found(run / "checkpoints")[0], "--train", shard_sets / "train"]
    done = in_process("-m", "fastmoco.knn", *probe, "--val", shard_sets / "val", "--json", tmp_path / "knn.json")
    answer = json.loads((tmp_path / "knn.json").read_text())
    assert answer["knn_top1"] == monitor["knn_top1"] and answer["pipeline"] == "torch"
    assert "labelled images are read by the torch backend: the device is cpu" in done.stderr
    shown = re.findall(r"INFO (features|search.*?)( of \w+)?: ([\d,]+ of [\d,]+ \w+)", done.stderr)
    assert shown == [("features", " of train", "96 of 96 images"), ("features", " of val", "24 of 24 images"),
                     ("search for neighbours", "", "1 of 1 tiles")]  # fmt: skip
    assert (answer["resize"], answer["image_size"], answer["val"]) == (40, 32, 24)
    assert f"kNN top-1 {answer['knn_top1']:.2f} %" in done.stdout
    done = in_process("-m", "fastmoco.knn", *probe, "--val", tmp_path, check=False)
    assert done.returncode == 2 and "Traceback" not in done.stderr and str(tmp_path) in done.stderr


@pytest.mark.dali
def test_the_command_and_the_monitor_read_by_dali(shard_sets, tmp_path, in_process):
    pytest.importorskip("nvidia.dali")
    sets = ["--train", shard_sets / "train", "--val", shard_sets / "val"]
    train = ["--recipe", "demo", "--image-size", "32", "--batch-size", "32", "--queue-size", "40", "--epochs", "1"]
    run = ["--shards", shard_sets / "train", "--knn-val", shard_sets / "val", "--out", tmp_path / "run"]
    log = in_process("-m", "fastmoco.train", *train, *run, "--knn-every", "1", "--pipeline", "dali").stderr
    assert "labelled images are read by the dali-cpu backend: as requested" in log
    probe = ["--checkpoint", found(tmp_path / "run" / "checkpoints")[0], *sets, "--pipeline", "dali"]
    in_process("-m", "fastmoco.knn", *probe, "--decoder-load", "0.5", "--json", tmp_path / "knn.json")
    answer = json.loads((tmp_path / "knn.json").read_text())
    assert answer["knn_top1"] == metrics(tmp_path / "run")[-1]["knn_top1"]
    assert answer["pipeline"] == "dali-cpu"


def test_images_without_a_label_take_no_part(photos, shard_sets, tmp_path):
    loose = shutil.copytree(photos / "train", tmp_path / "images")
    for place, image in enumerate(sorted((photos / "val").rglob("*.jpg"))[:5]):
        shutil.copy(image, loose / f"loose{place}.jpg")
    pack(PackOptions(src=loose, out=tmp_path / "set", workers=1), progress=False)
    probe = Probe(tmp_path / "set", shard_sets / "val", 32, 40, World(0, 1, torch.device("cpu")))
    torch.manual_seed(0)
    encoder = backbone("resnet10").eval()
    bank, _ = probe.banks(encoder)
    assert len(probe.sets.train) == 101 and len(bank) == 96 and bank.dim == 512 and bank.labels_N.min() == 0
    whole = Probe(shard_sets / "train", shard_sets / "val", 32, 40, World(0, 1, torch.device("cpu")))
    assert probe(encoder) == whole(encoder)


@pytest.mark.parametrize("k", [1, 7, 300])
def test_tiles_give_what_the_whole_product_gives(k):
    generator = torch.Generator().manual_seed(0)
    train = F.normalize(torch.randn(250, 8, generator=generator), dim=1)
    val = F.normalize(torch.randn(1100, 8, generator=generator), dim=1)
    labels = torch.arange(250)
    whole, index = (val @ train.T).sort(dim=1, descending=True)
    for tile in (250, 90, 17):
        similar, named = nearest(zip(train.split(tile), labels.split(tile), strict=True), val, k)
        torch.testing.assert_close(similar[:, :250], whole[:, :k])
        assert (named[:, :250] == index[:, :k]).float().mean() > 0.999  # ties may be ordered differently by rounding
        assert (similar[:, 250:] == -torch.inf).all()


class Largest(TorchDispatchMode):
    """Records the size of the largest tensor that any operation returns."""

    elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self.elements = max(self.elements, tensor.numel())
        return result


def test_memory_does_not_grow_with_the_sets():
    generator = np.random.default_rng(0)

    def bank(samples):
        values = generator.standard_normal((samples, 4), dtype=np.float32)
        return Bank([values], torch.from_numpy(generator.integers(0, 3, samples)))

    with Largest() as largest:
        (top1,) = knn_table(bank(50_000), bank(2100), [(20, 0.07)], 3, World(0, 1, torch.device("cpu")))
    assert 20 < top1 < 50
    assert largest.elements == CHUNK * TILE < 50_000 * 2100 / 4


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """The weights of an untrained ResNet-18 under torchvision's names."""
    torch.manual_seed(3)
    path = tmp_path_factory.mktemp("weights") / "resnet18.pth"
    torch.save(torchvision.models.resnet18().state_dict(), path)
    return path


def arguments(shard_sets, checkpoint, *more):
    sets = ("--train", shard_sets / "train", "--val", shard_sets / "val", "--image-size", 32)
    return "--checkpoint", checkpoint, *sets, *more


TABLE = ("--k", 1, 5, 20, "--temperature", 0.07, 0.2)


def test_a_table_is_that_of_single_calls(shard_sets, weights, tmp_path, in_process):
    where = arguments(shard_sets, weights, "--arch", "resnet18")
    shown = in_process("-m", "fastmoco.knn", *where, *TABLE, "--json", tmp_path / "table.json").stdout
    table = json.loads((tmp_path / "table.json").read_text())
    assert [(row["k"], row["temperature"]) for row in table["results"]] == [
        (k, t) for k in (1, 5, 20) for t in (0.07, 0.2)
    ]
    assert re.search(r"k +τ 0.07 +τ 0.2\n +1 +\d+.\d\d +\d+.\d\d\n", shown)
    assert len({row["knn_top1"] for row in table["results"]}) > 1
    in_process("-m", "fastmoco.knn", *where, "--k", 20, "--temperature", 0.2, "--json", tmp_path / "one.json")
    one = json.loads((tmp_path / "one.json").read_text())
    assert one["knn_top1"] == table["results"][-1]["knn_top1"] and one["encoder"] == table["encoder"]


def test_the_cache_serves_the_same_encoder_set_and_size_alone(shard_sets, tmp_path, in_process, monkeypatch):
    def probe(*more, seed=0, size=32):
        where = arguments(shard_sets, "untrained", "--arch", "resnet10", "--cache", tmp_path / "cache", *more)
        log = in_process("-m", "fastmoco.knn", *where, "--seed", seed, "--image-size", size).stderr
        return [line.split(" INFO ")[-1].split(" the cache")[0] for line in log.splitlines() if "cache" in line]

    fresh = ["wrote 96 features to", "wrote 24 features to"]
    found = ["took 96 features from", "took 24 features from"]
    assert probe() == fresh
    assert probe() == found
    assert probe(seed=1) == fresh
    assert probe(size=40) == fresh
    assert probe("--precision", "bf16") == fresh
    for has_bf16 in (False, True):  # which another machine that has the same cache may not
        monkeypatch.setattr("torch.cpu._is_amx_tile_supported", lambda: has_bf16)  # noqa: B023
        assert probe("--precision", "auto") == found
    folders = 8
    if installed():
        assert probe("--pipeline", "dali") == fresh
        folders += 2
    assert len(list((tmp_path / "cache").iterdir())) == folders and not list((tmp_path / "cache").rglob("*.partial"))


def cut_short(folder):
    path = folder / "features-0-of-1.npy"
    path.write_bytes(path.read_bytes()[:-100])


def of_another_encoder(folder):
    about = json.loads((folder / "about.json").read_text())
    (folder / "about.json").write_text(json.dumps(about | {"encoder": "0" * 64}))


@pytest.mark.parametrize("spoil", [cut_short, of_another_encoder])
def test_an_unusable_cache_is_reported_and_rebuilt(shard_sets, tmp_path, in_process, spoil):
    where = arguments(shard_sets, "untrained", "--arch", "resnet10", "--cache", tmp_path / "cache")
    first = in_process("-m", "fastmoco.knn", *where)
    for folder in (tmp_path / "cache").iterdir():
        spoil(folder)
    again = in_process("-m", "fastmoco.knn", *where)
    assert again.stdout == first.stdout
    assert again.stderr.count("cannot be used and are computed again") == 2 and again.stderr.count("wrote") == 2


@pytest.fixture(scope="module")
def odd_sets(photos, tmp_path_factory):
    """A set without labels, and one that lacks a class."""
    folder = tmp_path_factory.mktemp("odd")
    classes = sorted(path for path in (photos / "val").iterdir())
    (folder / "flat").mkdir()
    for place, image in enumerate(sorted(classes[0].iterdir())):
        shutil.copy(image, folder / "flat" / f"{place}.jpg")
    for path in classes[1:]:
        shutil.copytree(path, folder / "three" / path.name)
    for name in ("flat", "three"):
        pack(PackOptions(src=folder / name, out=folder / "sets" / name, workers=1), progress=False)
    return folder / "sets"


@pytest.mark.parametrize("name", ["knn", "linear"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--checkpoint", "nowhere.pt"], "there is no file nowhere.pt"),
        (["--checkpoint", "WEIGHTS", "--arch", "resnet50"], "holds a resnet18, not a resnet50; give --arch resnet18"),
        (["--checkpoint", "WEIGHTS", "--arch", "resnet99"], "unknown --arch 'resnet99'; known: resnet10"),
        (["--checkpoint", "untrained"], "add --arch"),
        (["--val", "flat"], "has no labels; pack a folder with one subfolder for each class"),
        (["--train", "flat"], "has no labels; pack a folder with one subfolder for each class"),
        (["--train", "three"], "does not have 1 class of the validation set"),
        (["--val", "nowhere"], "nowhere"),
        (["--image-size", "32", "--resize", "16"], "crop 32 does not fit a short side of 16"),
    ],
)
def test_a_users_mistake_ends_in_one_line(shard_sets, odd_sets, weights, tmp_path, in_process, name, change, message):
    change = [weights if value == "WEIGHTS" else value for value in change]
    change = [odd_sets / value if value in ("flat", "three") else value for value in change]
    where = arguments(shard_sets, "untrained", *(() if "--checkpoint" in change else ("--arch", "resnet10")))
    out = ("--out", tmp_path / "run", "--batch-size", 32) if name == "linear" else ()
    done = in_process("-m", f"fastmoco.{name}", *where, *out, *change, check=False)
    assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("flag", "value"), [("--k", 0), ("--temperature", 0), ("--batch-size", 0), ("--decoder-load", 2.0)]
)
def test_impossible_numbers_are_named(shard_sets, in_process, flag, value):
    where = arguments(shard_sets, "untrained", "--arch", "resnet10")
    done = in_process("-m", "fastmoco.knn", *where, flag, value, check=False)
    assert done.returncode == 2 and f"{flag} is {value}" in done.stderr


def test_an_encoder_that_a_probe_changes_is_found_out(shard_sets):
    encoder = open_encoder("untrained", "resnet10").encoder
    images = torch.randn(4, 3, 32, 32)
    with unchanged(encoder):
        encoder(images)
    encoder.train()  # as by a probe that forgets evaluation mode: BatchNorm's statistics change without any gradient
    with pytest.raises(ProbeError, match="the encoder changed during the probe"), unchanged(encoder):
        encoder(images)
