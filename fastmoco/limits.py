"""What the machine and its control groups let this process use."""

from __future__ import annotations

import os
from pathlib import Path


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


def memory_left(root: Path = Path("/")) -> tuple[int, int]:
    """Bytes that the process may use in all, and those of them that are not in use, by it or by others."""
    total, available = of_machine()
    limit = memory_limit(root)
    if limit is None or limit >= total:
        return total, available
    used = cgroup_values("memory", "memory.current", root) + cgroup_values("memory", "memory.usage_in_bytes", root)
    # pages of files, which the kernel drops before it ends a process
    cached = [
        int(line.split()[1])
        for text in cgroup_values("memory", "memory.stat", root)[:1]
        for line in text.splitlines()
        if line.startswith(("inactive_file ", "active_file "))
    ]
    taken = max(0, int(used[0]) - sum(cached)) if used else 0
    return limit, min(available, max(0, limit - taken))


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


def of_machine() -> tuple[int, int]:
    """Bytes of memory that the machine has, and bytes available."""
    page = os.sysconf("SC_PAGE_SIZE")
    total = page * os.sysconf("SC_PHYS_PAGES")
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return total, int(line.split()[1]) << 10
    except OSError:
        pass
    return total, total
