"""What the scripts in deploy/ make of the end of a run; torchrun and SLURM's commands are stand-ins here.

`python -m tests.clusters` runs them with the real ones.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import yaml

from tests.clusters.template import ROOT

# writes SAYS into status.json, and ends with CODE; told to wait, it does so once a signal comes, with 1
TORCHRUN = """#!/bin/bash
say() { [ -z "$SAYS" ] || echo "{ \\"state\\": \\"$SAYS\\" }" > "$RUN/status.json"; }
trap 'say; exit 1' TERM USR1
[ "$CODE" = wait ] && { touch "$RUN/running"; while :; do /bin/sleep 0.02; done; }
/bin/sleep 0.02
say
exit "$CODE"
"""
ENDS = [
    ("finished", "0", 0),
    ("stopped", "0", 143),  # its ranks have stopped with those of the other Pod
    ("stopped", "1", 143),  # it has got the signal
    ("failed", "1", 2),
    ('failed", "reason": "lost the connection to another rank', "1", 1),
    ("running", "1", 1),  # rank 0 is on a node that is lost
    ("", "1", 1),  # it failed before the run began
]


@pytest.fixture
def at_work(tmp_path):
    """The variables of a script: a run folder, and stand-ins for programs."""
    run, programs = tmp_path / "run", tmp_path / "bin"
    run.mkdir()
    programs.mkdir()
    stand_ins = {
        "torchrun": TORCHRUN,
        "sleep": "#!/bin/bash\n/bin/sleep 0.02\n",
        "srun": '#!/bin/bash\nexec "$@"\n',
        "scontrol": '#!/bin/bash\n[ "$1" = show ] && echo node || echo "$@" >> "$RUN/asked"\n',
    }
    for name, text in stand_ins.items():
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    path = f"{programs}:{os.environ['PATH']}"
    slurm = {"VENV": str(tmp_path), "SLURM_JOB_NODELIST": "node", "SLURM_JOB_NUM_NODES": "1", "SLURM_JOB_ID": "7"}
    return {**os.environ, "PATH": path, "RUN": str(run), **slurm}


def earlier(run: Path) -> None:
    """Leave the status of an earlier start, which was stopped."""
    (run / "status.json").write_text('{ "state": "stopped" }')
    an_hour_ago = time.time() - 3600
    os.utime(run / "status.json", (an_hour_ago, an_hour_ago))


def pod() -> list[str]:
    documents = yaml.safe_load_all((ROOT / "deploy/kubernetes/train.yaml").read_text(encoding="utf-8"))
    job = next(one for one in documents if one["kind"] == "Job")
    (container,) = job["spec"]["template"]["spec"]["containers"]
    return container["command"] + container["args"]


@pytest.mark.parametrize(("says", "code", "expected"), ENDS)
def test_a_pod_ends_with_what_the_run_says(at_work, says, code, expected):
    earlier(Path(at_work["RUN"]))
    done = subprocess.run(pod(), env={**at_work, "SAYS": says, "CODE": code}, capture_output=True, timeout=60)
    assert done.returncode == expected, done.stderr


ASKED = [("stopped", True), ("", True), ("failed", True), ("finished", False)]  # "": before there is a run


def told_to_stop(line: Sequence[str | Path], at_work: dict[str, str], says: str, number: signal.Signals) -> int:
    """Run a script, send it the signal once torchrun runs, and return its exit code."""
    run = Path(at_work["RUN"])
    earlier(run)
    process = subprocess.Popen(line, env={**at_work, "CODE": "wait", "SAYS": says})
    deadline = time.monotonic() + 60
    while not (run / "running").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(number)
    return process.wait(60)


@pytest.mark.parametrize(("says", "repeated"), ASKED)
def test_a_pod_hands_sigterm_on(at_work, says, repeated):
    assert told_to_stop(pod(), at_work, says, signal.SIGTERM) == (143 if repeated else 1)


@pytest.mark.parametrize(("says", "repeated"), ASKED)
def test_a_job_of_slurm_hands_its_signal_on_and_is_put_back(at_work, says, repeated):
    line = ["bash", ROOT / "deploy" / "slurm.sbatch"]
    assert told_to_stop(line, at_work, says, signal.SIGUSR1) == (0 if repeated else 1)
    asked = Path(at_work["RUN"], "asked")
    assert (asked.read_text() if asked.exists() else "") == ("requeue 7\n" if repeated else "")


@pytest.mark.parametrize(("says", "code", "expected"), ENDS)
def test_a_job_of_slurm_is_put_back_after_a_stop_alone(at_work, says, code, expected):
    run = Path(at_work["RUN"])
    earlier(run)
    line = ["bash", ROOT / "deploy" / "slurm.sbatch"]
    done = subprocess.run(line, env={**at_work, "SAYS": says, "CODE": code}, capture_output=True, timeout=60)
    asked = (run / "asked").read_text() if (run / "asked").exists() else ""
    assert asked == ("requeue 7\n" if expected == 143 else ""), done.stderr
    assert done.returncode == (0 if expected == 143 else int(code))
