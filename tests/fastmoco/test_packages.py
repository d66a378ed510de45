"""A user's own `shards` or `pipelines` in the way of fastmoco's: real folders, real processes."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LAUNCH = Path(sys.executable).parent / "torchrun"
SAFE_PATH = pytest.mark.skipif(sys.version_info < (3, 11), reason="PYTHONSAFEPATH came with Python 3.11")
SAYS_WRONG = ["fastmoco train: --seed is -1; it must not be negative"]


def run(*arguments, cwd, **environment):
    full = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    full.pop("PYTHONSAFEPATH", None) if "PYTHONSAFEPATH" not in environment else None
    return subprocess.run(
        list(map(str, arguments)), cwd=cwd, env=full, capture_output=True, text=True, timeout=300
    )  # fmt: skip


def train(cwd, **environment):
    """A training that, where nothing is in its way, ends at once by a wrong flag."""
    done = run(sys.executable, "-m", "fastmoco.train", "--seed", "-1", cwd=cwd, **environment)
    assert done.returncode == 2 and not done.stdout, done.stderr
    return done.stderr.splitlines()


@pytest.fixture(params=["pipelines/__init__.py", "shards/__init__.py", "pipelines.py", "shards.py"])
def foreign(request, tmp_path):
    """A project with a package or module of a name of ours; the package or module."""
    file = tmp_path / "project" / request.param
    file.parent.mkdir(parents=True)
    file.write_text("raise SystemExit('it must not be imported')\n")
    return file.parent if file.name == "__init__.py" else file


def test_a_command_names_what_is_in_the_way_and_what_to_do(foreign, tmp_path):
    (line,) = train(foreign.parent)
    assert line.startswith(f"fastmoco: {foreign} hides the package {foreign.stem!r} of fastmoco")
    remedies = line.split("; ")[1]
    # each remedy that it names is tried
    assert "run from another folder" in remedies
    assert train(tmp_path) == SAYS_WRONG
    assert "rename it" in remedies
    foreign.rename(foreign.parent / "other")
    assert train(foreign.parent) == SAYS_WRONG


@SAFE_PATH
def test_the_safe_path_is_a_remedy(foreign):
    (line,) = train(foreign.parent)
    assert "set PYTHONSAFEPATH=1" in line
    assert train(foreign.parent, PYTHONSAFEPATH="1") == SAYS_WRONG


@SAFE_PATH
@pytest.mark.slow
def test_under_torchrun_one_rank_says_so_and_the_safe_path_is_a_remedy(tmp_path):
    (tmp_path / "pipelines.py").touch()
    command = (LAUNCH, "--nproc-per-node", "2", "-m", "fastmoco.train", "--seed", "-1")
    said = run(*command, cwd=tmp_path).stderr
    lines = [line for line in said.splitlines() if "hides the package 'pipelines'" in line]
    assert lines == [lines[0], f"  traceback : {lines[0]}"] and "set PYTHONSAFEPATH=1" in lines[0]
    said = run(*command, cwd=tmp_path, PYTHONSAFEPATH="1").stderr
    lines = [line for line in said.splitlines() if "torch/distributed" not in line]
    assert lines.count(SAYS_WRONG[0]) == 1 and lines[0] == SAYS_WRONG[0] and "hides" not in said
    # torchrun's own report cannot be silenced from within a rank; it ends with the same line, as the root cause
    assert lines[-2:] == [f"  traceback : {SAYS_WRONG[0]}", "=" * 60]


def test_a_package_on_the_python_path(tmp_path):
    (tmp_path / "path/shards").mkdir(parents=True)
    (tmp_path / "path/shards/__init__.py").touch()
    (line,) = train(tmp_path, PYTHONPATH=os.pathsep.join([str(tmp_path / "path"), str(ROOT)]))
    assert line.endswith(f"rename it, or remove {tmp_path / 'path'} from PYTHONPATH")
    path = os.pathsep.join([str(tmp_path / "path"), str(ROOT)])
    scripts = {
        name: ("-c", f"import sys; sys.argv[0] = '/bin/{name}'; from fastmoco.{module} import main; main()")
        for name, module in (("fastmoco", "__main__"), ("fastmoco-shard", "shard"))
    }
    for start in (*scripts.values(), ("-m", "fastmoco")):
        done = run(sys.executable, *start, "--help", cwd=tmp_path, PYTHONPATH=path)
        assert (done.returncode, done.stderr.splitlines()) == (2, [line])
    for name, start in scripts.items():
        done = run(sys.executable, *start, "--help", cwd=tmp_path)
        assert done.returncode == 0 and f"usage: {name} " in done.stdout


def test_a_package_that_was_installed_over_ours(tmp_path):
    """Packages `shards` and `pipelines` exist on PyPI; pip unpacks them into the same folder."""
    site = tmp_path / "site-packages"
    for name in ("fastmoco", "pipelines", "shards"):
        shutil.copytree(ROOT / name, site / name, ignore=shutil.ignore_patterns("__pycache__"))
    assert train(tmp_path, PYTHONPATH=str(site)) == SAYS_WRONG
    (site / "shards/__init__.py").write_text("'''Another package.'''\n")
    (line,) = train(tmp_path, PYTHONPATH=str(site))
    assert f"{site / 'shards'} hides" in line and "uninstall the package that it belongs to" in line


def test_a_library_raises_an_import_error(foreign):
    script = (
        "try:\n    import fastmoco\nexcept ImportError as error:\n    print(type(error).__name__, error, sep='|')\n"
    )
    (foreign.parent / "script.py").write_text(script)
    done = run(sys.executable, "script.py", cwd=foreign.parent)
    assert done.returncode == 0 and done.stdout.startswith(f"ForeignPackageError|{foreign} hides the package")
    assert done.stdout.endswith("; rename it\n")


def test_a_folder_of_tars_is_not_in_the_way(tmp_path):
    """`--out shards/` makes a folder of that name in which there is no Python package."""
    for name in ("shards", "pipelines"):
        (tmp_path / name).mkdir()
    assert train(tmp_path) == SAYS_WRONG
