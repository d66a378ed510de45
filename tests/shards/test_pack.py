from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from shards import PackError, PackOptions, ShardSet, pack
from shards.packing.output import held
from shards.storage.local import LocalStore
from tests.support import pictures
from tests.support.commands import ROOT, fastmoco_shard
from tests.support.folders import same_files
from tests.support.struck import struck


def options(src: Path, out: Path, **changes) -> PackOptions:
    return replace(PackOptions(src, out, workers=1, shard_size=25), **changes)


def quarantined(out: Path) -> dict[str, str]:
    lines = (out / "quarantine.jsonl").read_text(encoding="utf-8").splitlines()
    return {entry["source"]: entry["reason"] for entry in map(json.loads, lines)}


def test_every_image_is_packed_once_in_a_mixed_order(folder, packed):
    with ShardSet(packed) as shard_set:
        contents = [shard_set.read(i) for i in range(len(shard_set))]
        labels = shard_set.labels(np.arange(120))
    expected = {path.read_bytes(): int(path.parent.name[-1]) for path in folder.rglob("*.jpg")}
    assert dict(zip(contents, labels.tolist(), strict=True)) == expected
    assert len(contents) == 120
    for start in range(0, 100, 25):
        assert len(set(labels[start : start + 25].tolist())) == 3, "a shard holds all classes"


def test_the_folder_holds_what_the_format_says(packed):
    suffixes = (".idx", ".json", ".names", ".npy", ".tar")
    shards = [f"shard-{shard:06d}{suffix}" for shard in range(5) for suffix in suffixes]
    assert sorted(os.listdir(packed)) == sorted([*shards, "manifest.json", "quarantine.jsonl"])
    manifest = json.loads((packed / "manifest.json").read_text())
    assert manifest["schema"] == "fastmoco-shards/1"
    assert manifest["samples"] == 120
    assert manifest["classes"] == ["class 0", "class 1", "class 2"]


def test_workers_do_not_change_the_bytes(folder, packed, tmp_path):
    pack(options(folder, tmp_path / "out", workers=3), progress=False)
    assert same_files(packed, tmp_path / "out")


def test_the_place_of_the_source_does_not_change_the_bytes(folder, packed, tmp_path, monkeypatch):
    (tmp_path / "moved").symlink_to(folder)
    monkeypatch.chdir(tmp_path)
    pack(options(Path("moved"), Path("out")), progress=False)
    assert same_files(packed, tmp_path / "out")


def test_seed_changes_the_order_and_limit_takes_a_mixed_part(folder, packed, tmp_path):
    pack(options(folder, tmp_path / "other", seed=1), progress=False)
    pack(options(folder, tmp_path / "part", limit=30), progress=False)
    first, other, part = ShardSet(packed), ShardSet(tmp_path / "other"), ShardSet(tmp_path / "part")
    assert first.read(0) != other.read(0)
    assert len(part) == 30
    assert all(part.read(i) == first.read(i) for i in range(30))
    assert set(part.labels(np.arange(30)).tolist()) == {0, 1, 2}


def run_and_stop(folder: Path, out: Path, stop: signal.Signals, after_shards: int) -> int:
    """Start a packing with two workers, which a signal stops when some more shards are done; its exit code."""
    flags = ["--src", folder, "--out", out, "--shard-size", 10, "--workers", 2]
    line = struck(stop, after_shards, *flags)
    return subprocess.run(line, cwd=ROOT, start_new_session=True, stdout=subprocess.DEVNULL, timeout=300).returncode


def test_killed_at_any_moment_the_rerun_gives_the_same_bytes(folder, tmp_path):
    pack(options(folder, tmp_path / "whole", shard_size=10), progress=False)
    out = tmp_path / "killed"
    for after in (2, 4):
        assert run_and_stop(folder, out, signal.SIGKILL, after) == -signal.SIGKILL
        with pytest.raises(ValueError, match="unfinished packing"):
            ShardSet(out)
    done = {path.name: path.stat().st_mtime_ns for path in out.glob("shard-*.json")}
    assert len(done) >= 6
    result = fastmoco_shard("--src", folder, "--out", out, "--shard-size", 10, "--workers", 2)
    assert result.returncode == 0, result.stderr
    assert "continuing" in result.stdout
    assert all((out / name).stat().st_mtime_ns == mtime for name, mtime in done.items()), "shards are kept"
    assert same_files(tmp_path / "whole", out)


def test_interrupted_by_the_keyboard(folder, tmp_path):
    out = tmp_path / "out"
    assert run_and_stop(folder, out, signal.SIGINT, 1) == 130
    assert not list(out.glob("*.tar.partial"))


def test_a_rerun_of_a_whole_set_does_nothing(folder, tmp_path):
    first = pack(options(folder, tmp_path / "out"), progress=False)
    before = {path: path.stat().st_ino for path in (tmp_path / "out").glob("shard-*")}
    assert pack(options(folder, tmp_path / "out"), progress=False) == first
    assert {path: path.stat().st_ino for path in (tmp_path / "out").glob("shard-*")} == before


@pytest.mark.parametrize("suffix", [".tar", ".npy", ".idx", ".names", ".json"])
def test_a_rerun_repairs_a_missing_file(folder, packed, tmp_path, suffix):
    pack(options(folder, tmp_path / "out"), progress=False)
    (tmp_path / "out" / f"shard-000002{suffix}").unlink()
    pack(options(folder, tmp_path / "out"), progress=False)
    assert same_files(packed, tmp_path / "out")


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"seed": 3}, "--seed was 0, now 3"),
        ({"resize": 32, "quality": 80}, "--resize was not given, now 32; --quality was 90, now 80"),
        ({"shard_size": 10}, "--shard-size was 25, now 10"),
        ({"limit": 7}, "--limit was not given, now 7"),
        ({"names": False}, "--names was not given, now False"),
    ],
)
def test_other_options_are_refused_and_named(folder, packed, changes, named):
    before = sorted(os.listdir(packed))
    with pytest.raises(PackError, match=named):
        pack(options(folder, packed, **changes), progress=False)
    assert sorted(os.listdir(packed)) == before


def test_another_source_is_refused_and_overwrite_says_what_it_removes(tmp_path, capsys):
    src, out = tmp_path / "src", tmp_path / "out"
    src.mkdir()
    for name in ("1.jpg", "2.jpg"):
        (src / name).write_bytes(pictures.jpeg(pictures.gradient()))
    pack(options(src, out), progress=False)
    (src / "3.jpg").write_bytes(pictures.jpeg(pictures.gradient()))
    with pytest.raises(PackError, match=r"source: was 2 images of .* now 3 images"):
        pack(options(src, out), progress=False)
    (src / "3.jpg").unlink()
    (src / "2.jpg").rename(src / "4.jpg")
    with pytest.raises(PackError, match=r"same number and size .*, other names"):
        pack(options(src, out), progress=False)
    pack(options(src, out, overwrite=True))
    assert "--overwrite: removing 7 files" in capsys.readouterr().out
    assert len(ShardSet(out)) == 2


def test_foreign_files_in_the_output_are_refused(folder, tmp_path):
    (tmp_path / "holiday.jpg").write_bytes(b"x")
    with pytest.raises(PackError, match=r"unrelated files \(holiday.jpg\)"):
        pack(options(folder, tmp_path), progress=False)
    assert os.listdir(tmp_path) == ["holiday.jpg"]


def test_tars_of_another_tool_are_refused(folder, tmp_path):
    (tmp_path / "shard-000000.tar").write_bytes(b"precious")
    with pytest.raises(PackError, match="unknown packing"):
        pack(options(folder, tmp_path), progress=False)
    assert (tmp_path / "shard-000000.tar").read_bytes() == b"precious"


def test_a_python_package_may_lie_in_the_output(folder, tmp_path):
    (tmp_path / "__init__.py").write_text("")
    (tmp_path / "py.typed").write_text("")
    (tmp_path / "__pycache__").mkdir()
    assert pack(options(folder, tmp_path), progress=False).samples == 120
    assert (tmp_path / "__init__.py").exists()


def test_a_second_packer_is_refused(folder, tmp_path):
    with held(LocalStore(tmp_path / "out")), pytest.raises(PackError, match=f"packed by process {os.getpid()} on"):
        pack(options(folder, tmp_path / "out"), progress=False)


def test_one_folder_of_everything(tmp_path):
    """Bad files are left out with a cause, all others are packed, ids have no holes, runs are equal."""
    src = tmp_path / "src"
    good = pictures.jpeg(pictures.gradient())
    upright = Image.Exif()
    upright[0x0112] = 6
    fine = {
        "good.jpg": good,
        "with space.and.dots .jpg": good,
        "größe 図.jpg": good,
        "cmyk.jpg": pictures.jpeg(pictures.gradient().convert("CMYK")),
        "grey.jpg": pictures.jpeg(pictures.gradient().convert("L")),
        "deep.png": pictures.encoded(Image.fromarray(np.full((48, 64), 30000, np.uint16)), "PNG"),
        "alpha.png": pictures.encoded(pictures.gradient().convert("RGBA"), "PNG"),
        "rotated.jpg": pictures.jpeg(pictures.gradient(), exif=upright),
    }
    bad = {"truncated.jpg": good[:-100], "empty.jpg": b"", "text.jpg": b"hello", "tiny.png": good[:0]}
    bad["tiny.png"] = pictures.encoded(Image.new("RGB", (2, 2)), "PNG")
    for name, data in {**fine, **bad}.items():
        path = src / ("one" if len(name) % 2 else "two") / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    (src / "one" / "broken.jpg").symlink_to("nowhere")
    Path(os.fsdecode(os.fsencode(src) + b"/two/caf\xe9.jpg")).write_bytes(good)
    result = fastmoco_shard("--src", src, "--out", tmp_path / "out", "--shard-size", 3, "--workers", 2)
    assert result.returncode == 0, result.stderr
    assert "left out 5 (" in result.stdout
    causes = {Path(name).name: reason.split(":")[0] for name, reason in quarantined(tmp_path / "out").items()}
    assert causes == {
        "truncated.jpg": "truncated",
        "empty.jpg": "empty",
        "text.jpg": "not an image",
        "tiny.png": "too small",
        "broken.jpg": "broken link",
    }
    with ShardSet(tmp_path / "out") as shard_set:
        assert len(shard_set) == len(fine) + 1
        images = [Image.open(io.BytesIO(shard_set.read(i))) for i in range(len(shard_set))]
        sizes = shard_set.sizes(np.arange(len(shard_set)))
    assert [image.size[::-1] for image in images] == [tuple(size) for size in sizes.tolist()]
    assert sorted(image.size for image in images).count((48, 64)) == 1
    pack(options(src, tmp_path / "again", shard_size=3), progress=False)
    assert same_files(tmp_path / "out", tmp_path / "again")


def test_a_shard_of_bad_images_only_is_empty(tmp_path):
    src = tmp_path / "src"
    src.mkdir()
    for number in range(12):
        (src / f"{number}.jpg").write_bytes(pictures.jpeg(pictures.gradient(seed=number)) if number == 5 else b"bad")
    manifest = pack(options(src, tmp_path / "out", shard_size=2), progress=False)
    assert sorted(record.samples for record in manifest.records) == [0, 0, 0, 0, 0, 1]
    assert len(list((tmp_path / "out").glob("*.tar"))) == 1
    with ShardSet(tmp_path / "out") as shard_set:
        assert shard_set.read(0) == (src / "5.jpg").read_bytes()
        assert shard_set.sizes(np.array([0])).tolist() == [[48, 64]]
    assert fastmoco_shard("verify", tmp_path / "out").returncode == 0


def test_nothing_but_bad_images_is_an_error(tmp_path):
    src = tmp_path / "src"
    src.mkdir()
    (src / "1.jpg").write_bytes(b"bad")
    with pytest.raises(PackError, match=r"none of 1 image .* \(1\.jpg: not an image: text\); .*quarantine\.jsonl"):
        pack(options(src, tmp_path / "out"), progress=False)
    assert list(quarantined(tmp_path / "out")) == ["1.jpg"]


def test_an_unguarded_script_can_pack(folder, tmp_path):
    """Workers do not import the main module, so a script that packs at its top level does not start itself."""
    script = tmp_path / "script.py"
    script.write_text(
        "from pathlib import Path\nfrom shards import PackOptions, pack\nprint('started')\n"
        f"pack(PackOptions(Path({str(folder)!r}), Path({str(tmp_path / 'out')!r}), workers=2, shard_size=25), False)\n"
    )
    result = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=300, check=True)
    assert result.stdout == "started\n"
    assert len(ShardSet(tmp_path / "out")) == 120
