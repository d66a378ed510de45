"""deploy/slurm.sbatch under SLURM, with two nodes on this machine: Debian's slurm-wlm and munge are needed."""

from __future__ import annotations

import getpass
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.clusters.template import ROOT, TINY, changed, free_ports

NEEDED = ("munged", "slurmctld", "slurmd", "sbatch", "scontrol")
CHANGES = {
    "#SBATCH --gpus-per-node=8\n": "",
    "#SBATCH --cpus-per-task=64": "#SBATCH --cpus-per-task=1",
    # SLURM may send the signal up to a minute early: here in the second minute
    "#SBATCH --time=24:00:00": "#SBATCH --time=00:03:00",
    "#SBATCH --signal=B:USR1@120": "#SBATCH --signal=B:USR1@60",
    "--nproc-per-node 8": "--nproc-per-node 1",
    ":29400": ":{port}",
    "$head_node": "127.0.0.1",  # both nodes are this machine, whose address does not follow from their names
    "-m fastmoco train --recipe moco-v2": f"-m {TINY} --steps 100000",
}
CONF = """
ClusterName=one
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={work}/munge.socket,cred_expire=5
StateSaveLocation={work}/state
SlurmdSpoolDir={work}/spool-%n
SlurmctldPidFile={work}/slurmctld.pid
SlurmdPidFile={work}/slurmd-%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/linear
MpiDefault=none
ReturnToService=2
NodeName=n1,n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]},{ports[2]} CPUs=1 State=UNKNOWN
PartitionName=all Nodes=n1,n2 Default=YES MaxTime=INFINITE State=UP
"""


def missing() -> list[str]:
    """Programs that this needs and the machine lacks."""
    return [name for name in NEEDED if shutil.which(name) is None]


@contextmanager
def cluster(work: Path) -> Iterator[None]:
    """SLURM with two nodes, for the commands of this process."""
    (work / "state").mkdir(parents=True)
    (work / "munge.key").write_bytes(os.urandom(1024))
    (work / "munge.key").chmod(0o400)
    work.chmod(0o711)  # munged refuses a socket that not everybody can reach
    values = {"host": platform.node().partition(".")[0], "user": getpass.getuser(), "ports": free_ports(3)}
    conf = work / "slurm.conf"
    conf.write_text(CONF.format(work=work, **values))
    os.environ["SLURM_CONF"] = str(conf)
    names = {"--socket": "munge.socket", "--key-file": "munge.key", "--pid-file": "munged.pid"}
    names |= {"--log-file": "munged.log", "--seed-file": "munge.seed"}
    munge = ["munged", "--foreground", "--force", *(f"{flag}={work / name}" for flag, name in names.items())]
    lines = [munge, ["slurmctld", "-D"], *(["slurmd", "-D", "-N", node] for node in ("n1", "n2"))]
    daemons = []
    try:
        for number, line in enumerate(lines):
            with (work / f"daemon-{number}.log").open("wb") as log:
                daemons.append(subprocess.Popen(line, stdout=log, stderr=log, start_new_session=True))
            time.sleep(2)
        yield
    finally:
        for daemon in reversed(daemons):
            daemon.terminate()
            daemon.wait(30)
        del os.environ["SLURM_CONF"]


def job(script: Path, shards: object, run: Path) -> str:
    """Submit a job; its id."""
    variables = {"SHARDS": str(shards), "RUN": str(run), "VENV": sys.prefix, "PYTHONPATH": str(ROOT)}
    line = ["sbatch", "--parsable", f"--output={run.parent}/{run.name}-%j.log", str(script)]
    done = subprocess.run(
        line, env={**os.environ, **variables, "OMP_NUM_THREADS": "1"}, check=True, capture_output=True
    )
    return done.stdout.decode().strip()


def until(number: str, ended: Callable[[dict[str, str]], bool], seconds: float) -> dict[str, str]:
    """What SLURM says of a job once a condition holds; AssertionError after some seconds."""
    deadline, told = time.monotonic() + seconds, ""
    while True:
        shown = subprocess.run(["scontrol", "show", "job", number], check=True, capture_output=True, text=True).stdout
        about = dict(re.findall(r"(\w+)=(\S*)", shown))
        state = f"{about['JobState']}, {about['Restarts']} restarts"
        if state != told:
            told = state
            print(f"  job {number}: {state}", flush=True)
        if ended(about):
            return about
        assert time.monotonic() < deadline, f"after {seconds} s: {shown}"
        time.sleep(1)


def check(work: Path, shards: Path) -> str:
    """A job that its time limit stops is put back and continues; one that fails or is cancelled is not.

    It is put back as well if it is told to stop while torchrun starts.
    """
    (port,) = free_ports(1)
    text = changed(ROOT / "deploy" / "slurm.sbatch", {old: new.format(port=port) for old, new in CHANGES.items()})
    script = work / "slurm.sbatch"
    script.write_text(text)
    over = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")
    with cluster(work / "slurm"):
        failing = job(script, "nowhere", work / "fails")
        about = until(failing, lambda about: about["JobState"] in over, 300)
        assert (about["JobState"], about["Restarts"]) == ("FAILED", "0"), about
        early = job(script, shards, work / "early")
        until(early, lambda about: about["JobState"] == "RUNNING", 60)
        time.sleep(1)  # within the start of torchrun, which takes seconds
        subprocess.run(["scancel", "--signal=USR1", "--batch", early], check=True)
        about = until(early, lambda about: about["JobState"] in over or about["Restarts"] == "1", 120)
        assert about["Restarts"] == "1" and not (work / "early" / "status.json").exists(), about
        subprocess.run(["scancel", early], check=True)
        number, log = job(script, shards, work / "run"), work / "run-3.log"
        until(number, lambda about: about["JobState"] in over or about["Restarts"] == "1", 300)
        until(number, lambda about: about["JobState"] in over or "continuing from" in log.read_text(), 300)
        stopped, step = re.search(
            r"stopped after step (\d+).*continuing from \S+: (\d+) of", log.read_text(), re.S
        ).groups()
        assert stopped == step != "0", log.read_text()
        subprocess.run(["scancel", number], check=True)
        about = until(number, lambda about: about["JobState"] in over, 120)
        assert (about["JobState"], about["Restarts"]) == ("CANCELLED", "1"), about
    told = f"a job that its time limit stopped after step {step} was put back and went on from there"
    return f"{told}; one told to stop while torchrun starts was put back, a failed and a cancelled one were not"
