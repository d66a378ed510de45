"""`import fastmoco`: pretraining, encoders and features from Python, as a script or a notebook uses them."""

from __future__ import annotations

import io
import json
import logging
import shutil
import sys
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import fastmoco
from fastmoco.api.sources import as_set
from fastmoco.checkpoints import checkpoint
from fastmoco.model import encoders
from fastmoco.runs.errors import Stopped
from pipelines import LabelledPipeline
from pipelines.transform import CentreTransform
from shards import PackError, ShardSet
from tests.support.pictures import encoded, gradient
from tests.support.runs import narrow_resnet10
from tests.support.scenes import CLASSES, write_voc

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = Path(__file__).parent / "scripts"
SMALL = {
    "recipe": "demo", "image_size": 32, "batch_size": 8, "queue_size": 16, "steps": 4, "threads": 1, "log_every": 2,
}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    """A cache of this module's own, and the smallest encoder with a quarter of its channels."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FASTMOCO_CACHE", str(folder))
        patch.setitem(encoders._BUILDERS, "resnet10", narrow_resnet10(1 / 4))
        yield folder


class Recorder(fastmoco.Callback):
    """Records its calls."""

    def __init__(self):
        self.calls = []

    def on_step(self, training):
        self.calls.append(("step", training.step))

    def on_log(self, training, figures):
        self.calls.append(("log", figures["step"], sorted({"loss", "knn_top1", "lr"} & set(figures))))

    def on_checkpoint(self, training, path):
        self.calls.append(("checkpoint", path.name, path.is_file()))

    def on_end(self, training):
        self.calls.append(("end", training.step, training.epoch))


@pytest.fixture(scope="module")
def trained(photos, tmp_path_factory, cache):
    """A run on the folder of 24 photographs, what its callback was told, and the log."""
    recorder, said = Recorder(), []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())
    logging.getLogger("fastmoco").addHandler(handler)
    logging.getLogger("fastmoco").setLevel(logging.INFO)
    run = fastmoco.pretrain(
        photos / "val", out=tmp_path_factory.mktemp("api") / "run", callbacks=[recorder], knn_every=1,
        knn_val=as_set(photos / "val").place, **SMALL,
    )  # fmt: skip
    logging.getLogger("fastmoco").removeHandler(handler)
    return run, recorder.calls, said


def test_a_folder_is_packed_then_trained_on(trained, cache):
    run, _, said = trained
    (packed,) = (cache / "packed").iterdir()
    assert any(line.startswith("packing ") and f"into {packed}; later calls find it there" in line for line in said)
    assert run.checkpoint.name == "step-00000004.pt" and run.checkpoint.parent.parent == run.folder
    assert [record["step"] for record in run.metrics if "loss" in record] == [1, 2, 4]
    config = checkpoint.load(run.checkpoint)["config"]
    assert (config["recipe"], config["steps"], config["shards"]) == ("demo", 4, str(packed))


def test_callbacks_are_told_of_steps_figures_checkpoints_and_the_end(trained):
    figures = ["loss", "lr"]
    assert trained[1] == [
        ("log", 0, ["knn_top1"]),
        *[("step", 1), ("log", 1, figures), ("step", 2), ("log", 2, figures), ("step", 3), ("log", 3, ["knn_top1"])],
        *[("step", 4), ("log", 4, figures), ("log", 4, ["knn_top1"])],
        *[("checkpoint", "step-00000004.pt", True), ("end", 4, 4 / 3)],
    ]


def test_a_run_that_a_callback_stops_is_saved_and_continues_bit_for_bit(trained, photos, tmp_path, monkeypatch):
    class Stop(fastmoco.Callback):
        ended = 0

        def on_step(self, training):
            if training.step == 2:
                training.stop()

        def on_end(self, training):
            self.ended = training.step

    stop = Stop()
    run = fastmoco.pretrain(photos / "val", out=tmp_path / "run", callbacks=[stop], **SMALL)
    assert (run.checkpoint.name, stop.ended) == ("step-00000002.pt", 2)
    said = json.loads((tmp_path / "run/status.json").read_text())
    assert (said["state"], said["step"]) == ("stopped", 2) and said["reason"].startswith("stopped after step 2;")
    again = fastmoco.pretrain(photos / "val", out=tmp_path / "run", **SMALL)
    ours, whole = (checkpoint.load(each.checkpoint)["query_encoder"] for each in (again, trained[0]))
    assert all(torch.equal(ours[name], whole[name]) for name in whole)


def test_an_exception_of_a_callback_ends_the_run_with_the_state_saved(photos, tmp_path):
    class Failing:  # any object with one of the methods
        def on_log(self, training, figures):
            if figures["step"] == 2:
                raise KeyError("of the user's own")

    with pytest.raises(KeyError, match="of the user's own"):
        fastmoco.pretrain(photos / "val", out=tmp_path / "run", callbacks=[Failing()], **SMALL)
    assert [path.name for path in checkpoint.found(tmp_path / "run/checkpoints")] == ["step-00000002.pt"]


def test_a_signal_stops_a_run_with_callbacks_as_any_other(photos, tmp_path):
    import signal

    class Signal:
        def on_step(self, training):
            signal.raise_signal(signal.SIGTERM)

    with pytest.raises(Stopped, match="stopped after step 1; the same command continues"):
        fastmoco.pretrain(photos / "val", out=tmp_path / "run", callbacks=[Signal()], **SMALL)


@pytest.mark.distributed
def test_under_torchrun_one_rank_packs_and_calls_back(photos, tmp_path, torchrun):
    script = SCRIPTS / "pretrain_with_callback.py"
    done = torchrun(2, script, photos / "val", "run", env={"FASTMOCO_CACHE": str(tmp_path / "cache")})
    assert done.stdout.count("packed 24 images") == 1
    lines = sorted(line for line in done.stdout.splitlines() if line.startswith("rank "))
    # asked for after step 2, agreed on before step 3
    newest = "newest step-00000002.pt"
    assert lines == [f"rank 0: told of steps [1, 2], {newest}", f"rank 1: told of steps [], {newest}"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"arc": "resnet18"}, "unknown setting arc='resnet18'; did you mean arch"),
        ({"head": "mpl"}, "head is 'mpl'; it must be one of linear, mlp"),
        ({"epochs": "3"}, "epochs is '3'; it must be a whole number"),
        ({"compile": 1}, "compile is 1; it must be True or False"),
        ({"milestones": 0.5}, "milestones is 0.5; it must be a list of numbers"),
        ({"temperature": -1}, "--temperature is -1.0; it must be above 0"),
    ],
)
def test_a_setting_that_cannot_be_is_answered(changes, message):
    with pytest.raises(fastmoco.UserError) as caught:
        fastmoco.recipe("moco-v2", **changes)
    assert message in str(caught.value)


def test_recipes_are_settings_that_pretrain_takes(photos, tmp_path):
    config = fastmoco.recipe("moco-v2", arch="resnet18", epochs=np.int64(5), milestones=[0.5], out="there", init=None)
    assert (config.arch, config.epochs, config.milestones, config.out) == ("resnet18", 5, (0.5,), Path("there"))
    assert config.to_dict()["epochs"].__class__ is int
    small = dict(SMALL)
    name = small.pop("recipe")
    run = fastmoco.pretrain(photos / "val", recipe=fastmoco.recipe(name, **small), out=tmp_path / "run", steps=1)
    assert run.checkpoint.name == "step-00000001.pt"
    for wrong in ({"shards": "set"}, {"callbacks": [object()]}, {"callbacks": [Recorder]}, {"batch_siz": 2}):
        with pytest.raises(fastmoco.UserError):
            fastmoco.pretrain(photos / "val", out=tmp_path / "other", **wrong)
    assert not (tmp_path / "other").exists()


def test_an_encoder_comes_with_the_transform_of_the_evaluation(trained, photos):
    run = trained[0]
    encoder, transform = run.encoder()
    assert not encoder.training and (transform.image_size, transform.resize) == (32, 40)
    with ShardSet(as_set(photos / "val").place) as shard_set:
        (batch,) = LabelledPipeline(shard_set, resize=40, crop=32, batch_size=24)
        images = [Image.open(path) for path in _files(shard_set, photos / "val")]
        assert torch.equal(torch.stack([transform(image) for image in images]), batch.images)
    weights = run.folder.parent / "encoder.pth"
    torch.save(encoder.state_dict(), weights)  # torchvision's layout
    other, transform = fastmoco.load_encoder(weights, image_size=64)
    assert (transform.image_size, transform.resize) == (64, 72)
    assert all(torch.equal(value, encoder.state_dict()[name]) for name, value in other.state_dict().items())
    with pytest.raises(fastmoco.UserError, match="is a folder without checkpoints; give a file, or the"):
        fastmoco.load_encoder(photos)
    (hub := run.folder.parent / "hub").mkdir()
    (hub / "model.safetensors").touch()  # as fastmoco export --format hf-hub names it
    with pytest.raises(fastmoco.UserError, match=r"without checkpoints; give its file .*/hub/model\.safetensors"):
        fastmoco.load_encoder(hub)
    with pytest.raises(fastmoco.UserError, match=r"^s3://bucket/run is a URL; copy it to a local disk"):
        fastmoco.load_encoder("s3://bucket/run")


def _files(shard_set, folder):
    by_bytes = {path.read_bytes(): path for path in folder.rglob("*.jpg")}
    return [by_bytes[shard_set.read(sample)] for sample in range(len(shard_set))]


def test_the_transform_takes_images_of_any_mode_upright():
    transform = CentreTransform(8, 8)
    grey = gradient(12, 8).convert("L")
    assert torch.equal(transform(grey), transform(grey.convert("RGB")))
    turned = gradient(8, 12)
    exif = Image.Exif()
    exif[0x0112] = 6
    with Image.open(io.BytesIO(encoded(turned, "PNG", exif=exif))) as image:
        assert torch.equal(transform(image), transform(turned.transpose(Image.Transpose.ROTATE_270)))


def test_a_folder_its_set_and_its_list_have_equal_features(trained, photos):
    run, folder = trained[0], photos / "val"
    of_folder = fastmoco.embed(folder, run)
    paths = sorted(folder.rglob("*.jpg"))
    assert of_folder.names == tuple(str(path.relative_to(folder)) for path in paths)
    assert of_folder.features.shape == (24, 128) and of_folder.features.dtype == np.float32
    assert [of_folder.classes[label] for label in of_folder.labels] == [path.parent.name for path in paths]
    of_set = fastmoco.embed(as_set(folder).place, run.encoder(), batch_size=5)
    assert np.abs(of_set.features[of_folder.ids] - of_folder.features).max() <= 1e-5  # other batches
    assert [of_set.names[sample] for sample in of_folder.ids] == list(of_folder.names)
    of_list = fastmoco.embed([str(path) for path in paths], run.checkpoint)
    assert np.array_equal(of_list.features, of_folder.features)
    assert of_list.names[0] == str(paths[0]) and of_list.labels.tolist() == [-1] * 24
    encoder, transform = run.encoder()
    with torch.no_grad():
        one = encoder(transform(Image.open(paths[3]))[None])[0].numpy()
    assert np.abs(of_list.features[3] - one).max() <= 1e-5
    with pytest.raises(PackError, match=r"item 1 .* cannot be used: not an image"):
        fastmoco.embed([paths[0], __file__], run)


def test_images_that_were_left_out_of_a_folder_have_no_row(trained, photos, tmp_path):
    folder = tmp_path / "photos"
    shutil.copytree(photos / "val", folder)
    (folder / "dots/a.jpg").write_bytes(b"no image")
    found = fastmoco.embed(folder, trained[0])
    assert len(found) == 24 and "dots/a.jpg" not in found.names and len(set(found.names)) == 24


NEWEST = "checkpoints/step-00000004.pt: checkpoint of fastmoco train"
WITH_A_RUN = {
    "knn": "--checkpoint RUN --train SET --val SET --k 5",
    "linear": "--checkpoint RUN --train SET --val SET --fast --epochs 1 --batch-size 8 --out OUT",
    "export": "--checkpoint RUN --format torchvision --out OUT/encoder.pth",
    "detect": "--init RUN --arch resnet10 --train VOC:trainval --val VOC:test --classes CLASSES --iterations 0"
    " --threads 1 --out OUT --batch-size 1 --test-size 80 --max-size 128 --rois-per-image 24 --test-proposals 30",
    "train": "--init RUN --shards SET --out OUT --recipe demo --image-size 32 --batch-size 8 --queue-size 16 --steps 1"
    " --threads 1",
}


@pytest.mark.parametrize("name", WITH_A_RUN)
def test_a_run_stands_for_its_newest_checkpoint(name, trained, photos, tmp_path, in_process):
    write_voc(tmp_path / "voc", {"trainval": (0, 2), "test": (1000, 1)})
    places = {"RUN": trained[0].folder, "SET": as_set(photos / "val").place, "VOC": tmp_path / "voc",
              "OUT": tmp_path / "out", "CLASSES": " ".join(CLASSES)}  # fmt: skip
    line = WITH_A_RUN[name]
    for word, place in places.items():
        line = line.replace(word, str(place))
    done = in_process("-m", f"fastmoco.{name}", *line.split())
    assert f"{trained[0].folder}/{NEWEST}" in done.stderr


def test_another_run_is_continued_from_its_newest_checkpoint(trained, photos, tmp_path, in_process):
    small = [word for name, value in SMALL.items() for word in (f"--{name.replace('_', '-')}", value)]
    more = ["--shards", as_set(photos / "val").place, "--out", tmp_path / "run", "--resume", trained[0].folder]
    said = in_process("-m", "fastmoco.train", *small, *more, "--steps", 5).stderr
    assert f"continuing from {trained[0].checkpoint}: 4 of 5 steps are done" in said
    said = in_process("-m", "fastmoco.train", *small, *more[:2], "--resume", photos, check=False).stderr
    assert f"--resume: {photos} is a folder without checkpoints" in said


def test_the_notebook_runs_cell_by_cell(photos, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(photos / "val", "my_photos")
    notebook = json.loads((ROOT / "docs/tutorials/quickstart.ipynb").read_text(encoding="utf-8"))
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert not any(cell["outputs"] or cell["execution_count"] for cell in cells)
    lines = [line for cell in cells for line in cell["source"] if line.strip()]
    assert len(lines) <= 11  # ten and an import
    names: dict = {}
    for cell in cells:
        exec(compile("".join(cell["source"]), "quickstart.ipynb", "exec"), names)
    assert "is most similar to [" in capsys.readouterr().out
    assert names["found"].features.shape == (24, 128) and names["run"].checkpoint.name == "step-00000006.pt"


@pytest.mark.parametrize("package", ["fastmoco", "pipelines", "shards"])
def test_no_public_name_is_a_modules(package):
    """Its import would put the module in the name's place. Of every folder of the package."""
    for file in (ROOT / package).rglob("__init__.py"):
        inside = {path.stem for path in file.parent.iterdir() if path.suffix == ".py" or path.is_dir()}
        module = import_module(".".join(file.parent.relative_to(ROOT).parts))
        assert not inside & set(getattr(module, "__all__", ())), file


def test_the_package_is_imported_without_torch_and_lists_what_it_has(command):
    names = "pretrain recipe load_encoder embed load_embeddings Callback Training Run Embeddings LoadedEncoder"
    names += " Config UserError"
    assert {*names.split(), "__version__"} == set(fastmoco.__all__) <= set(dir(fastmoco))
    assert all(getattr(fastmoco, name) is not None for name in fastmoco.__all__)
    with pytest.raises(AttributeError, match="no attribute 'pretrian'"):
        fastmoco.pretrian  # noqa: B018
    code = (
        "import fastmoco, sys; fastmoco.recipe('moco-v2', arch='resnet18'); print({'torch', 'numpy'} & {*sys.modules})"
    )
    assert command(sys.executable, "-c", code, cold=True).stdout == "set()\n"
    # what type checkers and editors read is what is imported
    text = (ROOT / "fastmoco/__init__.py").read_text(encoding="utf-8")
    for module, places in fastmoco._PLACES.items():
        assert f"    from {module} import {', '.join(places)}\n" in text
