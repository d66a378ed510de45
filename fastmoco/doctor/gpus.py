"""NVIDIA's side: the driver, the GPUs that torch sees, the CUDA versions of torch and DALI, and the precision."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata

from fastmoco.doctor.findings import Finding, gib, version_numbers

# the oldest driver of each major version of CUDA, on Linux (CUDA's release notes)
DRIVERS = {11: "450.80.02", 12: "525.60.13", 13: "580.65.06"}


@dataclass(frozen=True)
class Gpu:
    """One GPU, as torch sees it."""

    name: str
    memory: int
    capability: tuple[int, int]


def gpus() -> Iterator[Finding]:
    """The driver, torch's CUDA, each GPU, DALI, and the precision of training."""
    import torch

    from fastmoco.devices import autocast_dtype

    version, present = driver()
    built = torch.version.cuda
    seen = visible_gpus()
    yield of_driver(version, present, len(seen), built, os.environ.get("CUDA_VISIBLE_DEVICES"))
    architectures = torch.cuda.get_arch_list() if seen else []
    for number, gpu in enumerate(seen):
        yield of_gpu(number, gpu, architectures)
    yield of_dali(dali_packages(), built, version, bool(seen), _dali_problem(bool(seen)))
    chosen = autocast_dtype("auto", torch.device("cuda" if seen else "cpu"))
    yield precision({torch.bfloat16: "bf16", torch.float16: "fp16", None: "fp32"}[chosen], bool(seen))


def of_driver(version: str | None, present: int, seen: int, built: str | None, visible: str | None) -> Finding:
    """The driver, and whether torch can use it.

    Args:
        version: Of the driver; None where there is none.
        present: GPUs that the driver has.
        seen: GPUs that torch has.
        built: CUDA version that torch was built for; None for a build without CUDA.
        visible: CUDA_VISIBLE_DEVICES.
    """
    on_cpu = "training runs on the CPU"
    if version is None and seen:
        text = (
            f"of unknown version, {_gpus(seen)}; torch is built for {f'CUDA {built}' if built else 'another platform'}"
        )
        return Finding("driver", text, "note", "to see the version, install libnvidia-ml, a part of NVIDIA's driver")
    if version is None:
        text = f"no NVIDIA driver; torch is built {f'for CUDA {built}' if built else 'without CUDA'}: {on_cpu}"
        return Finding("driver", text, "note", "with an NVIDIA GPU, install its driver")
    if built is None:
        text = f"{version} with {_gpus(present)}, but this torch is built without CUDA: {on_cpu}"
        return Finding("driver", text, "warn", "install torch with CUDA (pytorch.org/get-started)")
    text = f"{version}; torch is built for CUDA {built}"
    oldest = DRIVERS.get(version_numbers(built)[0], "0")
    if version_numbers(version) < version_numbers(oldest):
        remedy = f"update the driver, or install torch for {_cuda_of(version)}"
        return Finding("driver", f"{text}, which needs a driver from {oldest} on: {on_cpu}", "warn", remedy)
    if not seen and present:
        text += f"; it has {_gpus(present)}, torch sees none"
        if visible is not None:
            text += f"; CUDA_VISIBLE_DEVICES is {visible!r}"
            return Finding("driver", f"{text}: {on_cpu}", "warn", "unset CUDA_VISIBLE_DEVICES")
        remedy = "see the error of python -c 'import torch; torch.cuda.init()'"
        return Finding("driver", f"{text}: {on_cpu}", "warn", remedy)
    if not seen:
        return Finding("driver", f"{text}; no GPU: {on_cpu}", "note", "in a container, start it with --gpus all")
    return Finding("driver", text)


def of_gpu(number: int, gpu: Gpu, architectures: Sequence[str]) -> Finding:
    """One GPU; training stops on one for which torch has no code.

    Args:
        number: Its index.
        gpu: The GPU.
        architectures: For which torch was built, as `sm_90` (machine code) or `compute_90` (compiled on demand).
    """
    major, minor = gpu.capability
    text = f"{gpu.name}, {gib(gpu.memory)}, compute capability {major}.{minor}"
    if not _runs_on(gpu.capability, architectures):
        text += f", for which torch has no code (it has {' '.join(architectures)})"
        return Finding(f"GPU {number}", text, "stop", "install a torch that supports it (pytorch.org/get-started)")
    return Finding(f"GPU {number}", text)


def of_dali(installed: Sequence[str], built: str | None, driver: str | None, gpu: bool, problem: str | None) -> Finding:
    """DALI, which decodes on GPUs.

    Args:
        installed: Packages of DALI, as `nvidia-dali-cuda130 2.4.0`.
        built: CUDA version that torch was built for.
        driver: Version of the driver.
        gpu: Whether torch sees a GPU.
        problem: Why it cannot be used, with the remedy, or None.
    """
    major = version_numbers(built or "13")[0]
    right = f"nvidia-dali-cuda{major}0"
    install = f"pip install {right}"
    if not installed:
        if not gpu:
            return Finding("DALI", "not installed; without a GPU torch decodes faster")
        return Finding("DALI", "not installed: the CPU decodes, not the GPU", "warn", install)
    text, level = ", ".join(installed), "warn" if gpu else "note"
    names = [name.split()[0] for name in installed]
    if len(names) > 1:
        others = " ".join(name for name in names if name != right)
        text += ": they overwrite each other's files"
        return Finding("DALI", text, level, f"pip uninstall {others}; {install}")
    if built and names[0] != right:
        text += f", but torch is built for CUDA {built}"
        return Finding("DALI", text, level, f"pip uninstall {names[0]}; {install}")
    oldest = DRIVERS.get(major, "0")
    if driver is not None and version_numbers(driver) < version_numbers(oldest):
        return Finding("DALI", f"{text}, which needs a driver from {oldest} on", level, "update the driver")
    if problem is not None:
        what, _, remedy = problem.rpartition(": ")
        return Finding("DALI", f"{text}: {what}", level, remedy)
    return Finding("DALI", f"{text}, as torch for CUDA {major}" if built else text)


def precision(chosen: str, gpu: bool) -> Finding:
    """The precision that --precision auto takes."""
    if chosen == "bf16":
        return Finding("precision", f"bf16 in hardware ({'GPU' if gpu else 'AMX'}); --precision auto takes it")
    what = "the GPU has no bf16 in hardware" if gpu else "this CPU has no bf16 in hardware (AMX)"
    # nothing to do about it, and nothing is wrong
    return Finding("precision", f"{what}; --precision auto takes {chosen}")


def visible_gpus() -> list[Gpu]:
    """The GPUs that torch can use."""
    import torch

    if not torch.cuda.is_available():
        return []
    properties = [torch.cuda.get_device_properties(number) for number in range(torch.cuda.device_count())]
    return [Gpu(each.name, each.total_memory, (each.major, each.minor)) for each in properties]


def driver() -> tuple[str | None, int]:
    """Version of NVIDIA's driver, None without one, and the number of its GPUs; from the driver's own library."""
    try:
        nvml = ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return None, 0
    if nvml.nvmlInit_v2() != 0:
        return None, 0
    text, count = ctypes.create_string_buffer(80), ctypes.c_uint(0)
    nvml.nvmlSystemGetDriverVersion(text, 80)
    nvml.nvmlDeviceGetCount_v2(ctypes.byref(count))
    nvml.nvmlShutdown()
    return text.value.decode(), count.value


def dali_packages() -> list[str]:
    """Installed packages of DALI with their versions."""
    found = {dist.metadata["Name"]: dist.version for dist in metadata.distributions()}
    return sorted(f"{name} {version}" for name, version in found.items() if (name or "").startswith("nvidia-dali-cuda"))


def _dali_problem(gpu: bool) -> str | None:
    from pipelines import nvjpeg
    from pipelines.choice import installed

    if not installed():
        return None
    try:
        import nvidia.dali  # noqa: F401
    except Exception as error:  # its libraries may not fit the system's
        return f"it cannot be imported ({' '.join(str(error).split())[:200]}): install it again"
    return nvjpeg.problem() if gpu else None


def _runs_on(capability: tuple[int, int], architectures: Sequence[str]) -> bool:
    if not architectures:
        return True
    for name in architectures:
        kind, _, number = name.partition("_")
        digits = "".join(char for char in number if char.isdigit())
        built = (int(digits[:-1]), int(digits[-1]))
        # machine code runs on later GPUs of its major version, `compute` on all later ones
        if built <= capability and (kind == "compute" or built[0] == capability[0]):
            return True
    return False


def _cuda_of(driver: str) -> str:
    fitting = [major for major, oldest in DRIVERS.items() if version_numbers(oldest) <= version_numbers(driver)]
    return f"CUDA {max(fitting)}" if fitting else "an older CUDA"


def _gpus(count: int) -> str:
    return "1 GPU" if count == 1 else f"{count} GPUs"
