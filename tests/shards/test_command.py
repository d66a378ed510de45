"""How commands end: exit codes, one line, and which rank prints it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from shards.command import PATIENCE, Parser, command, reported
from shards.errors import PackError, SampleError, UserError

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def handlers():
    """A command's handlers of Ctrl-C stay until the process ends, which is the tests' here."""
    names, hook = (signal.SIGINT, signal.SIGTERM), sys.unraisablehook
    before = [signal.getsignal(name) for name in names]
    yield
    for name, handler in zip(names, before, strict=True):
        signal.signal(name, handler)
    sys.unraisablehook = hook


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
    monkeypatch.setenv("LOCAL_RANK", "1")
    # torchrun has ended it by then, unless no other rank has failed: its line is the cause
    assert ending(capsys, raising(PackError("no images"))) == (2, "tool (rank 1): no images\n")
    assert slept == [2 * PATIENCE]
    monkeypatch.setenv("LOCAL_RANK", "0")  # the first rank of another node: before the others of that node
    assert ending(capsys, raising(PackError("no images"))) == (2, "tool (rank 1): no images\n")
    assert slept == [2 * PATIENCE, PATIENCE]
    monkeypatch.setenv("RANK", "0")
    assert ending(capsys, raising(PackError("no images"))) == (2, "tool: no images\n")
    assert len(slept) == 2


class Agreed(UserError):
    stopped_by = signal.SIGTERM


def test_a_stop_that_all_ranks_agreed_on_is_one_line_of_rank_0(capsys, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda _: pytest.fail("nothing to wait for"))
    monkeypatch.setenv("RANK", "1")
    assert ending(capsys, raising(Agreed("stopped after step 3"))) == (143, "")
    monkeypatch.setenv("RANK", "0")
    assert ending(capsys, raising(Agreed("stopped after step 3"))) == (143, "tool: stopped after step 3\n")
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "0")  # torchrun starts ranks again that end with another code
    assert ending(capsys, raising(Agreed("stopped after step 3"))) == (0, "tool: stopped after step 3\n")


class Lost(UserError):
    exit_code = 1
    one_rank = True
    consequence = True


def test_torchrun_learns_the_cause_of_the_rank_that_failed_and_not_of_those_that_lost_it(capsys, monkeypatch, tmp_path):
    errors = pytest.importorskip("torch.distributed.elastic.multiprocessing.errors")
    failures, slept = {}, []
    monkeypatch.setattr("time.sleep", slept.append)
    for rank, error in ((0, Lost("lost rank 1")), (1, SampleError(7, "x.tar", "000000000007", "damaged"))):
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / f"{rank}.json"))
        ending(capsys, raising(error))
        failures[rank] = errors.ProcessFailure(rank, 1234, 1, str(tmp_path / f"{rank}.json"))
    assert slept == [PATIENCE]  # until the cause is printed
    shown = errors.ChildFailedError("fastmoco.train", failures).format_msg()
    *_, cause, _ = shown.splitlines()
    assert cause == "  traceback : tool (rank 1): sample 7 (x.tar, key 000000000007): damaged"


def test_a_defect_has_its_traceback_once_under_torchrun(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "error.json"))
    with pytest.raises(ZeroDivisionError):
        command("tool", lambda: 1 // 0)
    found = json.loads((tmp_path / "error.json").read_text())["message"]["extraInfo"]["py_callstack"]
    assert found == "ZeroDivisionError: integer division or modulo by zero; its traceback is above"


def test_torchrun_learns_the_cause_of_an_error_in_a_users_own_script(monkeypatch, tmp_path):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "error.json"))
    with pytest.raises(ZeroDivisionError), reported("fastmoco.pretrain"):
        _ = 1 // 0
    found = json.loads((tmp_path / "error.json").read_text())["message"]["message"]
    assert found == "fastmoco.pretrain (rank 1): integer division or modulo by zero"


INTERRUPT = "import os, signal; os.kill(os.getpid(), signal.SIGINT)"


@pytest.mark.parametrize(
    "work",
    [
        f"{INTERRUPT}; time.sleep(9)",
        "import interrupted_module",  # at once: an import that goes on without a part is worse than none
        # Python prints and forgets what a destructor raises
        f"class Made:\n  def __del__(self): {INTERRUPT}\nMade(); time.sleep(9)",
        # a library turns it into an error of its own
        f"try: {INTERRUPT}; time.sleep(9)\nexcept BaseException: raise ImportError('no NumPy') from None",
    ],
)
def test_ctrl_c_ends_in_one_line_wherever_it_comes(tmp_path, work):
    (tmp_path / "interrupted_module.py").write_text(
        f"try: {INTERRUPT}; import time; time.sleep(9)\nfinally: print('on')"
    )
    script = (
        f"import time\nfrom shards.command import command\ncommand('tool', lambda: exec({work!r}, {{'time': time}}))"
    )
    done = run_script(script, tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "tool: interrupted\n")


def test_a_signal_just_after_an_error_ends_in_one_line(tmp_path):
    """torchrun's, because another rank has failed: before the command has taken hold of signals for its end."""
    script = """
import os, signal
from shards.command import command
from shards.interrupts import Interrupts
leave = Interrupts.leave
def struck(self):
    if not self.number:
        os.kill(os.getpid(), signal.SIGTERM)
    leave(self)
Interrupts.leave = struck
command('tool', lambda: open('nowhere'))
"""
    done = run_script(script, tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (143, "", "tool: interrupted\n")


def test_ctrl_c_while_python_shuts_down_changes_nothing(tmp_path):
    script = f"import atexit, time\nfrom shards.command import command\natexit.register(lambda: exec({INTERRUPT!r}))\n"
    done = run_script(f"{script}command('tool', lambda: print('done'))", tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")


def run_script(script, folder):
    full = {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)])}
    return subprocess.run(
        [sys.executable, "-c", script], cwd=folder, env=full, capture_output=True, text=True, timeout=60
    )


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


@pytest.mark.parametrize(
    ("redirected", "code", "said"),
    [
        (">&-", 0, ""),
        ("> /dev/full", 2, "tool: standard output: No space left on device\n"),
        ("wrong 2>&-", 2, ""),
        ("wrong 2> /dev/full", 2, ""),
        ("wrong 2>&1 | true; exit ${PIPESTATUS[0]}", 2, ""),
    ],
)
def test_closed_and_full_outputs(redirected, code, said):
    script = "import sys; from shards.command import Parser, command; command('tool', lambda:"
    script += " print('line') if sys.argv[1:] == [] else Parser('tool').error('wrong'))"
    line = f'"{sys.executable}" -c "{script}" {redirected}'
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    pipes = {"stderr": subprocess.PIPE, "stdout": subprocess.DEVNULL}
    done = subprocess.run(["bash", "-c", line], cwd=ROOT, env=buffered, text=True, **pipes)
    assert (done.stderr, done.returncode) == (said, code)


def test_a_misspelt_flag_is_answered_with_the_known_one(capsys):
    parser = Parser("tool")
    parser.add_argument("--batch-size")
    code, message = ending(capsys, lambda: parser.parse_args(["--batch-sise", "3"]) and None)
    assert (code, message) == (2, "tool: unknown flag --batch-sise; did you mean --batch-size? (see tool --help)\n")
