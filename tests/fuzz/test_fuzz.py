"""A few hundred inputs of each kind; `make test-long` tries 20,000."""

from __future__ import annotations

import hashlib
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from fastmoco.model import encoders
from tests.fuzz.faults import damaged, names_nothing
from tests.fuzz.running import KINDS, MOST, kind_of, outcome
from tests.support.runs import narrow_resnet10

COMMAND = Path(__file__).with_name("__main__.py")


@pytest.mark.parametrize("name", KINDS)
def test_damaged_files_are_read_or_rejected_with_a_cause(name, command):
    if name in ("png16", "tiff16", "levels"):
        pytest.importorskip("imagecodecs", reason="the extra deep is not installed")
    count = 200 if name not in MOST else 15
    told = command(sys.executable, COMMAND, "--kind", name, "--count", count).stdout  # exit code 0: without a fault
    assert told.startswith(f"{name}: {count} inputs, seed 0, ")
    outcomes = {outcome: int(times) for times, outcome in re.findall(r"^ *(\d+) (.+)$", told, re.MULTILINE)}
    assert sum(outcomes.values()) == count
    if name not in MOST:  # of these a hash finds almost any damage
        assert outcomes["accepted"] >= 3
    # most are damaged beyond use, so that causes are tried
    assert count - outcomes.get("accepted", 0) > 0.3 * count


@pytest.mark.parametrize(
    # a text of 2.6 GB of which 90 kB are there; control characters, a format without its other parts, no tensor's name
    ("name", "number"),
    [
        ("checkpoint", 36),
        ("zip", 597),
        ("zip", 657),
        ("zip", 1055),
        ("checkpoint", 827),
        ("checkpoint", 4287),
        ("checkpoint", 6587),
    ],
)
def test_inputs_of_which_the_cause_once_said_too_little(name, number, tmp_path, monkeypatch):
    # undone after the test, unlike that of `tests.fuzz.weights`
    monkeypatch.setitem(encoders._BUILDERS, "resnet10", narrow_resnet10(1 / 16))
    kind = kind_of(name)
    found = outcome(kind, damaged(kind, 0, number), number, tmp_path)
    assert found.startswith("rejected: ") and found.isprintable()


def test_inputs_depend_on_seed_and_number_alone():
    def hashes(seed):
        return [hashlib.sha256(damaged(kind_of("png"), seed, number)).digest() for number in range(50)]

    assert hashes(0) == hashes(0)
    assert len({*hashes(0), *hashes(1)}) > 90


@pytest.mark.parametrize(
    ("cause", "wrong"),
    [
        ("", "names nothing"), ("damaged: KeyError", "names nothing"), ("damaged: 'x'", "names nothing"),
        ("Traceback (most recent call last)", "shows the program's inside"),
        ("truncated: the JPEG has no end marker", ""),
        ("cannot be read: <_io.BytesIO object at 0x7f0000000000>", "shows the program's inside"),
        ("damaged: two\nlines of text", "shows the program's inside"), ("zipfile.BadZipFile", "names nothing"),
    ],
)  # fmt: skip
def test_causes_that_say_nothing_are_faults(cause, wrong):
    assert names_nothing(cause) == wrong


def test_a_crash_and_a_hang_are_named(tmp_path):
    """The harness itself: a worker that dies and one that hangs are named, and the other inputs are tried."""
    script = tmp_path / "broken.py"
    script.write_text(
        """
import os, signal
from tests.fuzz import running
def outcome(kind, data, number, folder):
    if number == 4:  # those before it are tried for a start, too
        os.kill(os.getpid(), signal.SIGSEGV)
    while number == 6:
        pass
    return "accepted"
running.outcome, running.LIMIT = outcome, 0.3
if __name__ == "__main__":
    print(running.run("webp", 8, 0))
"""
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=120)
    assert f"input 4: FAULT: CRASH (exit code {-signal.SIGSEGV})" in done.stdout, done.stdout + done.stderr
    assert "input 6: FAULT: HANG" in done.stdout
    assert "'accepted': 6" in done.stdout
