"""What all scripts have in common: they answer at once, from any folder, and mistakes end in one line."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"
SCRIPTS = sorted(path.name for path in FOLDER.glob("[a-z]*.py"))
ANSWER = """
import runpy, sys
sys.argv, sys.path[0] = sys.argv[1:], sys.argv[2]
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
except SystemExit as left:
    print(left.code, *(name for name in ("torch", "torchvision", "numba", "nvidia") if name in sys.modules))
"""


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_shows_its_flags_and_refuses_others(in_process, script):
    assert "--help" in in_process(FOLDER / script, "--help").stdout
    if script != "learning.py":  # which passes flags that it does not know to the training
        wrong = in_process(FOLDER / script, "--nonsense", check=False)
        assert wrong.returncode == 2 and len(wrong.stderr.splitlines()) == 1


@pytest.mark.parametrize(("flags", "code"), [(["--help"], "0"), (["--nonsense"], "2"), (["--repeats", "0"], "2")])
def test_the_command_line_is_checked_before_torch_is_imported(tmp_path, flags, code):
    script = str(FOLDER / "imgs_per_sec.py")
    line = [sys.executable, "-c", ANSWER.replace("sys.argv[2]", repr(str(FOLDER))), script, *flags]
    done = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == code


@pytest.mark.parametrize(
    ("script", "flags", "says"),
    [
        ("accumulate.py", ("--repeats", "0"), "--repeats is 0"),
        ("agreement.py", ("--ranks", "2", "1"), "--ranks is 1"),
        ("backends.py", ("--shards", "nowhere"), "nowhere"),
        ("billion.py", ("--shard-size", "10"), "100,000,000 shards, more than 1,000,000; use at least 1,000"),
        ("checkpoints.py", ("--steps", "0"), "--steps is 0"),
        ("communication.py", ("--ranks", "2", "0"), "--ranks is 0"),
        ("deep.py", ("--photos", "."), "has 0 JPEGs"),
        ("draws.py", ("--batch-size", "0"), "--batch-size is 0"),
        ("duplicates.py", ("--images", "100"), "--exact 500 and --near 500 are more copies than originals"),
        ("embedding.py", ("--shards", "nowhere"), "nowhere"),
        ("endurance.py", ("--minutes", "2"), "--slice 30 s: give 5 or more, and --minutes of at least eight slices"),
        ("formats.py", ("--repeats", "0"), "--repeats is 0"),
        ("hour.py", ("--train", ".", "--val", ".", "--minutes", "0"), "--minutes is 0"),
        ("kernel_resources.py", ("--architectures", "70"), "--architectures 70 is not known; use some of 80 86"),
        ("kernels.py", ("--shapes", "3", "7", "2"), "--shapes 3 7 2: K must be a multiple of N"),
        ("memory.py", ("--side", "0"), "--side is 0"),
        ("order.py", ("--ranks", "0"), "--ranks is 0"),
        ("packing.py", ("--photos", "."), "no JPEG photographs"),
        ("planning.py", ("--records", "0"), "--records is 0"),
        ("probes.py", ("--train", ".", "--val", "."), "give --checkpoints"),
        ("queue_rounding.py", ("--k", "0"), "--k is 0"),
        ("render.py", ("nowhere.json",), "nowhere.json"),
        ("revisions.py", ("--photos", ".", "--against", "HEAD"), "no JPEG photographs"),
        ("search_index.py", ("--dim", "0"), "--dim is 0"),
        ("soak.py", ("--batches", "4"), "--batches 4 is less than --readings 200"),
        ("sources.py", ("--kinds", "floppy"), "--kinds 'floppy' is unknown; known: tar, tar of tars, zip, stored"),
        ("startup.py", ("--shards", "nowhere"), "nowhere"),
        ("step.py", ("--batch-size", "24"), "use 65544"),
    ],
)  # fmt: skip
def test_a_mistake_ends_in_one_line_and_status_2(in_process, script, flags, says):
    done = in_process(FOLDER / script, *flags, check=False)
    assert done.returncode == 2 and says in done.stderr
    assert done.stderr.startswith(script.removesuffix(".py") + ": ") and len(done.stderr.splitlines()) == 1


def test_a_function_runs_in_a_process_of_its_own(monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    from _processes import ProcessFailed, in_process, python

    assert in_process("json", "dumps", {"obj": [1, 2]}) == "[1, 2]"
    with pytest.raises(ProcessFailed, match="exit status 1") as failed:
        python("-c", "raise ValueError('no such thing')")
    assert failed.value.reason == "ValueError: no such thing"


def test_rows_are_read_as_they_were_written(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(FOLDER)
    from _results import read_csv, write_csv

    rows = [{"variant": "m-0", "seed": 0, "loss": 5.5, "lr": None, "knn_top1": "", "commit": "12345e67"}]
    write_csv(tmp_path / "new" / "rows.csv", rows)
    assert read_csv(tmp_path / "new" / "rows.csv") == [rows[0] | {"lr": ""}]
    assert json.dumps(read_csv(tmp_path / "new" / "rows.csv")[0]["loss"]) == "5.5"
