"""Packing of Python data sets and iterables: what their items become, and the guarantees of packing."""

from __future__ import annotations

import io
import json
import re
import shutil
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import shards
from shards import PackError, ShardSet
from shards.packing import appending
from shards.packing.lock import HeldError, locked
from shards.storage.store import open_store
from shards.verify import verify
from tests.support.pictures import encoded, gradient, jpeg
from tests.support.sets import pack_set


def pack(images, out, **options):
    return shards.pack(images, out, progress=False, **{"workers": 1, **options})


def decoded(out: Path) -> list[Image.Image]:
    with ShardSet(out) as found:
        return [Image.open(io.BytesIO(found.read(sample))) for sample in range(len(found))]


def files_of(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in out.iterdir()}


def flat(value, shape=(16, 24), kind=np.uint8):
    return np.full(shape, value, kind)


def tensor(array):
    import torch

    return torch.from_numpy(array)


# flat images: JPEG keeps their value exactly
ITEMS = {
    "uint8": (flat(100), 100),
    "uint8 with a channel": (flat(100, (16, 24, 1)), 100),
    "bool": (flat(True, kind=np.bool_), 255),
    "uint16, white": (flat(65535, kind=np.uint16), 255),
    "uint16, 12 bits of it": (flat(4095, kind=np.uint16), 16),  # 15.93, not 255
    "uint16, below a half": (flat(128, kind=np.uint16), 0),
    "uint16, above a half": (flat(129, kind=np.uint16), 1),
    "uint16, big-endian": (flat(25700, kind=np.dtype(">u2")), 100),
    "uint16, RGB": (flat(25700, (16, 24, 3), np.uint16), (100, 100, 100)),
    "RGB": (flat(100, (16, 24, 3)), (100, 100, 100)),
    "RGB, not contiguous": (flat(100, (24, 16, 3)).transpose(1, 0, 2), (100, 100, 100)),
    "RGBA, transparent": (flat((100, 100, 100, 0), (16, 24, 4)), (255, 255, 255)),
    "grey and alpha, transparent": (flat((100, 0), (16, 24, 2)), 255),
    "tensor": (tensor(flat(100, (3, 16, 24))), (100, 100, 100)),
    "tensor, grey": (tensor(flat(100)), 100),
    "tensor, uint16": (tensor(flat(4095, (1, 16, 24), np.uint16)), 16),
    "PIL, L": (Image.new("L", (24, 16), 100), 100),
    "PIL, 1": (Image.new("1", (24, 16), 1), 255),
    "PIL, I;16": (Image.fromarray(flat(4095, kind=np.uint16)), 16),
    "PIL, P": (Image.new("RGB", (24, 16), (100, 100, 100)).convert("P", palette=Image.Palette.ADAPTIVE), (100,) * 3),
    "bytes": (encoded(Image.new("L", (24, 16), 100), "PNG"), 100),
}


@pytest.fixture(scope="module")
def packed_items(tmp_path_factory):
    out = tmp_path_factory.mktemp("items") / "set"
    pack([item for item, _ in ITEMS.values()], out, shuffle=False)
    return decoded(out)


@pytest.mark.parametrize("name", ITEMS)
def test_an_item_is_packed_with_its_pixels(packed_items, name):
    image = packed_items[list(ITEMS).index(name)]
    assert image.size == (24, 16) and image.getpixel((12, 8)) == ITEMS[name][1]
    assert image.mode == ("L" if isinstance(ITEMS[name][1], int) else "RGB")


def test_16_bits_mean_the_same_in_a_folder_a_table_a_tar_and_an_iterable(tmp_path):
    """And a set of them has the same bytes, whatever the source."""
    values = [0, 128, 129, 4095, 32896, 65535]
    arrays = {f"{value}.png": np.full((16, 24), value, np.uint16) for value in values}
    folder = tmp_path / "deep"
    folder.mkdir()
    for name, array in arrays.items():
        Image.fromarray(array).save(folder / name)
    (tmp_path / "table.csv").write_text("path\n" + "".join(f"deep/{name}\n" for name in arrays))
    with tarfile.open(tmp_path / "tar.tar", "w") as tar:
        for name in arrays:
            tar.add(folder / name, name)
    found = {}
    for src in ("deep", "table.csv", "tar.tar"):
        out = pack_set(tmp_path / src, tmp_path / f"of {src}")
        found[src] = sorted(image.getpixel((0, 0)) for image in decoded(out))
    pack(arrays.values(), tmp_path / "of arrays")
    found["arrays"] = [image.getpixel((0, 0)) for image in decoded(tmp_path / "of arrays")]
    assert all(each == [0, 0, 1, 16, 128, 255] for each in found.values()), found


def test_grey_images_have_one_component_and_the_bytes_that_a_folder_gives_them(tmp_path):
    grey = gradient(60, 40, seed=1).convert("L")
    (tmp_path / "photos").mkdir()
    grey.save(tmp_path / "photos/a.png")
    pack_set(tmp_path / "photos", tmp_path / "folder")
    pack([grey], tmp_path / "iterable")
    files = [ShardSet(tmp_path / name).read(0) for name in ("folder", "iterable")]
    assert files[0] == files[1] == jpeg(grey, quality=90)
    coloured = jpeg(grey.convert("RGB"), quality=90)
    assert len(files[0]) < len(coloured)
    pixels = [np.asarray(Image.open(io.BytesIO(data)).convert("RGB")) for data in (files[0], coloured)]
    assert np.array_equal(*pixels)  # what training sees


def test_files_are_packed_as_in_a_folder_and_pil_images_upright(tmp_path):
    kept, exif = jpeg(gradient(60, 40, seed=1)), Image.Exif()
    exif[0x0112] = 6
    turned = jpeg(gradient(60, 40, seed=2), exif=exif, quality=95)
    (tmp_path / "kept.jpg").write_bytes(kept)
    path = tmp_path / "kept.jpg"
    images = [kept, bytearray(kept), path, str(path), turned, Image.open(io.BytesIO(turned))]
    pack(images, tmp_path / "set", shuffle=False)
    with ShardSet(tmp_path / "set") as found:
        assert [found.read(sample) == kept for sample in range(6)] == [True] * 4 + [False] * 2
        assert found.read(4) == found.read(5)
        assert found.sizes(np.arange(6)).tolist() == [[40, 60]] * 4 + [[60, 40]] * 2


class Indexed:
    """A data set with a length that can be indexed, as of torch."""

    def __init__(self, images, classes=None):
        self.images = images
        if classes:
            self.classes = classes

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        found = self.images[index]
        if isinstance(found, Exception):
            raise found
        return found


IMAGES = [(gradient(30 + number, 20, seed=number), number % 3) for number in range(50)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """50 labelled images in shards of 12, in one call."""
    out = tmp_path_factory.mktemp("whole") / "set"
    assert pack(Indexed(IMAGES), out, shard_size=12).samples == 50
    return out


def test_any_number_of_workers_gives_the_same_set(whole, tmp_path):
    pack(Indexed(IMAGES), tmp_path / "set", shard_size=12, workers=2)
    assert files_of(tmp_path / "set") == files_of(whole)
    assert not [problem for found in verify(ShardSet(whole), 1) for problem in found]
    with ShardSet(whole) as found:
        assert found.classes == ("0", "1", "2") and found.manifest.options["shuffle"] is True
        assert sorted(found.sizes(np.arange(50))[:, 1].tolist()) == list(range(30, 80))
        widths = found.sizes(np.arange(50))[:, 1]
        assert (found.labels(np.arange(50)) == (widths - 30) % 3).all()
        assert widths.tolist() != sorted(widths.tolist())


def test_a_killed_packing_continues_to_the_same_bytes(whole, tmp_path, command):
    """Complete shards are compared, and kept."""
    code = f"""
import os, signal, sys
sys.path.insert(0, {str(Path(__file__).resolve().parents[2])!r})
import shards
from tests.support.pictures import gradient
class Killed(list):
    reads = 0
    def __getitem__(self, index):
        Killed.reads += 1
        if Killed.reads == 30:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(index)
images = [(gradient(30 + number, 20, seed=number), number % 3) for number in range(50)]
shards.pack(Killed(images), "set", shard_size=12, workers=1, progress=False)
"""
    assert command(sys.executable, "-c", code, check=False, cold=True).returncode == -9
    out = tmp_path / "set"
    first = [out / "shard-000000.tar", out / "shard-000001.tar"]
    assert all(path.exists() for path in first) and not (out / "manifest.json").exists()
    written = [path.stat().st_ino for path in first]
    pack(Indexed(IMAGES), out, shard_size=12)
    assert files_of(out) == files_of(whole) and [path.stat().st_ino for path in first] == written


def test_a_repeated_call_changes_nothing_and_a_lost_shard_is_packed_again(whole, tmp_path):
    pack(Indexed(IMAGES), tmp_path / "set", shard_size=12)
    for name in ("shard-000002.tar", "shard-000001.json"):
        (tmp_path / "set" / name).unlink()
        pack(Indexed(IMAGES), tmp_path / "set", shard_size=12)
        assert files_of(tmp_path / "set") == files_of(whole)


def test_a_set_to_which_others_were_appended_is_repaired_and_keeps_them(whole, tmp_path):
    out, more = tmp_path / "set", tmp_path / "more"
    more.mkdir()
    IMAGES[0][0].save(more / "a.png")
    shutil.copytree(whole, out)
    pack(more, out, append=True, workers=1)
    appended = files_of(out)
    for name in ("manifest.json", "shard-000001.tar"):  # the first one stays, and nothing is left to do
        if name.endswith(".tar"):
            (out / name).unlink()
        pack(Indexed(IMAGES), out, shard_size=12)
        assert files_of(out) == appended
    for images in (IMAGES[:40], IMAGES + IMAGES):
        with pytest.raises(PackError, match=r"holds another set: .*of other images.*use overwrite=True"):
            pack(Indexed(images), out, shard_size=12)
        assert files_of(out) == appended
    pack(Indexed(IMAGES), out, shard_size=25, overwrite=True)
    assert len(ShardSet(out)) == 50
    # in their own order: the first shards are those of the set
    in_order = {"shard_size": 12, "shuffle": False}
    pack(IMAGES[:24], out, overwrite=True, **in_order)
    pack(more, out, append=True, workers=1)
    appended = files_of(out)
    for count, message in (
        (36, "of fewer images, to which others were appended"),
        (12, "of more than these 12 images"),
    ):
        with pytest.raises(PackError, match=message):
            pack(IMAGES[:count], out, **in_order)
        assert files_of(out) == appended


def test_shards_of_what_was_not_appended_to_its_end_are_not_the_sets(whole, tmp_path, monkeypatch):
    out, more = tmp_path / "set", tmp_path / "more"
    more.mkdir()
    IMAGES[0][0].save(more / "a.png")
    shutil.copytree(whole, out)
    with monkeypatch.context() as patch:
        patch.setattr(appending, "commit", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            pack(more, out, append=True, workers=1)
    assert (out / "shard-000005.json").exists()
    pack(Indexed(IMAGES), out, shard_size=12)
    assert (out / "manifest.json").read_bytes() == (whole / "manifest.json").read_bytes()
    pack(more, out, append=True, workers=1)
    assert len(ShardSet(out)) == 51


def test_other_images_are_refused_unless_they_are_to_replace_the_set(tmp_path):
    out = tmp_path / "set"
    pack(Indexed(IMAGES), out, shard_size=12)
    before = files_of(out)
    changed = [*IMAGES[:49], (IMAGES[49][0], 0)]
    for images, options, message in (
        (changed, {}, "is of other images, or of the same in another order"),
        (IMAGES[:48], {}, "is of other images"),
        (IMAGES, {"shuffle": False}, "--shuffle was True, now False"),
        (IMAGES, {"resize": 16}, "--resize was not given, now 16"),
    ):
        with pytest.raises(PackError, match=f"holds another set: .*{message}.*use overwrite=True"):
            pack(Indexed(images), out, **{"shard_size": 12, **options})
        assert files_of(out) == before
    pack(Indexed(IMAGES[:20]), out, shard_size=12, overwrite=True)
    assert {path.name for path in out.glob("*.tar")} == {"shard-000000.tar", "shard-000001.tar"}
    pack((image for image in IMAGES[:5]), out, shard_size=12, overwrite=True)
    assert len(ShardSet(out)) == 5
    # what a folder's packing left is not taken for this one's
    folder = tmp_path / "photos"
    folder.mkdir()
    IMAGES[0][0].save(folder / "a.png")
    with pytest.raises(PackError, match="holds another set"):
        pack_set(folder, out)


def test_an_iterable_keeps_its_order_and_says_so(tmp_path):
    pack(iter(IMAGES[:9]), tmp_path / "set", shard_size=4)
    with ShardSet(tmp_path / "set") as found:
        assert found.sizes(np.arange(9))[:, 1].tolist() == list(range(30, 39))
        assert found.manifest.options["shuffle"] is False
    pack(Indexed(IMAGES[:9]), tmp_path / "indexed", shard_size=4, shuffle=False)
    tars = [(tmp_path / name / "shard-000001.tar").read_bytes() for name in ("set", "indexed")]
    assert tars[0] == tars[1]
    for seed in (1, 2):
        pack(Indexed(IMAGES), tmp_path / f"seed {seed}", seed=seed, limit=10)
    sizes = [ShardSet(tmp_path / f"seed {seed}").sizes(np.arange(10)).tolist() for seed in (1, 2)]
    assert sizes[0] != sizes[1]


def test_torchs_data_sets_are_read_as_what_they_are(tmp_path):
    from torch.utils.data import DataLoader, Dataset, IterableDataset

    class Streamed(IterableDataset):
        def __len__(self):
            return 6

        def __iter__(self):
            yield from IMAGES[:6]

    class Mapped(Indexed, Dataset):
        pass

    pack(Streamed(), tmp_path / "streamed")
    loader = DataLoader(Mapped(IMAGES[:6]), batch_size=None, collate_fn=lambda item: item)
    pack(loader, tmp_path / "loaded")
    assert files_of(tmp_path / "streamed") == files_of(tmp_path / "loaded")
    assert pack(Mapped(IMAGES[:6]), tmp_path / "mapped").options["shuffle"] is True


def test_bad_images_are_left_out_by_their_number_with_the_cause(tmp_path):
    (tmp_path / "text").write_text("no image")
    good = gradient(30, 20)
    images = [
        (good, 0), (b"no image", 1), (tmp_path / "missing.jpg", 0), (jpeg(good)[:200], 0), (flat(0, (4, 4)), 0),
        {"image": b"", "name": "cat.jpg", "other": 1}, OSError("image file is truncated (7 bytes not processed)"),
        FileNotFoundError(2, "No such file or directory", "x"), (good, 1),
    ]  # fmt: skip
    manifest = pack(Indexed(images), tmp_path / "set", shuffle=False, shard_size=4)
    assert (manifest.samples, manifest.quarantined) == (2, 7)
    lines = [json.loads(line) for line in (tmp_path / "set/quarantine.jsonl").read_text().splitlines()]
    assert [line["source"] for line in lines] == [
        "item 1", f"item 2 ({tmp_path}/missing.jpg)", "item 3", "item 4", "item 5 (cat.jpg)", "item 6", "item 7",
    ]  # fmt: skip
    causes = [line["reason"].partition(":")[0] for line in lines]
    assert causes == ["not an image", "cannot read", "truncated", "too small", "empty", "truncated", "cannot read"]


LABELS = {
    "numbers": ([2, 0, None, -1], None, [2, 0, -1, -1], ("0", "1", "2")),
    "of NumPy": ([np.int64(1), np.float32(0), float("nan"), np.array([1])], None, [1, 0, -1, 1], ("0", "1")),
    "names": (["b", "a", "b", None], None, [0, 1, 0, -1], ("b", "a")),
    "names of a list": (["b", "a", 1, -1], ["a", "b", "c"], [1, 0, 1, -1], ("a", "b", "c")),
    "none": ([None, None, -1, None], ["a", "b"], [-1, -1, -1, -1], ()),
}


@pytest.mark.parametrize("name", LABELS)
def test_labels_are_numbers_or_names(tmp_path, name):
    labels, classes, numbers, names = LABELS[name]
    images = [(flat(value), label) for value, label in enumerate(labels)]
    manifest = pack(images, tmp_path / "given", shuffle=False, classes=classes)
    assert (ShardSet(tmp_path / "given").labels(np.arange(4)).tolist(), manifest.classes) == (numbers, names)
    assert pack(Indexed(images, classes), tmp_path / "own", shuffle=False).digest == manifest.digest


def test_classes_of_several_names_are_told_apart(tmp_path):
    images = Indexed([(flat(0), 0), (flat(1), 2)], [("crane",), ("tank", "tank car"), ("crane",)])
    assert pack(images, tmp_path / "set").classes == ("crane (0)", "tank, tank car", "crane (2)")


REFUSED = [
    ([flat(0.5, kind=np.float32)], 'item 0: values of the type float32 .* give (255 * array).round().astype("uint8")'),
    ([tensor(flat(0.5, (3, 16, 24), np.float32))], "item 0: .* (255 * tensor).round().to(torch.uint8); .*ToTensor"),
    ([flat(5, kind=np.int64)], "values of the type int64 .* give uint8 (0 to 255), uint16 (0 to 65535) or bool"),
    ([flat(0, (3, 16, 24))], "shape [3, 16, 24] is no image; channels come last: give array.transpose(1, 2, 0)"),
    ([tensor(flat(0, (16, 24, 3)))], "channels come first: give tensor.permute(2, 0, 1)"),
    ([flat(0, (2, 16, 24, 3))], "shape [2, 16, 24, 3] is no image"),
    ([flat(0), 7], "item 1: a value of the type int is no image"),
    ([(flat(0), 1, 2)], "item 0: a tuple of 3; it has to be an image, (image, label)"),
    ([{"img": flat(0)}], "item 0: a dictionary with 'img'"),
    ([(flat(0), [1, 2])], "its label is a value of the type list; .* [image for image, _ in data]"),
    ([(flat(0), 1), (flat(0), "a")], "item 1: its label is the name 'a', but the labels before are numbers"),
    ([(flat(0), "a"), (flat(0), 1)], "item 1: its label is the number 1, but the labels before are names"),
    ([(flat(0), -2)], "its label -2 is not one from 0 to 999,999"),
    ([(flat(0), 0.5)], "its label is a value of the type float"),
    ([], "the data set is empty"),
    (iter([]), "the iterable has no image"),
    ({"a": 1}, "a value of the type dict is no data set"),
    (7, "a value of the type int is no data set"),
    ([b"no image"], "none of 1 image could be packed"),
    (Indexed([KeyError("image")]), "item 0 of the data set cannot be read: KeyError: 'image'"),
    (Indexed([OSError(24, "Too many open files")]), "item 0 of the data set cannot be read: OSError"),
]


@pytest.mark.parametrize(("images", "message"), REFUSED)
def test_what_cannot_be_packed_is_answered_with_the_remedy(tmp_path, images, message):
    with pytest.raises(PackError) as caught:
        pack(images, tmp_path / "set", shuffle=False if hasattr(images, "__getitem__") else None)
    parts = message.split(".*")
    assert all(part.strip() in str(caught.value) for part in parts), caught.value


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((IMAGES,), {}, r"pack\(images, out\) needs"),
        ((IMAGES, "set"), {"resise": 32}, "unknown option resise=32; did you mean resize"),
        ((IMAGES, "set"), {"exclude": ["a"]}, "unknown option exclude"),
        ((IMAGES, "set"), {"shard_size": 0}, "--shard-size 0 is outside"),
        ((IMAGES, "set"), {"classes": ["a", "b"]}, "item .*: its label 2 is not one of 2 classes"),
        ((iter(IMAGES), "set"), {"shuffle": True}, "shuffle=True needs a data set with a length"),
        (("photos", "set"), {"shuffle": True}, "classes and shuffle are for data sets"),
        ((shards.PackOptions("a", "b"), "set"), {}, "PackOptions hold all options"),
    ],
)
def test_arguments_that_do_not_fit_are_answered(tmp_path, monkeypatch, arguments, options, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(PackError, match=message):
        shards.pack(*arguments, progress=False, **options)


def test_a_folder_is_packed_by_its_name(folder, packed, tmp_path):
    assert shards.pack(str(folder), tmp_path / "set", shard_size=25, workers=1, progress=False).digest == (
        ShardSet(packed).digest
    )


def test_an_output_that_is_being_packed_is_refused(tmp_path):
    with locked(open_store(tmp_path / "set")), pytest.raises(HeldError, match="is being packed by process"):
        pack(IMAGES[:2], tmp_path / "set")


def test_the_example_of_the_tutorial_runs(tmp_path, monkeypatch, capsys):
    page = Path(__file__).resolve().parents[2] / "docs/tutorials/own-data.md"
    (block,) = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    exec(compile(block, str(page), "exec"), {})
    assert capsys.readouterr().out.endswith("60 ('cat', 'dog', 'fox')\n")
