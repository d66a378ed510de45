"""What may lie in `--out` besides a shard set: the package's own folder, in a checkout; nothing else."""

from __future__ import annotations

import shutil
import signal
import subprocess
from pathlib import Path

import pytest

import shards
from shards import PackError, PackOptions, ShardSet, pack
from tests.support.commands import ROOT
from tests.support.struck import struck

PACKAGE = Path(shards.__file__).parent


def options(src: Path, out: Path, **changes) -> PackOptions:
    return PackOptions(src, out, workers=1, **{"shard_size": 25, **changes})


@pytest.fixture
def package(tmp_path) -> Path:
    """A copy of the package `shards`, as a checkout holds it."""
    ignore = shutil.ignore_patterns("*.tar", "*.npy", "*.idx", "*.names", "*.json", "*.jsonl", "*.partial")
    return Path(shutil.copytree(PACKAGE, tmp_path / "shards", ignore=ignore))


def modules(package: Path) -> dict[str, bytes]:
    found = {str(path.relative_to(package)): path.read_bytes() for path in sorted(package.rglob("*.py"))}
    assert "__init__.py" in found and "packing/pack.py" in found
    return found


def test_the_packages_own_folder_is_packed_into_checked_and_described(folder, packed, package, cli):
    before = modules(package)
    pack(options(folder, package), progress=False)
    assert ShardSet(package).digest == ShardSet(packed).digest
    done = cli("--src", folder, "--out", package, "--shard-size", "25", "--workers", "1")
    assert done.returncode == 0
    assert "nothing was left to do" in done.stdout
    assert cli("verify", package, "--workers", "1").returncode == 0
    assert cli("info", package).returncode == 0
    assert not (package / "packing.partial").exists()
    assert modules(package) == before


def test_overwrite_replaces_the_set_and_none_of_the_packages_files(folder, package):
    before = modules(package)
    (package / "data" / "masks").mkdir(parents=True)
    (package / "data" / "masks" / "shard-000000.tar").write_bytes(b"not of this set")
    pack(options(folder, package), progress=False)
    with pytest.raises(PackError, match=r"--seed was 0, now 1; use --overwrite"):
        pack(options(folder, package, seed=1), progress=False)
    manifest = pack(options(folder, package, seed=1, shard_size=40, overwrite=True), progress=False)
    assert len(manifest.records) == 3
    assert sorted(path.name for path in package.glob("shard-*.tar")) == [f"shard-{n:06d}.tar" for n in range(3)]
    assert modules(package) == before
    assert (package / "data" / "masks" / "shard-000000.tar").read_bytes() == b"not of this set"


def test_a_packing_into_the_package_goes_on_after_it_was_killed(folder, package, tmp_path):
    before = modules(package)
    flags = ["--src", folder, "--out", package, "--shard-size", 4, "--workers", 1]
    line = struck(signal.SIGKILL, 2, *flags, group=False)
    killed = subprocess.run(line, cwd=ROOT, capture_output=True, text=True)
    assert (killed.stderr, killed.returncode) == ("", -signal.SIGKILL)
    assert (package / "packing.partial").is_dir()
    pack(options(folder, package, shard_size=4), progress=False)
    pack(options(folder, tmp_path / "whole", shard_size=4), progress=False)
    assert ShardSet(package).digest == ShardSet(tmp_path / "whole").digest
    assert not list(package.glob("*.partial"))
    assert modules(package) == before


@pytest.mark.parametrize("name", ["a.jpg", "album/a.jpg", "photos.zip"])
def test_a_folder_of_something_else_is_refused_and_stays_as_it_is(folder, tmp_path, name):
    out = tmp_path / "out"
    (out / name).parent.mkdir(parents=True)
    (out / name).write_bytes(b"a photograph")
    with pytest.raises(PackError, match=rf"holds unrelated files \({name.split('/')[0]}\); name an empty"):
        pack(options(folder, out), progress=False)
    assert [str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()] == [name]


def test_a_photograph_in_a_package_is_refused(folder, package):
    (package / "a.jpg").write_bytes(b"a photograph")
    with pytest.raises(PackError, match=r"unrelated files \(a\.jpg\)"):
        pack(options(folder, package), progress=False)
