"""Memory of this process as the Linux kernel counts it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

STATUS = Path("/proc/self/status")


def memory(kind: Literal["VmRSS", "VmHWM"]) -> int:
    """Bytes in memory now (VmRSS), or at the peak so far (VmHWM)."""
    # VmHWM is the kernel's own record of the peak, which readings at intervals could miss
    found = re.search(rf"{kind}:\s*(\d+) kB", STATUS.read_text(encoding="ascii"))
    if found is None:
        raise OSError(f"{STATUS} has no {kind}")
    return int(found[1]) * 1024
