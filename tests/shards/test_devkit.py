"""Labels of ILSVRC2012's validation set from its development kit."""

from __future__ import annotations

import gzip
import sys
from pathlib import Path

import pytest

from shards import PackError, PackOptions, ShardSet, pack
from tests.support.ilsvrc import DEVKIT, SYNSETS, TRAIN, TRUTH, VAL, meta_mat, write_devkit, write_ilsvrc
from tests.support.labelled import read
from tests.support.pictures import gradient, jpeg
from tests.support.tars import tar_bytes, write_tar


@pytest.fixture(scope="module")
def ilsvrc(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """The three files; of one class there is no image in the training set, of another none in the validation set."""
    out = tmp_path_factory.mktemp("ilsvrc")
    train = {wnid: [jpeg(gradient(seed=n))] * 2 for n, wnid in enumerate(SYNSETS)}
    val = {wnid: [jpeg(gradient(seed=90 + n))] * 2 for n, wnid in enumerate(SYNSETS)}
    train[SYNSETS[4]], val[SYNSETS[7]] = [], []
    return out, write_ilsvrc(out, train, val)


def test_training_and_validation_set_have_the_same_classes(ilsvrc, tmp_path):
    """Numbered by the sorted WNIDs, although the ground truth's numbers are in another order."""
    files, wnids = ilsvrc
    pack(PackOptions(files / TRAIN, tmp_path / "train", workers=1), progress=False)
    manifest = pack(PackOptions(files / VAL, tmp_path / "val", workers=1, labels=files / DEVKIT), progress=False)
    with ShardSet(tmp_path / "train") as train, ShardSet(tmp_path / "val") as val:
        assert train.classes == val.classes == tuple(sorted(SYNSETS))
        assert manifest.samples == len(val) == 18
        ids = list(range(18))
        numbers = dict(zip(val.names(ids), val.labels(ids).tolist(), strict=True))
        assert numbers == {
            f"{VAL}/ILSVRC2012_val_{n:08d}.JPEG": sorted(SYNSETS).index(wnid) for n, wnid in enumerate(wnids, 1)
        }
        for name, label in zip(train.names(ids), train.labels(ids), strict=True):
            assert name.startswith(f"{TRAIN}/{sorted(SYNSETS)[label]}.tar/{sorted(SYNSETS)[label]}_")


def test_the_kit_unpacked_and_the_text_with_synsets_give_the_same_labels(ilsvrc, tmp_path, monkeypatch):
    files, wnids = ilsvrc
    expected = {f"ILSVRC2012_val_{n:08d}.JPEG": wnid for n, wnid in enumerate(wnids, 1)}
    data = tmp_path / "kit" / "data"
    data.mkdir(parents=True)
    (data / TRUTH).write_text("".join(f"{SYNSETS.index(wnid) + 1}\n" for wnid in wnids))
    (data / "meta.mat").write_bytes(meta_mat(SYNSETS))
    for labels in (files / DEVKIT, tmp_path / "kit", data, data / TRUTH):
        assert read(files / VAL, labels=labels) == (expected, [])
    monkeypatch.setitem(sys.modules, "scipy.io", None)
    with pytest.raises(PackError, match=r"needs scipy: pip install 'fastmoco\[imagenet\]'; or give --synsets FILE"):
        read(files / VAL, labels=data / TRUTH)
    numbered = (f"{wnid} {number} kit_fox" for number, wnid in sorted(enumerate(SYNSETS, 1), key=lambda pair: pair[1]))
    for lines in (numbered, SYNSETS, (f"{number}, {wnid}" for number, wnid in enumerate(SYNSETS, 1))):
        (tmp_path / "synsets.txt").write_text("\n".join(lines))
        assert read(files / VAL, labels=files / DEVKIT, synsets=tmp_path / "synsets.txt") == (expected, [])
    (data / "meta.mat").unlink()
    with pytest.raises(PackError, match="is a ground truth by number; give the numbers' names by --synsets FILE"):
        read(files / VAL, labels=data / TRUTH)


def test_a_validation_set_in_a_folder_is_labelled_as_well(tmp_path):
    for number in (1, 2):
        (tmp_path / f"ILSVRC2012_val_{number:08d}.JPEG").write_bytes(jpeg(gradient()))
    kit = write_devkit(tmp_path / DEVKIT, [10, 1])
    names = ("ILSVRC2012_val_00000001.JPEG", "ILSVRC2012_val_00000002.JPEG")
    labels, notes = read(tmp_path, labels=kit)
    assert labels == dict(zip(names, ("n02123394", "n02119789"), strict=True))
    (tmp_path / "own.jpg").write_bytes(jpeg(gradient()))
    labels, notes = read(tmp_path, labels=kit)
    assert notes == [f"no label in {kit} for 1 image: own.jpg"]


def test_a_truth_or_kit_that_does_not_fit_is_one_clear_error(ilsvrc, tmp_path):
    files, wnids = ilsvrc
    truth = [SYNSETS.index(wnid) + 1 for wnid in wnids]

    def fails(labels: Path, says: str, **changes) -> None:
        with pytest.raises(PackError) as error:
            read(files / VAL, labels=labels, **changes)
        assert says in str(error.value)

    short = write_devkit(tmp_path / "short.tar.gz", truth[:-1])
    fails(short, "short.tar.gz has 17 lines, but the last image has the number 18; is it the ground truth of these")
    long = write_devkit(tmp_path / "long.tar.gz", [*truth, 1])
    fails(long, "long.tar.gz has 19 lines, but the last image has the number 18")
    # what was left out on purpose, or lost, is no sign of a wrong ground truth
    labels, notes = read(files / VAL, labels=long, exclude=["*18.JPEG"])
    assert len(labels) == 17 and notes[-1].startswith("2 names in ")
    fails(
        write_devkit(tmp_path / "ids.tar.gz", [*truth[:-1], 11]),
        f"line 18 of {TRUTH} is 11, not a number of one of the 10",
    )
    (tmp_path / "cut.tar.gz").write_bytes((files / DEVKIT).read_bytes()[:-200])
    fails(tmp_path / "cut.tar.gz", "cut.tar.gz is damaged or cut off: ")
    write_tar(tmp_path / "t3.tar", {"x/data/meta.mat": b"none"})
    fails(tmp_path / "t3.tar", f"holds no {TRUTH}; is it ILSVRC2012's development kit?")
    members = {f"kit/data/{TRUTH}": b"1\n" * 18, "kit/data/meta.mat": b"none" * 50}
    (tmp_path / "mat.tar.gz").write_bytes(gzip.compress(tar_bytes(members)))
    fails(tmp_path / "mat.tar.gz", "meta.mat of ")
    for text, says in (
        ("\n".join(sorted(SYNSETS)), "is in the order of the WNIDs, which is not that of ILSVRC2012's numbers"),
        ("n02119789 1\nn02100735 1\n", "has to give each WNID a number of its own"),
        ("n02119789 1\nkit fox\n", "line 2 of --synsets"),
        ("n02119789 1\nn02100735\n", "has to give each WNID a number of its own"),
    ):
        (tmp_path / "synsets.txt").write_text(text)
        fails(files / DEVKIT, says, synsets=tmp_path / "synsets.txt")
    with pytest.raises(PackError, match="is a ground truth by number, but no image is named like ILSVRC2012_val_0000"):
        read(files / TRAIN, labels=files / DEVKIT)
