"""GPUs that run slower than they could, by what NVIDIA's driver says. Not run on a GPU yet."""

from __future__ import annotations

import ctypes
import platform
from typing import Any

from fastmoco.runs.warnings import passed, warn

REASONS = {
    0x08: "the hardware lowers its clocks (power or heat)",
    0x20: "it is too hot",
    0x40: "it is too hot",
    0x80: "the power supply asks for it",
}
"""Bits of nvmlDeviceGetCurrentClocksEventReasons (nvml.h) that are faults. A power limit of its own (0x04) is not among
them: a GPU at work is often at it."""
LOOKS = 3
"""Looks in a row after which it is a fault: a moment of it costs nothing."""


class Throttling:
    """Looks at one GPU; does nothing where there is no driver's library.

    Args:
        gpu: of torch.cuda.get_device_properties.
    """

    def __init__(self, gpu: Any) -> None:
        self._name, self._seen = gpu.name, 0
        self._nvml, self._handle = _open(f"GPU-{gpu.uuid}") if hasattr(gpu, "uuid") else (None, None)

    def look(self) -> None:
        """Ask the driver, and warn."""
        if self._nvml is None:
            return
        bits = ctypes.c_ulonglong(0)
        # the older name; newer drivers have it as well
        if self._nvml.nvmlDeviceGetCurrentClocksThrottleReasons(self._handle, ctypes.byref(bits)) == 0:
            self.judge(bits.value)

    def judge(self, bits: int) -> None:
        """Warn if the driver gives a reason that is a fault several times in a row."""
        reasons = list(dict.fromkeys(text for bit, text in REASONS.items() if bits & bit))
        if not reasons:
            self._seen = 0
            passed("gpu_throttled")
            return
        self._seen += 1
        if self._seen >= LOOKS:
            warn(
                "gpu_throttled",
                f"the {self._name} on {platform.node()} runs slower than it could: {', '.join(reasons)}; check its "
                "cooling and power (nvidia-smi -q -d PERFORMANCE,TEMPERATURE,POWER)",
            )


def _open(uuid: str) -> tuple[Any, Any]:
    try:
        nvml = ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return None, None
    handle = ctypes.c_void_p()
    if nvml.nvmlInit_v2() != 0 or nvml.nvmlDeviceGetHandleByUUID(uuid.encode(), ctypes.byref(handle)) != 0:
        return None, None
    return nvml, handle
