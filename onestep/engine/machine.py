"""The machine of a run and the versions of what it runs with, for its record."""

import os
import platform
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

#: The file of the record in a run's folder.
MACHINE = "machine.json"
_PACKAGES = ("onestep", "torch", "numpy", "diffusers", "accelerate")


def describe_machine(device: torch.device, processes: int) -> dict[str, str]:
    """The machine and the versions by name; no name of the machine or of its user.

    Args:
        device: of this process.
        processes: their number in the run.
    """
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    versions = {"Python": platform.python_version()}
    for package in _PACKAGES:
        with suppress(PackageNotFoundError):
            versions[package] = version(package)
    return {
        "device": name,
        "processes": str(processes),
        "processor": f"{_processor()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads in a process",
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        **versions,
    }


def _processor() -> str:
    """The processor's name as Linux says it, else as Python knows it."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
