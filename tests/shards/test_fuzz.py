"""A few hundred of the inputs of tests/shards/fuzz.py; `make test-long` tries 20,000."""

from __future__ import annotations

import hashlib
import importlib.util
import signal
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("fuzz.py")


@pytest.fixture(scope="module")
def fuzz():
    spec = importlib.util.spec_from_file_location("fuzz", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["fuzz"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["fuzz"]


def test_damaged_images_are_packed_or_left_out_with_a_cause():
    done = subprocess.run([sys.executable, SCRIPT, "--count", "400"], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    counts = {line[8:].strip(): int(line[:8].replace(",", "")) for line in done.stdout.splitlines() if line.strip()}
    assert sum(counts.values()) == 400
    assert counts["packed"] > 40
    assert counts["damaged"] > 40
    assert counts["truncated"] > 10


def test_inputs_depend_on_seed_and_number_alone(fuzz):
    first = [hashlib.sha256(fuzz.damaged(0, number)).digest() for number in range(50)]
    assert first == [hashlib.sha256(fuzz.damaged(0, number)).digest() for number in range(50)]
    assert len({*first, *(hashlib.sha256(fuzz.damaged(1, number)).digest() for number in range(50))}) > 90


def test_a_crash_and_a_hang_are_named(fuzz, tmp_path):
    """The harness itself: a worker that dies and one that hangs are named, and the other inputs are tried."""
    script = tmp_path / "broken.py"
    script.write_text(
        f"""
import os, signal, sys
sys.path.insert(0, {str(SCRIPT.parent)!r})
import fuzz
def outcome(data, options):
    outcome.number = getattr(outcome, "number", -1) + 1
    if data == fuzz.damaged(0, 2):
        os.kill(os.getpid(), signal.SIGSEGV)
    while data == fuzz.damaged(0, 4):
        pass
    return "packed"
fuzz.outcome, fuzz.LIMIT = outcome, 0.3
if __name__ == "__main__":
    print(fuzz.run(6, 0))
"""
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=120)
    assert f"input 2: FAULT: CRASH (exit code {-signal.SIGSEGV})" in done.stdout, done.stdout + done.stderr
    assert "input 4: FAULT: HANG" in done.stdout
    assert "'packed': 4" in done.stdout
