"""The machine without its GPUs: cores, memory, shared memory, open files; as the process may use them."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator

from fastmoco.doctor.findings import Finding, gib
from fastmoco.limits import cpu_quota, memory_limit, of_machine

LEAST_MEMORY = 4 << 30
"""Bytes. A ResNet-50 with a batch of 32 views of 224 pixels, Python and its libraries stay below this on a CPU."""
LEAST_SHARED = 1 << 30
"""Bytes of /dev/shm. NCCL takes some tens of MiB for each pair of GPUs; Docker's default is 64 MiB."""
LEAST_FILES = 1024
"""The usual default of Linux; the reader of shard sets uses up to a quarter of the limit."""


def machine() -> Iterator[Finding]:
    """Cores, memory, shared memory, open files."""
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    yield cores(os.cpu_count() or 1, affinity, cpu_quota(), os.getloadavg()[0])
    total, available = of_machine()
    yield memory(total, available, memory_limit())
    shm = os.statvfs("/dev/shm") if os.path.isdir("/dev/shm") else None
    yield shared_memory(None if shm is None else shm.f_bsize * shm.f_bavail)
    yield open_files(*resource.getrlimit(resource.RLIMIT_NOFILE))


def cores(total: int, affinity: int, quota: float | None, load: float) -> Finding:
    """CPU cores.

    Args:
        total: Of the machine.
        affinity: That the process may run on; fastmoco starts a decoding thread for each.
        quota: Of a container, in cores; None if there is none.
        load: Processes that want to run, as a mean over the last minute.
    """
    text = f"{affinity} usable of {total}" if affinity < total else f"{total}"
    if quota is not None and quota < affinity:
        threads = max(1, int(quota))
        text += f", but the container may use {quota:g}"
        remedy = f"give fastmoco train --threads {threads}, or raise the container's limit"
        return Finding("cores", text, "warn", remedy)
    if load > affinity:
        text += f", but {load:.0f} processes want to run: the rates below are lower than on an idle machine"
        return Finding("cores", text, "note", "measure again when they have ended")
    return Finding("cores", text)


def memory(total: int, available: int, limit: int | None) -> Finding:
    """Memory in bytes: of the machine, available now, and the container's limit (None: none)."""
    text = f"{gib(available)} available of {gib(total)}"
    if limit is not None and limit < total:
        available = min(available, limit)
        text += f", the container may use {gib(limit)}"
    if available < LEAST_MEMORY:
        return Finding("memory", text, "warn", "end other programs, or use a smaller --arch and --batch-size")
    return Finding("memory", text)


def shared_memory(free: int | None) -> Finding:
    """Free bytes in /dev/shm; None where it does not exist."""
    if free is None:
        text = "missing; packing with several workers and training on several GPUs need it"
        return Finding("/dev/shm", text, "warn", "mount it: mount -t tmpfs tmpfs /dev/shm")
    if free < LEAST_SHARED:
        text = f"{gib(free)} free, too little for training on several GPUs"
        return Finding("/dev/shm", text, "warn", "start the container with --shm-size 8g, or --ipc=host")
    return Finding("/dev/shm", f"{gib(free)} free")


def open_files(soft: int, hard: int) -> Finding:
    """Limits of open files."""
    if soft != resource.RLIM_INFINITY and soft < LEAST_FILES:
        can = hard == resource.RLIM_INFINITY or hard >= LEAST_FILES
        remedy = f"ulimit -n {LEAST_FILES}" if can else "ask the administrator to raise the limit (limits.conf)"
        return Finding("open files", f"at most {soft}; shard sets of many tars are read slower", "warn", remedy)
    return Finding("open files", "unlimited" if soft == resource.RLIM_INFINITY else f"at most {soft}")
