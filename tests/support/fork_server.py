"""Forks processes that have imported torch and fastmoco already; what to run comes as lines of JSON on stdin.

Starting Python afresh costs four seconds of a core, most of them imports, and the tests start hundreds of processes.
A request is {"arguments", "cwd", "environment", "ranks", "out", "err"}: `arguments` are those of `python` (a script's
path, or -m and a module's name, and what follows), `ranks` is 0 for one plain process or the number of ranks to start
as torchrun does. With "restarts" in it, torch's own agent starts the ranks, and so often again once one has failed.
The answer is a line with the list of exit codes.
"""

from __future__ import annotations

import json
import os
import runpy
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any

GRACE = 30  # seconds between SIGTERM and SIGKILL for the other ranks once one has failed, as in torchrun


def main() -> None:
    """Answer requests until stdin ends."""
    # what the commands import once their flags are checked
    import fastmoco.probes.encoders
    import fastmoco.probes.linear
    import fastmoco.trainer.loop  # noqa: F401

    answers = os.fdopen(os.dup(1), "w", buffering=1)
    for line in sys.stdin:
        print(json.dumps(serve(json.loads(line))), file=answers)


def serve(request: dict[str, Any]) -> list[int]:
    """Run the processes of a request; their exit codes."""
    if not request["ranks"]:
        return wait([start(request, request["environment"])])
    if "restarts" in request:
        return wait([start_agent(request)])
    store, port = host_store()
    try:
        return wait([start(request, rank_environment(request, rank, port)) for rank in range(request["ranks"])])
    finally:
        os.kill(store, signal.SIGKILL)
        os.waitpid(store, 0)


def host_store() -> tuple[int, int]:
    """Start a process that hosts the ranks' TCPStore, as torchrun's agent does; its process id and its port.

    The store binds port 0 and keeps it, so no port is chosen before it is in use. The process is one of its own
    because the store runs a thread, and a process with threads must not fork.
    """
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        from torch.distributed import TCPStore

        store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        os.write(write_end, str(store.port).encode())
        while True:
            signal.pause()
    os.close(write_end)
    with os.fdopen(read_end) as port:
        return child, int(port.read(5))


def rank_environment(request: dict[str, Any], rank: int, port: int) -> dict[str, str]:
    """The request's environment with the variables that torchrun sets."""
    ranks = str(request["ranks"])
    return {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",  # rank 0 connects to the store instead of hosting one
        "TORCHELASTIC_RESTART_COUNT": "0",
        "WORLD_SIZE": ranks,
        "LOCAL_WORLD_SIZE": ranks,
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        **request["environment"],
    }


def start(request: dict[str, Any], environment: dict[str, str]) -> int:
    """Fork a process; its process id."""
    child = os.fork()
    if child == 0:
        os._exit(run(request, environment))
    return child


def start_agent(request: dict[str, Any]) -> int:
    """Fork a process that is the agent of `torchrun --max-restarts`, by torch's own code; its process id."""
    child = os.fork()
    if child == 0:
        from torch.distributed import TCPStore
        from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
        from torch.distributed.launcher.api import LaunchConfig, elastic_launch

        # the agent finds the store of this process at its port; so no port is chosen before it is in use
        store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, multi_tenant=True)
        config = LaunchConfig(
            min_nodes=1, max_nodes=1, nproc_per_node=request["ranks"], max_restarts=request["restarts"],
            rdzv_backend="static", rdzv_endpoint=f"127.0.0.1:{store.port}", rdzv_configs={"rank": 0},
            run_id="test", monitor_interval=0.05, start_method="fork",
        )  # fmt: skip
        code = 1
        try:
            elastic_launch(config, rank_of_agent)(request)
            code = 0
        except ChildFailedError:
            pass  # each rank has printed its error
        finally:
            os._exit(code)
    return child


def rank_of_agent(request: dict[str, Any]) -> None:
    """One rank of `start_agent`, whose variables are in the environment. The agent waits for it to return."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # not the agent's
    if code := run(request, {**os.environ, **request["environment"]}):
        os._exit(code)


def run(request: dict[str, Any], environment: dict[str, str]) -> int:
    """Behave like a fresh interpreter, as far as a forked one can; the exit code."""
    code = 1
    try:
        append = os.O_WRONLY | os.O_APPEND | os.O_CREAT
        for number, name, flags in (
            (0, os.devnull, os.O_RDONLY),
            (1, request["out"], append),
            (2, request["err"], append),
        ):
            os.dup2(os.open(name, flags, 0o600), number)
        os.chdir(request["cwd"])
        os.environ.clear()
        os.environ.update(environment)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        first, *rest = request["arguments"]
        if first == "-m":
            sys.argv, sys.path[0] = rest, request["cwd"]
            runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
        else:
            sys.argv, sys.path[0] = request["arguments"], str(Path(first).parent)
            runpy.run_path(first, run_name="__main__")
        code = 0
    except SystemExit as left:
        code = left.code if isinstance(left.code, int) else int(left.code is not None)
        if isinstance(left.code, str):
            print(left.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    return code


def wait(children: list[int]) -> list[int]:
    """Exit codes; once one process has failed, the others are ended."""
    codes: dict[int, int] = {}
    end = None
    while len(codes) < len(children):
        for child in [child for child in children if child not in codes]:
            ended, status = os.waitpid(child, os.WNOHANG)
            if ended:
                codes[child] = os.waitstatus_to_exitcode(status)
        if end is None and any(codes.values()):
            end = time.monotonic() + GRACE
            stop(children, codes, signal.SIGTERM)
        elif end is not None and time.monotonic() > end:
            stop(children, codes, signal.SIGKILL)
        time.sleep(0.01)
    return [codes[child] for child in children]


def stop(children: list[int], codes: dict[int, int], with_signal: signal.Signals) -> None:
    """Send a signal to the children that have not ended."""
    for child in children:
        if child not in codes:
            os.kill(child, with_signal)


if __name__ == "__main__":
    main()
