"""Other programs' tars give the same images and labels whether they are packed, indexed or streamed."""

from __future__ import annotations

import json
import tarfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from shards import PackError, PackOptions, ShardSet, pack
from shards.foreign.indexing import index_tars
from shards.foreign.streaming import images
from tests.support.pictures import encoded, gradient, jpeg
from tests.support.tars import Link, write_tar

pytest.importorskip("webdataset")


@dataclass
class Found:
    """What one of the three made of a tar: labels by the image's name, what was left out, and the reasons."""

    labels: dict[str, int | None]
    sources: list[str]
    reasons: list[str]
    classes: tuple[str, ...] = ()


class Tar:
    """A tar of JPEGs that differ, so that each can be told by its bytes wherever it comes out."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / "tars" / "a.tar"
        self._names: dict[bytes, str] = {}

    def image(self, name: str) -> tuple[str, bytes]:
        number = len(self._names)
        data = jpeg(gradient(60 + number, 48, seed=number))
        self._names[data] = name
        return name, data

    def write(self, members: list[tuple[str, bytes | Link]]) -> bytes:
        return write_tar(self.path, members, tarfile.USTAR_FORMAT).read_bytes()

    def packed(self) -> Found:
        pack(PackOptions(self.path, self.folder / "packed", workers=1), progress=False)
        return self._in_set(self.folder / "packed")

    def indexed(self) -> Found:
        index_tars(self.path.parent, workers=1, say=lambda text: None)
        return self._in_set(self.path.parent)

    def streamed(self, caplog: pytest.LogCaptureFixture) -> Found:
        caplog.clear()
        names = [self._names[image.data] for image in images(str(self.path))]
        reports = [record.getMessage().partition(" is left out: ") for record in caplog.records]
        sources = [source.removeprefix(f"{self.path.parent}/") for source, _, reason in reports if reason]
        return Found(dict.fromkeys(names), sources, [reason for _, _, reason in reports if reason])

    def _in_set(self, folder: Path) -> Found:
        with ShardSet(folder) as found:
            labels = found.labels(np.arange(len(found))).tolist()
            named = {self._names[found.read(i)]: label for i, label in enumerate(labels)}
            assert len(named) == len(found)
        lines = (folder / "quarantine.jsonl").read_text(encoding="utf-8").splitlines()
        reports = [json.loads(line) for line in lines]
        sources, reasons = ([report[name] for report in reports] for name in ("source", "reason"))
        return Found(named, sources, reasons, found.classes)


@pytest.fixture
def tar(tmp_path) -> Tar:
    return Tar(tmp_path)


def four(tar: Tar) -> list[tuple[str, bytes]]:
    return [member for n in range(4) for member in (tar.image(f"{n}.jpg"), (f"{n}.cls", b"%d" % (n % 2)))]


LABELLED = {"0.jpg": 0, "1.jpg": 1, "2.jpg": 0, "3.jpg": 1}


def agree(tar: Tar, caplog: pytest.LogCaptureFixture, labels: dict[str, int], reasons: list[str] | None = None) -> None:
    """All three find these images, with these labels, and leave out the rest by the same names, for these reasons."""
    packed, indexed = tar.packed(), tar.indexed()
    assert packed.labels == labels
    assert indexed.labels == labels
    streamed = tar.streamed(caplog)
    assert list(streamed.labels) == list(labels), "in the tar's order"
    assert sorted(packed.sources) == sorted(indexed.sources)
    assert set(streamed.sources) <= set(packed.sources)
    assert packed.classes == indexed.classes
    assert sorted(packed.reasons) == sorted(indexed.reasons) == sorted(reasons or [])


@pytest.mark.parametrize(
    ("texts", "labels", "classes"),
    [
        (["001", "003", "003", "007"], [1, 3, 3, 7], tuple(map(str, range(8)))),
        (["7", "03", "3\n", "0"], [7, 3, 3, 0], tuple(map(str, range(8)))),
        (["dog", "01", "cat", "-1"], [2, 0, 1, -1], ("01", "cat", "dog")),
        (["b", "a", "", "B"], [2, 1, -1, 0], ("B", "a", "b")),
        (["10.0", "2.0", "NaN", "1"], [10, 2, -1, 1], tuple(map(str, range(11)))),
        (["e\u0301", "null", "\u00e9", "z"], [1, -1, 1, 0], ("z", "\u00e9")),
        (["été", "\udcff", "a\tb", "x"], [3, 0, 1, 2], (r"\xff", r"a\tb", "x", "été")),
    ],
)
@pytest.mark.parametrize("where", ["cls", "json"])
def test_integers_stay_and_names_are_numbered_in_sorted_order(tar, caplog, texts, labels, classes, where):
    members = []
    for number, text in enumerate(texts):
        data = text.encode("utf-8", "surrogateescape")
        if where == "json":
            value = int(text) if text.isdigit() and text == str(int(text)) else data.decode("utf-8", "backslashreplace")
            data = json.dumps({"label": value}).encode()
        members += [tar.image(f"{number}.jpg"), (f"{number}.{where}", data)]
    tar.write(members)
    agree(tar, caplog, {f"{number}.jpg": label for number, label in enumerate(labels)})
    assert tar.indexed().classes == classes


def test_labels_too_large_for_a_class_are_refused_by_both(tar):
    for label in (b"1000000", b"9" * 6000):
        tar.write([tar.image("0.jpg"), ("0.cls", label[:4096]), tar.image("1.jpg"), ("1.cls", b"1")])
        for run in (tar.packed, tar.indexed):
            with pytest.raises(PackError, match=r"label \d+ is over 999,999; number the classes from 0, or use names"):
                run()


def test_labels_before_all_images_and_after_them(tar, caplog):
    members = four(tar)
    members.sort(key=lambda member: member[0].endswith("jpg"))
    tar.write(members)
    agree(tar, caplog, LABELLED)


def test_labels_after_all_images(tar, caplog):
    tar.write(sorted(four(tar), key=lambda member: member[0].endswith("cls")))
    agree(tar, caplog, LABELLED)


def test_two_views_of_a_sample_share_its_label(tar, caplog):
    members = []
    for n in range(2):
        members += [tar.image(f"{n}.left.jpg"), tar.image(f"{n}.right.jpg"), (f"{n}.cls", b"%d" % n)]
    tar.write([*members, ("1.right.cls", b"5")])
    agree(tar, caplog, {"0.left.jpg": 0, "0.right.jpg": 0, "1.left.jpg": 1, "1.right.jpg": 5})


def test_of_members_of_one_name_the_first_counts(tar, caplog):
    tar.write([tar.image("0.jpg"), tar.image("0.jpg"), tar.image("1.jpg"), ("x.txt", b""), tar.image("0.jpg")])
    first = {"0.jpg": -1, "1.jpg": -1}
    reasons = ["duplicate: an earlier member has the same name"] * 2
    packed, indexed, streamed = tar.packed(), tar.indexed(), tar.streamed(caplog)
    assert packed.labels == indexed.labels == first
    assert list(streamed.labels) == list(first)
    assert packed.reasons == reasons
    assert [reason for reason in indexed.reasons if not reason.startswith("no image")] == reasons
    assert len(streamed.reasons) == 2


def test_which_of_several_images_is_the_samples(tar, caplog):
    mask = encoded(gradient(20, 20), "PNG")
    tar.write([
        ("a.png", mask), tar.image("a.jpg"), tar.image("a.seg.jpg"),  # the JPEG; the mask and the rest belong to it
        ("b.seg.png", mask), tar.image("b.JPEG"),
        tar.image("c.jpg"), tar.image("c.jpeg"),  # two JPEGs of a key: the second is a duplicate
        tar.image("dir.1/d.x.jpg"), ("dir.1/d.txt", b"no image of the key itself"),
        ("._a.jpg", b"resource fork"), ("__meta__.jpg", b""), ("noname", b""),
        tar.image("a.thumbnail.jpg"),  # apart from its sample
    ])  # fmt: skip
    expected = {"a.jpg": -1, "b.JPEG": -1, "c.jpg": -1, "dir.1/d.x.jpg": -1}
    agree(tar, caplog, expected, ["duplicate: c.jpg has the same key"])


def test_links_are_left_out(tar, caplog):
    tar.write([tar.image("0.jpg"), ("0.cls", b"1"), ("1.jpg", Link("0.jpg"))])
    agree(tar, caplog, {"0.jpg": 1}, ["link: not a regular file of the tar"])
    assert "1.jpg is left out: link" in caplog.text


def test_a_label_that_cannot_be_read_costs_its_image(tar):
    tar.write([
        tar.image("0.jpg"), ("0.json", b"{broken"), tar.image("1.jpg"), ("1.json", b'{"label": [1]}'),
        tar.image("2.jpg"), ("2.cls", b"x" * 5000), tar.image("3.jpg"), ("3.json", b""),
    ])  # fmt: skip
    packed, indexed = tar.packed(), tar.indexed()
    assert packed.labels == indexed.labels == {"3.jpg": -1}
    assert sorted(packed.reasons) == sorted(indexed.reasons)
    assert "label: cannot read 2.cls: it has 5,000 bytes, over 4,096" in packed.reasons
