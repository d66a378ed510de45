"""How every command starts and ends: no heavy import before the flags are right, and one line for a user's mistake."""

from __future__ import annotations

import ast
import re
import shlex
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fastmoco.__main__ import COMMANDS, overview, parser_of
from fastmoco.checkpoints import saving
from fastmoco.recipes import moco_v1
from fastmoco.trainer.step import TrainStep
from shards._software import version_of

ROOT = Path(__file__).resolve().parents[2]
MODULES = {
    **{f"fastmoco {name}": ("-m", "fastmoco.__main__", name) for name in COMMANDS},
    "fastmoco": ("-m", "fastmoco.__main__"),
    "fastmoco-shard": ("-m", "shards.cli"),
    "imgs_per_sec": (str(ROOT / "benchmarks" / "imgs_per_sec.py"),),
}
VERSION = f"fastmoco {version_of('fastmoco')}\n"
LOG_LINE = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d ")


@pytest.fixture(scope="module")
def places(shard_sets, photos, tmp_path_factory):
    """Good and bad inputs by name."""
    folder = tmp_path_factory.mktemp("places")
    # torch's unpickler fails on these opcodes with an IndexError
    (folder / "text").write_text("text: no checkpoint, no weights, no folder\n")
    shutil.copytree(shard_sets / "train", folder / "damaged")
    for index in (folder / "damaged").glob("*.npy"):
        index.write_bytes(index.read_bytes()[:-5])
    step = TrainStep(replace(moco_v1(), arch="resnet10", batch_size=8, queue_size=16), torch.device("cpu"), 1)
    state = {"data": {"digest": "a" * 64, "samples": 64}, "progress": {"epoch": 0, "step": 1, "samples": 8}}
    settings = step.config.to_dict()
    good = saving.save(folder / "good", {**state, **step.state(), "config": settings}, 1)
    newer = saving.save(folder / "newer", {**state, **step.state(), "config": settings | {"novel": 1}}, 1)
    return {
        "GOOD": good, "NEWER": newer, "TEXT": folder / "text", "UNDER": folder / "text" / "out.json",
        "NOWHERE": folder / "nowhere", "DAMAGED": folder / "damaged", "TRAIN": shard_sets / "train",
        "VAL": shard_sets / "val", "PHOTOS": photos / "train", "NEW": folder / "new",
        "FEATURES": folder / "features",
    }  # fmt: skip


PROBE = "--checkpoint GOOD --train TRAIN --val VAL"
EMBED = "--checkpoint GOOD --images TRAIN --out FEATURES"
MISTAKES = [
    # flags
    ("fastmoco knn", "--checkpont GOOD", ["unknown flag --checkpont; did you mean --checkpoint?"]),
    ("fastmoco sheet", "--shards TRAIN --augmentation v4", ["--augmentation", "'v4'"]),
    (
        "fastmoco sheet",
        "--shards TRAIN --views TEXT --crop-min 0.1",
        ["TEXT and --crop-min 0.1 are both"],
    ),
    (
        "fastmoco sheet",
        "--shards TRAIN --views TEXT --augmentation v3",
        ["TEXT and --augmentation v3 are both"],
    ),
    ("fastmoco train", "--views TEXT", ["--views TEXT is not TOML"]),
    ("fastmoco train", "--temperatur 0.1", ["unknown flag --temperatur; did you mean --temperature"]),
    ("fastmoco train", "--temperature 0", ["--temperature is 0.0; it must be above 0"]),
    ("fastmoco train", "--steps many", ["--steps", "'many'"]),
    ("fastmoco train", "--head round", ["--head", "'round'", "mlp"]),
    ("fastmoco train", "--recipe simclr", ["unknown --recipe 'simclr'; known: moco-v1"]),
    ("fastmoco train", "--arch vgg", ["unknown --arch 'vgg'; known: resnet10"]),
    ("fastmoco train", "--order sideways", ["--order", "sideways", "sharded"]),
    ("fastmoco knn", "--k 3", ["--checkpoint, --train, --val"]),
    ("fastmoco embed", "--checkpoint GOOD --images TRAIN", ["--out"]),
    ("fastmoco embed", f"{EMBED} --format csv", ["--format", "'csv'", "parquet"]),
    ("fastmoco embed", f"{EMBED} --part-size 0", ["--part-size is 0"]),
    ("fastmoco embed", f"{EMBED} --batchsize 3", ["unknown flag --batchsize; did you mean --batch-size"]),
    ("fastmoco knn", f"{PROBE} --k 0", ["--k is 0; it must be at least 1"]),
    ("fastmoco finetune", f"{PROBE} --head-lr 0", ["--head-lr is 0.0; it must be above 0"]),
    ("fastmoco finetune", f"{PROBE} --fraction 2", ["--fraction is 2.0; it must be in 0..1"]),
    ("fastmoco finetune", f"{PROBE} --list TEXT", ["--list TEXT names no labelled image of TRAIN"]),
    ("fastmoco linear", f"{PROBE} --lr 0", ["--lr is 0.0; it must be above 0"]),
    ("fastmoco detect", "--recipe yolo", ["unknown --recipe 'yolo'; known: voc-c4"]),
    ("fastmoco detect", "--arch vgg", ["unknown --arch 'vgg'"]),
    ("fastmoco export", "--out NEW", ["--format torchvision|timm|hf-hub|detectron2|moco"]),
    ("fastmoco demo", "--limit 0", ["--limit is 0"]),
    ("fastmoco demo", "--image-size 4", ["--image-size is 4; it must be at least 16"]),
    ("fastmoco", "trian --shards TRAIN", ["no such command: 'trian'; did you mean fastmoco train?"]),
    ("fastmoco", "frobnicate", ["no such command: 'frobnicate'; the commands are pack, verify", "export"]),
    ("fastmoco", "--shards TRAIN", ["--shards is given before a command, as in fastmoco train --shards"]),
    # values that make no sense
    ("fastmoco train", "--milestones 0.8 0.6", ["--milestones 0.8 0.6: each must be above the one before it"]),
    ("fastmoco linear", f"{PROBE} --milestones 60 60", ["--milestones 60 60: each must be above the one before it"]),
    ("fastmoco detect", "--milestones 9 5", ["--milestones 9 5: each must be above the one before it"]),
    ("fastmoco train", "--early-sizes 128", ["--early-sizes 128 is no size with a share of the run; write 32@0.5"]),
    ("fastmoco train", "--out=", ["the value of --out is empty; give one, or leave it out"]),
    ("fastmoco train", "--weight-decay inf", ["--weight-decay is inf; it must be finite"]),
    ("fastmoco train", "--image-size 100000", ["--image-size is 100,000; it must be at most 65,535"]),
    ("fastmoco train", f"--seed {2**63}", ["it must be at most 9,223,372,036,854,775,807"]),
    ("fastmoco train", "--shards TRAIN --batch-size 48 --epochs 99999999", ["has 199,999,998 steps", "99,999,999"]),
    ("fastmoco train", "--lr 1e300", ["--lr is 1e+300; it must be at most 1,000,000"]),
    ("fastmoco demo", "--steps 100000000", ["--steps is 100,000,000; it must be at most 99,999,999"]),
    ("fastmoco demo", "--limit 9999999999", ["--limit is 9,999,999,999; it must be at most"]),
    ("fastmoco knn", f"{PROBE} --k 97 5", ["--k is 97, more than the 96 labelled images of TRAIN; give at most 96"]),
    (
        "fastmoco train",
        "--shards TRAIN --batch-size 32 --arch resnet10 --knn-every 1 --knn-val VAL --knn-k 97",
        ["--knn-k is 97, more than the 96 labelled images of TRAIN"],
    ),
    ("fastmoco sheet", "--shards TRAIN --out x.xyz", ["--out x.xyz: the picture is a PNG", "ends in .png"]),
    ("fastmoco index", "NOWHERE", ["NOWHERE does not exist; give the folder that holds the tars"]),
    ("fastmoco index", "TEXT", ["TEXT is a file; give the folder that holds the tars"]),
    # shard sets
    ("fastmoco verify", "NOWHERE", ["NOWHERE"]),
    ("fastmoco pack", "PHOTOS", ["unexpected 'PHOTOS'; give the images by --src PHOTOS (see fastmoco pack --help)"]),
    ("fastmoco pack", "--src PHOTOS --out NEW --percentiles 1 99", ["--percentiles 1 99", "give --keep-16-bit"]),
    ("fastmoco pack", "--src PHOTOS --out NEW --keep-16-bit --srgb", ["--srgb", "leave one of them out"]),
    ("fastmoco train", "--shards NOWHERE", ["NOWHERE", "fastmoco pack"]),
    ("fastmoco knn", "--checkpoint GOOD --train NOWHERE --val VAL", ["NOWHERE", "fastmoco pack"]),
    ("fastmoco sheet", "--shards NOWHERE", ["NOWHERE", "fastmoco pack"]),
    ("fastmoco detect", "--train NOWHERE:train --val NOWHERE:val", ["NOWHERE"]),
    ("fastmoco demo", "--src NOWHERE", ["NOWHERE"]),
    ("imgs_per_sec", "--repeats 0", ["--repeats is 0"]),
    ("imgs_per_sec", "--shards TRAIN --arch vgg", ["unknown --arch 'vgg'"]),
    ("fastmoco train", "--shards DAMAGED --batch-size 32 --arch resnet10", ["DAMAGED", ".npy"]),
    ("fastmoco knn", "--checkpoint GOOD --train DAMAGED --val VAL", ["DAMAGED", ".npy"]),
    ("fastmoco linear", "--checkpoint GOOD --train TRAIN --val DAMAGED", ["DAMAGED", ".npy"]),
    ("fastmoco similar", "a.jpg", ["--in"]),
    ("fastmoco similar", "a.jpg --in NOWHERE", ["NOWHERE has no embedding.json; fastmoco embed --out"]),
    ("fastmoco similar", "a.jpg --in TEXT", ["TEXT"]),
    ("fastmoco map", "--in NOWHERE --out NEW", ["NOWHERE has no embedding.json; fastmoco embed --out"]),
    ("fastmoco map", "--in TEXT --out TRAIN", ["--out TRAIN is a folder; give the name of a file"]),
    ("fastmoco embed", "--checkpoint GOOD --images NOWHERE --out FEATURES", ["NOWHERE"]),
    ("fastmoco embed", "--checkpoint GOOD --images DAMAGED --out FEATURES", ["DAMAGED", ".npy"]),
    ("fastmoco embed", "--checkpoint TEXT --images TRAIN --out FEATURES", ["--checkpoint: TEXT cannot be read"]),
    ("fastmoco embed", "--checkpoint GOOD --images TRAIN --out TEXT", ["--out TEXT is a file; give a folder"]),
    ("fastmoco sheet", "--shards DAMAGED", ["DAMAGED", ".npy"]),
    ("imgs_per_sec", "--shards NOWHERE", ["NOWHERE", "fastmoco pack"]),
    ("imgs_per_sec", "--shards DAMAGED", ["DAMAGED", ".npy"]),
    ("imgs_per_sec", "--shards TRAIN --json UNDER", ["--json UNDER cannot be written"]),
    ("fastmoco-shard", "--src NOWHERE --out NEW", ["NOWHERE"]),
    ("fastmoco-shard", "info NOWHERE", ["NOWHERE"]),
    ("fastmoco-shard", "info DAMAGED", ["DAMAGED", ".npy"]),
    ("fastmoco-shard", "--src PHOTOS --out TEXT", ["TEXT"]),
    # checkpoints and weights
    (
        "fastmoco train",
        "--shards TRAIN --batch-size 32 --arch resnet10 --init TEXT",
        ["--init: TEXT cannot be read: it was not written by torch.save"],
    ),
    (
        "fastmoco train",
        "--shards TRAIN --batch-size 32 --arch resnet10 --resume TEXT",
        ["--resume: TEXT cannot be read: it was not written by torch.save", "give the path of a step-XXXXXXXX.pt"],
    ),
    (
        "fastmoco train",
        "--shards TRAIN --batch-size 32 --arch resnet10 --resume NOWHERE",
        ["--resume: there is no checkpoint NOWHERE"],
    ),
    ("fastmoco knn", "--checkpoint TEXT --train TRAIN --val VAL", ["--checkpoint: TEXT cannot be read"]),
    ("fastmoco knn", "--checkpoint untrained --train TRAIN --val VAL", ["--checkpoint: ", "add --arch"]),
    ("fastmoco knn", f"{PROBE} --arch vgg", [": unknown --arch 'vgg'; known: resnet10"]),
    ("fastmoco linear", f"{PROBE} --arch vgg", [": unknown --arch 'vgg'; known: resnet10"]),
    ("fastmoco knn", "--checkpoint NEWER --train TRAIN --val VAL", ["unknown settings ['novel']", "use the version"]),
    (
        "fastmoco linear",
        "--checkpoint NOWHERE --train TRAIN --val VAL",
        ["--checkpoint: there is no file NOWHERE; check the path"],
    ),
    ("fastmoco export", "--checkpoint TEXT --format timm --out NEW", ["--checkpoint: TEXT cannot be read"]),
    ("fastmoco export", "--checkpoint GOOD --format timm --arch vgg --out NEW", [": unknown --arch 'vgg'"]),
    ("fastmoco export", "--checkpoint NEWER --format timm --out NEW", ["NEWER: unknown settings ['novel']"]),
    ("fastmoco export", "--from-moco TEXT --out NEW", ["--from-moco: TEXT cannot be read"]),
    # places to write to
    ("fastmoco train", "--shards TRAIN --out TEXT", ["--out TEXT is a file; give a folder"]),
    ("fastmoco knn", f"{PROBE} --json UNDER", ["--json UNDER cannot be written", "give a file"]),
    ("fastmoco knn", f"{PROBE} --json TRAIN", ["--json TRAIN is a folder; give the name of a file"]),
    ("fastmoco linear", f"{PROBE} --out TEXT", ["--out TEXT is a file; give a folder"]),
    ("fastmoco detect", "--train a:b --val a:c --out TEXT", ["--out TEXT is a file; give a folder"]),
    ("fastmoco detect", "--train a:b --val a:c --out NEW --json UNDER", ["--json UNDER cannot be written"]),
    ("fastmoco export", "--checkpoint GOOD --format timm --out TRAIN", ["--out TRAIN is a folder"]),
    ("fastmoco export", "--checkpoint GOOD --format timm --out UNDER", ["--out UNDER cannot be written"]),
    ("fastmoco demo", "--out TEXT", ["--out TEXT is a file; give a folder"]),
    ("fastmoco sheet", "--shards TRAIN --out UNDER", ["--out UNDER cannot be written: Not a directory"]),
]


def put_in(text, places):
    """A text with the names in capitals replaced by the places."""
    return re.sub(r"\b[A-Z]{3,}\b", lambda name: str(places.get(name[0], name[0])), text)


@pytest.mark.parametrize(("name", "arguments", "says"), MISTAKES)
def test_a_users_mistake_ends_in_one_line_and_exit_code_2(in_process, places, name, arguments, says):
    done = in_process(*MODULES[name], *put_in(arguments, places).split(), check=False)
    lines = [line for line in done.stderr.splitlines() if not LOG_LINE.match(line)]
    assert len(lines) == 1 and lines[0].startswith(f"{name}: "), done.stdout + done.stderr
    assert all(put_in(part, places) in lines[0] for part in says), lines[0]
    assert done.returncode == 2


@pytest.mark.parametrize("name", ["fastmoco knn", "fastmoco train"])
def test_the_folder_of_a_result_is_made(in_process, places, tmp_path, name):
    """A missing folder is no mistake."""
    more = {
        "fastmoco knn": ["--json", "new/folder/knn.json", *put_in(PROBE, places).split()],
        "fastmoco train": ["--out", "new/folder", "--recipe", "demo", "--shards", places["TRAIN"], "--batch-size", 16,
                           "--image-size", 16, "--queue-size", 16, "--steps", 1],
    }  # fmt: skip
    in_process(*MODULES[name], *more[name])
    assert any((tmp_path / "new/folder").iterdir())


@pytest.mark.distributed
@pytest.mark.parametrize("arguments", ["--temperature 0", "--shards NOWHERE", "--help-me"])
def test_of_several_ranks_one_speaks(torchrun, places, arguments):
    done = torchrun(2, "-m", "fastmoco", "train", *put_in(arguments, places).split(), check=False)
    lines = [line for line in done.stderr.splitlines() if not LOG_LINE.match(line)]
    assert len(lines) == 1 and lines[0].startswith("fastmoco train: ") and done.returncode == 2, done.stderr


def test_fastmoco_alone_lists_every_command_and_examples(in_process):
    said = in_process("-m", "fastmoco.__main__").stdout
    for words in (["--help"], ["help"]):
        assert in_process("-m", "fastmoco.__main__", *words).stdout == said == overview() + "\n"
    for name, row in COMMANDS.items():
        assert re.search(rf"^  {name} +{re.escape(row.summary)}$", said, re.MULTILINE)
    assert max(map(len, said.splitlines())) <= 80


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_tells_its_version_and_its_name(in_process, name):
    """And its parser is the one that the table gives for shell completion."""
    assert in_process(*MODULES[f"fastmoco {name}"], "--version").stdout == VERSION
    shown = in_process(*MODULES[f"fastmoco {name}"], "--help").stdout
    assert shown == in_process("-m", "fastmoco.__main__", "help", name).stdout == parser_of(name).format_help()
    assert shown.startswith(f"usage: fastmoco {name} ")


@pytest.mark.parametrize("name", COMMANDS)
def test_a_commands_help_has_groups_and_examples_that_parse(name):
    parser = parser_of(name)
    titles = re.findall(r"^([a-z].*):$", parser.format_help(), re.MULTILINE)
    assert len(titles) >= 3 and titles[-2:] == ["other", "examples"] and 2 <= len(parser.examples) <= 4
    for line in parser.examples:
        assert f"  {line}\n" in parser.format_help()
        start, _, rest = line.partition(f"fastmoco {name}")
        assert start in ("", "torchrun --nproc-per-node gpu -m ", 'eval "$(')
        parser.parse_args(shlex.split(re.split(r"\)| > ", rest)[0]))


def test_the_older_ways_to_start_a_command_tell_the_version_too(in_process):
    for module in ("shards.cli", "fastmoco.train", "fastmoco.knn", "pipelines.sheet"):
        assert in_process("-m", module, "--version").stdout == VERSION
    assert in_process("-m", "shards.cli", "verify", "--version").stdout == VERSION


def test_messages_name_commands_as_they_are_typed():
    """`fastmoco knn`, not `fastmoco.knn`, and `fastmoco pack`: in every text of the packages but docstrings."""
    module = re.compile(rf"\bfastmoco\.({'|'.join(COMMANDS)})\b(?!\.)|\bfastmoco-shard\b")
    own = ("__main__.py", "cli.py", "arguments.py")  # the table, whose modules have these names, and fastmoco-shard's
    files = [path for name in ("fastmoco", "pipelines", "shards") for path in sorted((ROOT / name).rglob("*.py"))]
    wrong = []
    for path in files:
        if path.name not in own:
            nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
            statements = {id(node.value) for node in nodes if isinstance(node, ast.Expr)}
            texts = [n.value for n in nodes if isinstance(n, ast.Constant) and id(n) not in statements]
            wrong += [(path.name, text) for text in texts if isinstance(text, str) and module.search(text)]
    assert len(files) > 100 and not wrong


HEAVY = {"torch", "torchvision", "numba", "nvidia", "numpy", "PIL", "rich", "shtab"}
IMPORTED = re.compile(r"import time: .*\| *([\w.]+)\n")


@pytest.mark.parametrize("argument", ["--help", "--no-such-flag"])
@pytest.mark.parametrize("name", MODULES)
def test_help_and_a_wrong_flag_load_no_heavy_library(command, name, argument):
    done = command(sys.executable, "-X", "importtime", *MODULES[name], argument, cold=True, check=False)
    imported = {module.split(".")[0] for module in IMPORTED.findall(done.stderr)}
    assert "argparse" in imported and not imported & HEAVY
    said = IMPORTED.sub("", done.stderr)
    if argument == "--help":
        assert done.returncode == 0 and "usage: " in done.stdout, said
    else:
        assert done.returncode == 2 and argument in said and "Traceback" not in said, said
