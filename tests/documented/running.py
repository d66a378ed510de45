"""Running documented lines in a copy of the repository, beside the files that they name."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from tests.documented.changes import changed
from tests.documented.pages import ROOT, Shown
from tests.support.ilsvrc import DEVKIT, SYNSETS, write_ilsvrc
from tests.support.ilsvrc import TRAIN as TRAIN_TAR
from tests.support.ilsvrc import VAL as VAL_TAR
from tests.support.scenes import write_coco, write_voc

BIN = Path(sys.executable).parent
FILES_WITH_PHOTOS = ("hub/data", "saved", "rows.parquet", "backup.tar.gz", "church_outdoor_train_lmdb")
TRAIN = "fastmoco train --recipe demo --shards shards/ --steps 2 --batch-size 16 --queue-size 64 --threads 1"


class Result(NamedTuple):
    """What became of a line. `output` is "" unless it failed; `ran` is None for a line that is only parsed."""

    shown: Shown
    ran: str | None
    code: int
    seconds: float
    output: str


class Workplace:
    """A copy of the repository, with images, and with what earlier lines of a page would have left."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "fastmoco"
        self._environment = {
            **os.environ,
            "PATH": f"{BIN}:{os.environ['PATH']}",
            "PYTHONPATH": str(self.folder),
            "HOME": str(folder / "home"),
            "FASTMOCO_CACHE": str(folder / "cache"),
            "OMP_NUM_THREADS": "1",
            "COLUMNS": "200",
        }
        (folder / "home/.config/fish/completions").mkdir(parents=True)
        _copy_tracked(self.folder)
        self._make_images()

    def run(self, shown: Shown, timeout: float = 600) -> Result:
        """Run a line as a shell would, changed as `changes` lists; a Python block by Python."""
        ran = changed(shown.text)
        if ran is None:
            return Result(shown, None, 0, 0.0, "")
        for path in [*self._inputs(ran), *_defaults(ran)]:
            self._provide(path)
        return self._timed(shown, ["bash", "-c", ran], ran, timeout)

    def run_python(self, shown: Shown, timeout: float = 600) -> Result:
        """Run a Python block."""
        for path in re.findall(r'"([\w./]+)"', shown.text):
            self._provide(path)
        return self._timed(shown, [sys.executable, "-c", shown.text], "python", timeout)

    def _timed(self, shown: Shown, line: list[str], ran: str, timeout: float) -> Result:
        start = time.monotonic()
        done = subprocess.run(
            line, cwd=self.folder, env=self._environment, timeout=timeout, text=True, check=False,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        output = done.stdout if done.returncode else ""
        return Result(shown, ran, done.returncode, time.monotonic() - start, output)

    def _inputs(self, line: str) -> Iterator[str]:
        """The files and folders that a line reads."""
        words = line.split()
        for before, word in zip(["", *words], words, strict=False):
            if before not in ("--out", "--json"):
                yield word.strip("'").partition(":")[0].removesuffix("/tensorboard").removesuffix("/config.json")

    def _provide(self, path: str) -> None:
        make = self._makers().get(path.rstrip("/"))
        marker = self.folder / ".provided" / path.rstrip("/").replace("/", "_")
        if make and not marker.exists() and not self._is_there(path):
            make()
            marker.parent.mkdir(exist_ok=True)
            marker.touch()

    def _is_there(self, path: str) -> bool:
        # shards/ is a package of the repository, too
        return (self.folder / path / "manifest.json" if path.startswith("shards") else self.folder / path).exists()

    def _makers(self) -> dict[str, Callable[[], object]]:
        run = f"{TRAIN} --out runs/r50"
        export = "fastmoco export --checkpoint runs/r50 --format"
        return {
            "shards": lambda: self._sh("fastmoco-shard --src imagenet/ --out shards/"),
            "val_shards": lambda: self._sh("fastmoco pack --src imagenet/val --out val_shards/"),
            "set": lambda: self._sh("fastmoco pack --src photos/ --out set/"),
            "my_scans": self._make_scans,
            "microscopy_set": lambda: (
                self._provide("microscopy"),
                self._sh("fastmoco pack --src microscopy/ --out microscopy_set/ --keep-16-bit"),
            ),
            "runs/cells": lambda: self._train_on_cells(""),
            "cells.safetensors": lambda: (
                self._train_on_cells("18"),
                self._sh("fastmoco export --checkpoint runs/cells18 --format torchvision --out cells.safetensors"),
            ),
            "scan_set": lambda: (self._provide("my_scans"), self._sh("fastmoco pack --src my_scans/ --out scan_set/")),
            "runs/scans": lambda: (
                self._provide("scan_set"),
                self._sh(f"{TRAIN.replace('shards/', 'scan_set/')} --arch resnet18 --channels 1 --out runs/scans"),
            ),
            "my_set": lambda: self._sh("fastmoco pack --src my_photos/ --out my_set/"),
            "runs/r50": lambda: (self._provide("shards"), self._sh(run)),
            "settings.toml": lambda: (
                self._provide("shards"),
                (self.folder / "settings.toml").write_text("seed = 1\n"),
            ),
            "views.toml": lambda: (self.folder / "views.toml").write_text('base = "v2"\n[key]\nsolarize = 0.2\n'),
            "runs/r50-again": lambda: (self._provide("shards"), self._sh(f"{run}-again")),
            "runs/photos": lambda: (self._provide("shards"), self._sh(run.replace("r50", "photos"))),
            "encoder.pth": lambda: (
                self._provide("runs/r50"),
                self._sh(f"{export} torchvision --out encoder.pth"),
            ),
            "resnet50.pth": lambda: (
                self._provide("shards"),
                self._sh(f"{TRAIN} --arch resnet50 --image-size 32 --out runs/resnet50"),
                self._sh("fastmoco export --checkpoint runs/resnet50 --format torchvision --out resnet50.pth"),
            ),
            "checkpoint_0199.pth.tar": lambda: (
                self._provide("runs/r50"),
                self._sh(f"{export} moco --out checkpoint_0199.pth.tar"),
            ),
            "1percent.txt": lambda: (self.folder / "1percent.txt").write_text(
                "".join(f"{path.parent.name}/{path.name}\n" for path in self._some("imagenet/train", 4))
            ),
            "imported.pt": lambda: (
                self._provide("checkpoint_0199.pth.tar"),
                self._sh("fastmoco export --from-moco checkpoint_0199.pth.tar --out imported.pt"),
            ),
            **dict.fromkeys((TRAIN_TAR, VAL_TAR, DEVKIT), self._make_ilsvrc),
            **dict.fromkeys(FILES_WITH_PHOTOS, self._make_files_with_photos),
            **dict.fromkeys(("photos.zip", "labels.csv", "labels.jsonl", "images.jsonl"), self._make_beside_photos),
            **dict.fromkeys(("urls.csv", "metadata"), self._make_tables_of_urls),
            "phone": self._make_phone,
            "microscopy": self._make_microscopy,
            "VOC2007": lambda: write_voc(self.folder / "VOC2007", {"trainval": (0, 8), "test": (100, 4)}),
            "VOC2012": lambda: write_voc(self.folder / "VOC2012", {"trainval": (50, 8)}),
            "coco": lambda: write_coco(self.folder / "coco", {"train2017": (0, 8), "val2017": (100, 4)}),
        }

    def _some(self, folder: str, count: int) -> list[Path]:
        """A few images of each class."""
        return [path for each in sorted((self.folder / folder).iterdir()) for path in sorted(each.iterdir())[:count]]

    def _sh(self, line: str) -> None:
        shown = Shown(line, "(provided)", 0)
        result = self._timed(shown, ["bash", "-c", line], line, 600)
        assert result.code == 0, f"{line}\n{result.output}"

    def _make_ilsvrc(self) -> None:
        """ImageNet's three files, of the images in imagenet/."""
        splits = (self.folder / "imagenet" / split for split in ("train", "val"))
        images = (
            {place.name: [path.read_bytes() for path in sorted(place.iterdir())] for place in sorted(split.iterdir())}
            for split in splits
        )
        renamed = (dict(zip(SYNSETS, of_class.values(), strict=False)) for of_class in images)
        write_ilsvrc(self.folder, *renamed, synsets=SYNSETS[:4])

    def _make_beside_photos(self) -> None:
        """A zip of photos/, tables of its labels, and a table of its images."""
        shutil.make_archive(str(self.folder / "photos"), "zip", self.folder, "photos")
        paths = sorted((self.folder / "photos").rglob("*.jpg"))
        names = [(path.relative_to(self.folder / "photos").as_posix(), path.parent.name) for path in paths]
        (self.folder / "labels.csv").write_text("".join(f"{name},{label}\n" for name, label in names))
        for table, keys in (("labels.jsonl", ("file", "tag")), ("images.jsonl", ("path", "class"))):
            lines = (json.dumps({keys[0]: f"photos/{name}", keys[1]: label}) + "\n" for name, label in names)
            (self.folder / table).write_text("".join(lines))

    def _make_tables_of_urls(self) -> None:
        """The URLs of photos/ with keys, as a table and as img2dataset's metadata."""
        import pyarrow as pa
        import pyarrow.parquet as parquet

        paths = sorted((self.folder / "photos").rglob("*.jpg"))
        rows = [{"url": path.as_uri(), "key": f"{key:09d}", "kind": path.parent.name} for key, path in enumerate(paths)]
        lines = (f"{row['url']},{row['key']}\n" for row in rows)
        (self.folder / "urls.csv").write_text("url,key\n" + "".join(lines))
        (self.folder / "metadata").mkdir()
        parquet.write_table(pa.Table.from_pylist(rows), self.folder / "metadata" / "00000.parquet")

    def _make_phone(self) -> None:
        """Pictures as phones and cameras write them."""
        import numpy as np
        import pillow_heif
        import pillow_jxl  # noqa: F401 (Pillow then writes JPEG XL)
        from PIL import Image

        from tests.support.profiles import DISPLAY_P3, rgb_profile
        from tests.support.raws import dng

        folder = self.folder / "phone"
        folder.mkdir()
        for number, path in enumerate(sorted((self.folder / "photos").rglob("*.jpg"))[:8]):
            with Image.open(path) as image:
                image.info["icc_profile"] = rgb_profile(DISPLAY_P3, 2.2)
                pillow_heif.from_pillow(image.convert("RGB")).save(folder / f"{number}.heic")
                image.save(folder / f"{number}.jxl")
                image.save(folder / f"{number}.avif")
        (folder / "9.dng").write_bytes(dng(np.full((48, 64, 3), 0.2)))

    def _train_on_cells(self, layers: str) -> None:
        """runs/cells of the demo's encoder, or runs/cells18 of a resnet18."""
        self._provide("microscopy_set")
        arch = f"--arch resnet{layers}" if layers else ""
        line = TRAIN.replace("shards/", "microscopy_set/")
        self._sh(f"{line} {arch} --channels 1 --out runs/cells{layers}")

    def _make_scans(self) -> None:
        """Photos in grey."""
        from PIL import Image

        for path in (self.folder / "photos").rglob("*.jpg"):
            place = self.folder / "my_scans" / path.relative_to(self.folder / "photos")
            place.parent.mkdir(parents=True, exist_ok=True)
            with Image.open(path) as image:
                image.convert("L").save(place)

    def _make_microscopy(self) -> None:
        """Grey TIFFs and PNGs of 16 bits."""
        from tests.support.pictures import cells, png_16
        from tests.support.tiffs import GREY, tiff

        (self.folder / "microscopy").mkdir()
        for number in range(24):
            data = png_16(cells(seed=number)) if number % 2 else tiff(cells(seed=number), GREY)
            (self.folder / "microscopy" / f"{number}.{'png' if number % 2 else 'tif'}").write_bytes(data)

    def _make_files_with_photos(self) -> None:
        """Photos in Parquet files and a data set on disk, as `datasets` writes them, a compressed tar, and LMDB."""
        import datasets
        import lmdb
        import pyarrow as pa
        import pyarrow.parquet as parquet

        files = sorted((self.folder / "photos").rglob("*.jpg"))
        names = sorted({path.parent.name for path in files})
        features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=names)})
        images = [{"bytes": path.read_bytes(), "path": path.name} for path in files]
        labels = [names.index(path.parent.name) for path in files]
        data = datasets.Dataset.from_dict({"image": images, "label": labels}, features=features)
        (self.folder / "hub/data").mkdir(parents=True)
        for split, part in (("train", 0), ("train", 1), ("test", 0)):
            count = 2 if split == "train" else 1
            data.shard(3, part).to_parquet(self.folder / f"hub/data/{split}-{part:05d}-of-{count:05d}.parquet")
        data.save_to_disk(self.folder / "saved")
        kinds = [path.parent.name for path in files]
        table = pa.table({"photo": [image["bytes"] for image in images], "hash": [b"1"] * len(files), "kind": kinds})
        parquet.write_table(table, self.folder / "rows.parquet")
        with tarfile.open(self.folder / "backup.tar.gz", "w:gz") as tar:
            tar.add(self.folder / "photos", "photos")
        place = str(self.folder / "church_outdoor_train_lmdb")
        with lmdb.open(place, map_size=1 << 30) as database, database.begin(write=True) as transaction:
            for path in files:
                transaction.put(path.name.encode(), path.read_bytes())

    def _make_images(self) -> None:
        from fastmoco.demo.made import make_images

        root = self.folder
        make_images(root / "imagenet/train", classes=4, per_class=66, size=48, seed=0)  # one batch of 256 and more
        make_images(root / "imagenet/val", classes=4, per_class=6, size=48, seed=1)
        make_images(root / "photos", classes=4, per_class=16, size=48, seed=2)
        for name in ("my_photos", "images"):
            shutil.copytree(root / "photos", root / name)
        (root / "my_photos/cats").mkdir()
        shutil.copy(root / "photos/dots/00003.jpg", root / "my_photos/cats/7.jpg")
        images = sorted((root / "images").rglob("*.jpg"))
        with (root / "images.csv").open("w", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(["path", "class"])
            rows.writerows([path.relative_to(root).as_posix(), path.parent.name] for path in images)
        shutil.copy(images[0], root / "photo.jpg")
        (root / "tars").mkdir()
        with tarfile.open(root / "tars/00000.tar", "w") as tar:
            for number, path in enumerate(images):
                tar.add(path, f"{number:06d}.jpg")


@contextmanager
def a_bucket() -> Iterator[None]:
    """The bucket that lines with s3://bucket/ mean, on this machine, with a table of images in it."""
    import io

    import pyarrow as pa
    import pyarrow.parquet as parquet
    from PIL import Image

    from shards.storage.store import open_store
    from tests.support.s3 import served_bucket

    with served_bucket():
        store, urls = open_store("s3://bucket"), []
        for number in range(8):
            file = io.BytesIO()
            Image.new("RGB", (40, 40), (number * 30, 90, 160)).save(file, "JPEG")
            store.write(f"images/{number}.jpg", file.getvalue())
            urls.append(f"s3://bucket/images/{number}.jpg")
        file = io.BytesIO()
        parquet.write_table(pa.table({"url": urls}), file)
        store.write("crawl.parquet", file.getvalue())
        yield


def _defaults(line: str) -> Iterator[str]:
    """What a line reads without naming it."""
    if re.search(r"fastmoco[ .]train\b", line) and not re.search(r"--(shards|stream|config|help|show)\b", line):
        yield "shards"
    if line.split("#")[0].strip() == "fastmoco runs":
        yield "runs/r50"


def _copy_tracked(folder: Path) -> None:
    line = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(line, cwd=ROOT, check=True, capture_output=True, text=True).stdout.split("\0")
    for name in filter(None, names):
        if (ROOT / name).exists():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
