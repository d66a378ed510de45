"""A source of splits (`imagenet/{train,val}`): the training split is packed, and a line says so first."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

import numpy as np
import pytest

from shards import PackError, PackOptions, ShardSet, pack
from shards.packing.options import check_apart
from shards.packing.preview import preview
from shards.packing.splits import training_split
from tests.support.folders import same_files
from tests.support.pictures import gradient, jpeg
from tests.support.sets import pack_set

IMAGE = jpeg(gradient())


def put(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(IMAGE if name.endswith(".jpg") else b"text")
    return root


@pytest.fixture
def imagenet(tmp_path, monkeypatch) -> Path:
    """As most have it: splits with class folders, beside a devkit, lists and hidden files. Three images and two."""
    monkeypatch.chdir(tmp_path)
    put(Path("imagenet"), "train/cat/1.jpg", "train/cat/2.jpg", "train/dog/1.jpg", "val/cat/3.jpg", "val/dog/4.jpg")
    return put(
        Path("imagenet"), "devkit/map.txt", "LOC_synset_mapping.txt", "README.md", ".cache/1.jpg", "@eaDir/2.jpg"
    )


def chosen(src: str | Path, **options) -> tuple[tuple[str, ...], int, str]:
    """Classes and number of the images that a dry run would pack, and the first line that it prints."""
    plan, lines = preview(PackOptions(src, "shards/", **options))
    return plan.classes, plan.images, lines[0]


def test_train_is_packed_with_its_own_classes_and_said_first(imagenet, cli):
    said = [
        "imagenet/ holds the splits train and val: packing train alone",
        "to pack val: fastmoco pack --src imagenet/val --out shards-val/",
        "left out the folder devkit without images",
        "to pack all of it, with these folders as the classes: add --all-splits",
    ]
    line = ("--src", "imagenet/", "--out", "shards/", "--workers", 1)
    assert cli(*line, "--dry-run").stdout.splitlines()[:5] == [
        *said[:1], f"{said[1]} --workers 1", *said[2:], "source     imagenet/train (folder), 3 images",
    ]  # fmt: skip
    first = cli(*line)
    assert first.stdout.splitlines()[:4] == [said[0], f"{said[1]} --workers 1", *said[2:]] and first.returncode == 0
    with ShardSet("shards") as packed:
        assert packed.classes == ("cat", "dog") and sorted(packed.labels(np.arange(3)).tolist()) == [0, 0, 1]
    assert same_files(Path("shards"), pack_set(imagenet / "train", Path("alone")))
    assert "nothing was left to do" in cli(*line).stdout
    # the printed command, as a shell would read it
    words = shlex.split(first.stdout.splitlines()[1].removeprefix("to pack val: "))
    assert words[:2] == ["fastmoco", "pack"] and cli(*words[2:]).returncode == 0
    with ShardSet("shards-val") as packed:
        assert packed.classes == ("cat", "dog") and len(packed) == 2


def test_all_splits_packs_the_whole_folder_and_continues_what_was_packed_so_before(imagenet, cli):
    line = ("--src", "imagenet", "--out", "shards", "--workers", 1)
    assert "2 classes" in (done := cli(*line, "--all-splits")).stdout and "split" not in done.stdout
    with ShardSet("shards") as packed:
        assert packed.classes == ("train", "val") and len(packed) == 5
        assert "all_splits" not in packed.manifest.options  # as in sets of earlier versions
    refused = cli(*line)
    assert refused.returncode == 2 and refused.stderr.count("\n") == 1
    assert "it has the splits train, val as classes, which --all-splits continues" in refused.stderr
    assert "nothing was left to do" in cli(*line, "--all-splits").stdout
    assert "packed 3 images" in cli(*line, "--overwrite").stdout


@pytest.mark.parametrize(
    ("names", "classes", "images", "says"),
    [
        (["TRAIN/a/1.jpg", "TRAIN/b/2.jpg", "Val/3.jpg"], ("a", "b"), 2, "the splits TRAIN and Val: packing TRAIN"),
        (["train2017/1.jpg", "val2017/2.jpg", "annotations/x.json"], (), 1, "train2017 and val2017: packing train2017"),
        (["train/1.jpg", "valid/2.jpg", "test/3.jpg"], (), 1, "the splits test, train and valid: packing train"),
        (["train/a/1.jpg", "train/b/1.jpg"], ("a", "b"), 2, "the split train: packing train"),
        (["training/a/1.jpg", "testing/b/1.jpg"], (), 1, "testing and training: packing training"),
        (["train/a/1.jpg", "trainval/a/1.jpg"], (), 1, "train and trainval: packing train"),
        (["train/a/1.jpg", "val/a/1.jpg", "logo.jpg"], (), 1, "train and val: packing train"),
        # no splits: other folders with images, or images beside a folder that is called train
        (["train/1.jpg", "car/2.jpg", "bus/3.jpg"], ("bus", "car", "train"), 3, "source "),
        (["train/1.jpg", "val/2.jpg", "extra/deep/3.jpg"], ("extra", "train", "val"), 3, "source "),
        (["train/1.jpg", "a.jpg", "b.jpg"], (), 3, "source "),
    ],
)
def test_which_folders_are_splits(tmp_path, names, classes, images, says):
    found = chosen(put(tmp_path / "src", *names))
    assert found[:2] == (classes, images) and says in found[2]


def test_splits_beside_other_classes_are_pointed_out_also_by_a_dry_run(tmp_path, cli):
    src = put(tmp_path / "src", "train/1.jpg", "val/2.jpg", "extra/3.jpg")
    hint = "the classes train, val look like splits; to pack one split, name its folder as --src"
    line = ("--src", src, "--out", tmp_path / "out", "--workers", 1)
    assert f"note       {hint}\n" in cli(*line, "--dry-run").stdout
    assert f"note: {hint}\n" in cli(*line).stdout
    assert "look like" not in cli(*line, "--all-splits").stdout


def test_images_beside_splits_are_counted(tmp_path):
    src = put(tmp_path / "src", "train/1.jpg", "val/2.jpg", "logo.jpg", "x.jpg")
    assert "left out 2 images beside the splits" in preview(PackOptions(src, "out"))[1]


@pytest.mark.parametrize(
    ("names", "which"),
    [
        (["val/1.jpg", "test/2.jpg"], "none is for training"),
        (["train/1.jpg", "Train/2.jpg"], "several are for training"),
    ],
)
def test_without_one_training_split_the_user_is_told_what_to_do(tmp_path, names, which, cli):
    src = put(tmp_path / "src", *names)
    done = cli("--src", src, "--out", tmp_path / "out")
    first, second = sorted(name.partition("/")[0] for name in names)
    assert done.returncode == 2 and done.stderr == (
        f"fastmoco-shard: --src {src} holds the splits {first} and {second}, of which {which}; name one, such as --src"
        f" {src}/{first}, or add --all-splits, which packs all of it with these folders as the classes\n"
    )
    assert not (tmp_path / "out").exists()
    assert chosen(src, all_splits=True)[:2] == ((first, second), 2)
    assert pack(PackOptions(src / second, tmp_path / "out", workers=1), progress=False).samples == 1


def test_tars_and_tables_in_splits(imagenet, tmp_path):
    """The kind is that of the training split."""
    for part in ("train", "val"):
        pack_set(imagenet / part, tmp_path / "tars" / part)
        (tmp_path / "tars" / part / "manifest.json").unlink()
        (tmp_path / "tables" / part).mkdir(parents=True)
        (tmp_path / "tables" / part / "part-0.csv").write_text("path\n" + "cat/1.jpg\n" * (part == "train") + "x\n")
    said = f"{tmp_path / 'tars'} holds the splits train and val: packing train alone"
    assert chosen(tmp_path / "tars") == (("0", "1"), 3, said)
    assert chosen(tmp_path / "tables", root="imagenet/train")[1] == 2


def test_the_command_for_the_other_split_has_the_users_flags_but_no_secret(tmp_path):
    src = put(tmp_path / "my photos", "train/1.jpg", "val/2.jpg")
    options = PackOptions(
        src, tmp_path / "sets" / "train", resize=64, check=False, exclude=["*.gif", "train/old", "val/new"], workers=3,
        limit=9, headers=["Authorization: Bearer SECRET"], timeout=2.5, include_hidden=True, overwrite=True,
    )  # fmt: skip
    _, command = preview(options)[1][1].split(": ", 1)
    assert shlex.split(command) == [
        *(
            "fastmoco",
            "pack",
            "--src",
            f"{src}/val",
            "--out",
            f"{tmp_path}/sets/val",
            "--workers",
            "3",
            "--resize",
            "64",
        ),
        *("--no-check", "--exclude", "*.gif", "--exclude", "/new", "--include-hidden", "--limit", "9"),
        *("--timeout", "2.5", "--header", "Authorization: ..."),
    ]


def test_the_command_for_the_other_split_can_be_run(imagenet):
    options = PackOptions(
        imagenet, "shards", not_in=["my test", "b"], names=False, keep_16_bit=True, percentiles=(0.5, 99)
    )
    words = shlex.split(training_split(options)[1][1].split(": ", 1)[1])
    flags = ("--keep-16-bit", "--percentiles", "0.5", "99", "--not-in", "my test", "--not-in", "b", "--no-names")
    assert words == ["fastmoco", "pack", "--src", "imagenet/val", "--out", "shards-val", *flags]
    lines = training_split(PackOptions(imagenet, "shards", limit=2, append=True))[1]
    assert lines[1].endswith("--src imagenet/val --out shards-val --limit 2")  # which is no set to append to


def test_patterns_with_the_name_of_a_split_keep_their_meaning(imagenet):
    assert chosen(imagenet, exclude=["val/*"])[2] == "imagenet holds the split train: packing train alone"
    assert chosen(imagenet, exclude=["train/cat"])[:2] == ((), 1)
    assert chosen(imagenet, exclude=["cat/2.jpg"])[1] == 2
    with pytest.raises(PackError, match="holds the split val, of which none is for training"):
        chosen(imagenet, exclude=["train"])


@pytest.mark.parametrize(
    ("src", "out", "how"),
    [
        (".", "shards/", "--out shards/ is inside --src ."),
        ("imagenet/", "imagenet", "--out imagenet is the same as --src imagenet/"),
        ("imagenet", "imagenet/train/x", "--out imagenet/train/x is inside --src imagenet"),
        ("imagenet/train", ".", "--out . holds --src imagenet/train"),
        ("link", "imagenet/sets", "--out imagenet/sets is inside --src link"),
        ("imagenet", "link/sets", "--out link/sets is inside --src imagenet"),
        ("file:///CWD/imagenet", "imagenet/sets", "is inside --src CWD/imagenet"),
    ],
)
def test_an_output_inside_the_source_is_refused_before_any_work(imagenet, tmp_path, src, out, how):
    os.symlink("imagenet", "link")
    before = sorted(tmp_path.rglob("*"))
    options = PackOptions(src.replace("/CWD", str(tmp_path)), out, workers=1)
    for run in (pack, preview):
        with pytest.raises(PackError) as refused:
            run(options)
        text = str(refused.value)
        assert how.replace("CWD", str(tmp_path)) in text
        check_apart(options.src, text.rpartition("--out ")[2])  # the remedy is one
    assert sorted(tmp_path.rglob("*")) == before


def test_an_output_that_a_link_in_the_training_split_leads_to_is_refused(imagenet, tmp_path):
    os.rename(imagenet / "train", "elsewhere")
    os.symlink("../elsewhere", imagenet / "train")
    with pytest.raises(PackError, match="--out elsewhere/set is inside --src imagenet/train"):
        preview(PackOptions(imagenet, "elsewhere/set"))


def test_outputs_beside_the_source_are_accepted(imagenet):
    for src, out in (("imagenet/", "shards/"), ("imagenet", "imagenet-shards"), ("imagenet/train", "imagenet/val2")):
        check_apart(src, out)


def test_a_bucket(imagenet, s3, tmp_path):
    from shards.storage.store import open_store

    with open_store(s3) as store:
        store.put({str(path.relative_to(imagenet)): path for path in imagenet.rglob("*") if path.is_file()})
    plan, lines = preview(PackOptions(s3, "s3://other/shards/"))
    assert (plan.classes, plan.images) == (("cat", "dog"), 3)
    assert lines[1] == f"to pack val: fastmoco pack --src {s3}/val --out s3://other/shards-val/"
