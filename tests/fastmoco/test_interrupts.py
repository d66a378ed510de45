"""A signal while a command starts: one line and its code, whatever is imported. More moments by FASTMOCO_MOMENTS=20."""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import sys

import pytest

IMPORTED = re.compile(r"import time: .*\| *(\S+)\n")
LOG_LINE = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d INFO loading torch")
# torch imports NumPy in C, and would go on without it
MOMENTS: list[str | int] = ["shards.words", "torch._C"]
SIGNALS = {"shards.words": signal.SIGUSR1}  # in the container's first process, too, a handler is what ends it
MOMENTS += random.Random(0).sample(range(100, 2500), int(os.environ.get("FASTMOCO_MOMENTS", 0)))


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_signal_while_a_command_starts(shard_sets, moment):
    """When a module is imported, or so many modules after the first of fastmoco's own."""
    sets = ["--train", shard_sets / "train", "--val", shard_sets / "val"]
    command = ["-m", "fastmoco", "knn", "--checkpoint", "untrained", "--arch", "resnet18", *sets]
    process = subprocess.Popen(
        list(map(str, [sys.executable, "-X", "importtime", *command])),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout and process.stderr
    ours, said = -1, []
    next(process.stderr)  # the heading of the imports
    for line in process.stderr:
        found = IMPORTED.match(line)
        if found is None:
            said += [] if LOG_LINE.match(line) else [line]
            continue
        ours += ours >= 0 or found[1] == "shards"
        if moment in (found[1], ours):
            process.send_signal(SIGNALS.get(moment, signal.SIGINT))
    assert process.stdout.read() == ""
    process.stderr.close()
    process.stdout.close()
    code = 128 + SIGNALS.get(moment, signal.SIGINT)
    assert process.wait(60) == code and said in (["fastmoco: interrupted\n"], ["fastmoco knn: interrupted\n"]), said
