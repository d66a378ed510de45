"""The product as it is installed and as the README shows it."""

from __future__ import annotations

import re
import shutil
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent


def test_a_wheel_built_among_tars_holds_three_packages_and_no_tar(tmp_path, command, shard_sets):
    tree = tmp_path / "tree"
    ignore = shutil.ignore_patterns(".git", ".venv", "runs", "__pycache__", "*.tar", "*.npy", "*.idx", "dist")
    shutil.copytree(ROOT, tree, ignore=ignore)
    for file in (shard_sets / "train").iterdir():  # as after `fastmoco-shard --out shards/` in the repository
        shutil.copy(file, tree / "shards")
    command(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", tmp_path, cwd=tree)
    names = zipfile.ZipFile(next(tmp_path.glob("*.whl"))).namelist()
    roots = {name.split("/")[0] for name in names if ".dist-info/" not in name}
    assert roots == {"fastmoco", "pipelines", "shards"}
    stray = [n for n in names if ".dist-info/" not in n and not n.endswith((".py", "py.typed"))]
    assert not stray
    assert {f"{package}/py.typed" for package in roots} <= set(names)


def test_readmes_commands_have_the_flags_they_show(command):
    """Every python command of the README's code blocks names modules and flags that exist."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    lines = [line.strip() for line in text.splitlines() if line.startswith("    ")]
    shown: dict[str, set[str]] = {}
    for line in lines:
        found = re.match(r"(?:torchrun (?:--nproc-per-node \d+ )?|python )(?:-m )?(\S+)(.*)", line)
        if found:
            shown.setdefault(found[1], set()).update(re.findall(r"--[a-z-]+", found[2]))
        elif line.startswith("fastmoco-shard --"):
            shown.setdefault("fastmoco-shard", set()).update(re.findall(r"--[a-z-]+", line))
    assert {"fastmoco.train", "fastmoco.knn", "fastmoco.demo", "benchmarks/imgs_per_sec.py"} <= set(shown)
    for name, flags in shown.items():
        if name == "fastmoco-shard":
            launcher = [BIN / name]
        else:
            launcher = [sys.executable, ROOT / name] if name.endswith(".py") else [sys.executable, "-m", name]
        shown = command(*launcher, "--help").stdout
        assert not {flag for flag in flags if flag not in shown}, (name, flags)
