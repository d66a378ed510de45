"""From ImageNet's three files, in their shape, to a linear probe's figure: the four commands of README."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

import pytest

from fastmoco.demo.made import CLASSES, make_images
from shards import ShardSet
from tests.documented.changes import changed
from tests.documented.pages import command_lines
from tests.support.ilsvrc import SYNSETS, write_ilsvrc

FIRST = "fastmoco pack --src ILSVRC2012_img_train.tar"


def four_commands(page: str) -> list[str]:
    lines = [shown.text for shown in command_lines() if shown.page == page]
    first = next(number for number, line in enumerate(lines) if line.startswith(FIRST))
    return lines[first : first + 4]


def write_downloads(folder: Path, per_class: int, classes: int = 10) -> None:
    """The three files, of made images: each pattern is a synset."""
    files: list[dict[str, list[bytes]]] = []
    for split, count in (("train", per_class), ("val", 2)):
        root = make_images(folder / "made" / split, classes=classes, per_class=count, size=40, seed=len(split))
        places = zip(SYNSETS, CLASSES, strict=False)
        files.append({wnid: [path.read_bytes() for path in sorted((root / name).iterdir())]
                      for wnid, name in places if (root / name).exists()})  # fmt: skip
    write_ilsvrc(folder, *files)


def run(lines: list[str], command, torchrun, *more: str) -> str:
    """Run command lines as the documentation's test does, with less; the output of the last one."""
    output = ""
    for line in lines:
        program, *words = shlex.split(changed(line) or "")
        if program == "torchrun":
            ranks, words = int(words[1]), words[2:]
            output = torchrun(ranks, *words, *more).stdout
        else:
            assert program == "fastmoco"
            output = command(sys.executable, "-m", "fastmoco", *words, "--workers", 1).stdout
    return output


def test_readme_and_the_tutorial_show_the_same_four_commands():
    lines = four_commands("README.md")
    assert lines == four_commands("docs/tutorials/imagenet.md")
    assert [re.sub(r"torchrun --nproc-per-node 8 -m ", "", line).split()[1] for line in lines] == [
        "pack", "pack", "train", "linear",
    ]  # fmt: skip


@pytest.mark.long
@pytest.mark.distributed
def test_four_commands_lead_from_the_download_to_a_linear_probe(tmp_path, command, torchrun):
    write_downloads(tmp_path, per_class=8)
    output = run(four_commands("README.md"), command, torchrun, "--threads", "1")
    with ShardSet(tmp_path / "sets/imagenet") as train, ShardSet(tmp_path / "sets/imagenet-val") as val:
        assert (len(train), len(val)) == (80, 20)
        assert train.classes == val.classes == tuple(sorted(SYNSETS))
    found = re.search(r"linear top-1 ([\d.]+) %, top-5 ([\d.]+) %, lr 30 \(20 images, 10 classes\)", output)
    assert found and 0 <= float(found[1]) <= float(found[2]) <= 100
