"""How commands end: exit codes, one line, and which rank prints it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from shards.command import PATIENCE, Parser, command
from shards.errors import PackError, SampleError


class OwnCode(PackError):
    exit_code = 7


def ending(capsys, run):
    """Exit code and stderr of a command."""
    with pytest.raises(SystemExit) as end:
        command("tool", run, interrupted="stopped")
    return end.value.code, capsys.readouterr().err


def raising(error):
    def run():
        raise error

    return run


@pytest.mark.parametrize(
    ("run", "code", "message"),
    [
        (lambda: None, 0, ""),
        (lambda: 1, 1, ""),
        (raising(PackError("no images in a/; give another --src")), 2, "tool: no images in a/; give another --src\n"),
        (raising(PackError("first line\nsecond line")), 2, "tool: first line second line\n"),
        (raising(OwnCode("failed")), 7, "tool: failed\n"),
        (
            raising(FileNotFoundError(2, "No such file or directory", "a/b")),
            2,
            "tool: a/b: No such file or directory\n",
        ),
        (raising(OSError("no route to the store")), 2, "tool: no route to the store\n"),
        (raising(KeyboardInterrupt()), 130, "tool: stopped\n"),
        (raising(SystemExit(3)), 3, ""),
    ],
)
def test_exit_codes_and_messages(capsys, run, code, message):
    assert ending(capsys, run) == (code, message)


def test_a_defect_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError):
        command("tool", lambda: 1 // 0)


def test_an_error_that_all_ranks_meet_is_printed_by_rank_0_which_the_others_wait_for(capsys, monkeypatch):
    slept = []
    monkeypatch.setattr("time.sleep", slept.append)
    monkeypatch.setenv("RANK", "1")
    assert ending(capsys, raising(PackError("no images"))) == (2, "")
    assert slept == [PATIENCE]
    monkeypatch.setenv("RANK", "0")
    assert ending(capsys, raising(PackError("no images"))) == (2, "tool: no images\n")
    assert slept == [PATIENCE]


def test_an_error_that_one_rank_meets_is_printed_by_that_rank_at_once(capsys, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda _: pytest.fail("nothing to wait for"))
    monkeypatch.setenv("RANK", "1")
    error = SampleError(7, "shard-000000.tar", "000000000007", "damaged")
    code, message = ending(capsys, raising(error))
    assert code == 2 and message == "tool (rank 1): sample 7 (shard-000000.tar, key 000000000007): damaged\n"


def test_a_closed_pipe_ends_silently():
    """As in `fastmoco-shard info shards/ | head -1`."""
    lines = "from shards.command import command; command('tool', lambda: print('line\\n' * 100_000))"
    process = subprocess.Popen([sys.executable, "-c", lines], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout and process.stderr
    os.read(process.stdout.fileno(), 1)
    process.stdout.close()
    assert (process.stderr.read(), process.wait(60)) == (b"", 141)


def test_a_misspelt_flag_is_answered_with_the_known_one(capsys):
    parser = Parser("tool")
    parser.add_argument("--batch-size")
    code, message = ending(capsys, lambda: parser.parse_args(["--batch-sise", "3"]) and None)
    assert (code, message) == (2, "tool: unknown flag --batch-sise; did you mean --batch-size? (see tool --help)\n")
