"""The machine without its GPUs: cores, memory, shared memory, open files; as the process may use them."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from pathlib import Path

from fastmoco.doctor.findings import Finding, gib

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
    total, available = _memory()
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


def cpu_quota(root: Path = Path("/")) -> float | None:
    """Cores that the control groups of this process allow, or None."""
    quotas = []
    for text in cgroup_values("cpu", "cpu.max", root):  # "200000 100000", "max 100000"
        quota, _, period = text.partition(" ")
        if quota != "max":
            quotas.append(int(quota) / int(period or 100_000))
    for quota in cgroup_values("cpu", "cpu.cfs_quota_us", root):
        for period in cgroup_values("cpu", "cpu.cfs_period_us", root)[:1]:
            if int(quota) > 0:
                quotas.append(int(quota) / int(period))
    return min(quotas, default=None)


def memory_limit(root: Path = Path("/")) -> int | None:
    """Bytes that the control groups of this process allow, or None."""
    texts = cgroup_values("memory", "memory.max", root) + cgroup_values("memory", "memory.limit_in_bytes", root)
    # version 1 writes "no limit" as the largest multiple of a page
    return min((limit for limit in (int(text) for text in texts if text != "max") if limit < 1 << 60), default=None)


def cgroup_values(controller: str, name: str, root: Path) -> list[str]:
    """The contents of one file in the control groups of this process, from the process's own group up to the root."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:  # no Linux
        return []
    found = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        # version 2 has one tree, version 1 one for each controller
        base = root / "sys/fs/cgroup" / (controller if controllers else "")
        group = base / path.lstrip("/")
        # in a container the path is the host's, and only the root of the tree is there
        for folder in [group, *group.parents]:
            if base in (folder, *folder.parents) and (folder / name).is_file():
                found.append((folder / name).read_text().strip())
    return found


def _memory() -> tuple[int, int]:
    """Bytes of the machine, and bytes available."""
    page = os.sysconf("SC_PAGE_SIZE")
    total = page * os.sysconf("SC_PHYS_PAGES")
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return total, int(line.split()[1]) << 10
    except OSError:
        pass
    return total, total
