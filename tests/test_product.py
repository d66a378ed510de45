"""The product as it is built and installed, and its README."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def built(tmp_path_factory, shard_sets) -> Path:
    """An sdist and the wheel that is built from it, of a tree with a shard set in it."""
    folder = tmp_path_factory.mktemp("built")
    tree = folder / "tree"
    anywhere = shutil.ignore_patterns("__pycache__", "*.tar", "*.npy", "*.idx", "*.names")
    at_the_root = {".git", ".venv", "runs", "site", "dist"}  # fastmoco/runs is a package

    def ignored(folder: str, names: list[str]) -> set[str]:
        return anywhere(folder, names) | (at_the_root if Path(folder) == ROOT else set())

    shutil.copytree(ROOT, tree, ignore=ignored)
    for file in (shard_sets / "train").iterdir():  # as after `fastmoco-shard --out shards/` in the repository
        shutil.copy(file, tree / "shards")
    line = [sys.executable, "-m", "build", "--no-isolation", "--outdir", folder / "dist"]
    subprocess.run(line, cwd=tree, check=True, capture_output=True)
    return folder / "dist"


def test_a_wheel_built_among_tars_holds_three_packages_and_no_tar(built):
    names = zipfile.ZipFile(next(built.glob("*.whl"))).namelist()
    roots = {name.split("/")[0] for name in names if ".dist-info/" not in name}
    assert roots == {"fastmoco", "pipelines", "shards"}
    sources = {str(path.relative_to(ROOT)) for root in roots for path in (ROOT / root).rglob("*.py")}
    assert sources == {name for name in names if name.endswith(".py")}
    others = {name for name in names if ".dist-info/" not in name and not name.endswith((".py", "py.typed"))}
    assert others == {"fastmoco/maps/map.css", "fastmoco/maps/map.js", "fastmoco/report/page.css"}
    assert {f"{package}/py.typed" for package in roots} <= set(names)


def test_the_wheel_runs_in_a_fresh_environment_and_the_sdist_holds_the_rest(built, photos, tmp_path):
    """With FASTMOCO_FACE=1 (`make test-long`) all three commands of the README, as they are written."""
    environment = tmp_path / "environment"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    packages = Path(sysconfig.get_path("purelib", vars={"base": str(environment), "platbase": str(environment)}))
    # the dependencies of this environment stand for what pip would download; the wheel's own packages come first
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    wheel = next(built.glob("*.whl"))
    pip = [sys.executable, "-m", "pip", "--python", environment, "install", "--quiet", "--no-deps", wheel]
    subprocess.run(pip, check=True, capture_output=True)
    with tarfile.open(next(built.glob("*.tar.gz"))) as sdist:
        names = {name.partition("/")[2] for name in sdist.getnames()}
        assert {"benchmarks/imgs_per_sec.py", "tests/conftest.py", "docs/trust.md", "CITATION.cff", "Makefile"} <= names
        assert not [name for name in names if name.endswith((".tar", ".npy", ".idx", ".names"))]
        sdist.extractall(tmp_path / "sdist", **({"filter": "data"} if hasattr(tarfile, "data_filter") else {}))
    place = tmp_path / "place"
    shutil.copytree(photos / "train", place / "imagenet")
    paths = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    paths["PATH"] = f"{environment / 'bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}"

    def shell(line: str, code: int = 0) -> str:
        done = subprocess.run(line, shell=True, cwd=place, env=paths, capture_output=True, text=True)
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr

    where = shell("python -c 'import fastmoco, shards; print(fastmoco.__file__, shards.__file__)'")
    assert where.count(str(environment)) == 2, where
    assert shell("fastmoco --version") == shell("fastmoco-shard --version") == f"fastmoco {wheel.name.split('-')[1]}\n"
    assert (environment / "bin" / "fastmoco").exists()
    assert "packed 96 images" in shell("fastmoco-shard --src imagenet/ --out shards/")
    if os.environ.get("FASTMOCO_FACE"):
        # as written it trains a ResNet-50 with batches of 256, and says that these are too few images for that
        assert "fewer than --batch-size 256" in shell("python -m torch.distributed.run -m fastmoco.train", 1)
        shell("python -m torch.distributed.run -m fastmoco.train --recipe demo --batch-size 32 --steps 2")
        (place / "benchmarks").symlink_to(next((tmp_path / "sdist").iterdir()) / "benchmarks")
        assert "images/s" in shell("python benchmarks/imgs_per_sec.py --seconds 0.1 --repeats 1")


def test_readmes_chart_and_badges_are_those_of_rows_and_pyproject():
    sys.path.insert(0, str(ROOT / "docs" / "_site"))
    try:
        import pictures
    finally:
        sys.path.pop(0)
    drawn = {f"loader-{scheme}.svg": pictures.chart(scheme) for scheme in pictures.COLOURS} | pictures.badges()
    assert {name: (pictures.IMAGES / name).read_text(encoding="utf-8") for name in drawn} == drawn
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert not [name for name in drawn if f"docs/images/{name}" not in readme]
    for name, shown in (("python", "Python 3.10+"), ("licence", "Licence: Apache-2.0"), ("status", "Status: alpha")):
        text = re.findall(r">([^<]+)</text>", drawn[f"badge-{name}.svg"])[1]
        assert shown.endswith(text) and f"![{shown}]" in readme


def test_the_ratios_of_the_page_on_speed_are_those_of_its_rows():
    page = (ROOT / "docs/benchmarks.md").read_text()
    for column, rows in ((1, "peers.json"), (2, "peers_xeon.json")):
        measured = json.loads((ROOT / "benchmarks/results" / rows).read_text())["rows"]
        rate = {row["name"]: row["imgs_per_sec"] for row in measured if "imgs_per_sec" in row}
        for line, other, digits in (
            ("original MoCo's loader", "original", 1),
            (
                "fastest other loader with antialiasing, as in the papers (albumentations, area)",
                "albumentations-area",
                1,
            ),
            ("fastest other loader (albumentations, no antialiasing)", "albumentations", 1),
            ("decoding alone", "decode-only", 2),
        ):
            (stated,) = re.findall(rf"^\| {re.escape(line)} \| (.*) \|$", page, re.MULTILINE)
            assert stated.split(" | ")[column - 1] == f"{rate['torch'] / rate[other]:.{digits}f}"


def test_the_citation_has_the_version():
    version = re.search(r'^version = "(.+)"', (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.M)
    assert version and f"\nversion: {version[1]}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
