"""How many GPUs PyTorch sees, without the seconds that its import takes.

A process of its own counts while ours goes on. This file as a script asks NVIDIA's management library (NVML), as
PyTorch does, and PyTorch itself only where that does not settle it.
"""

from __future__ import annotations

import atexit
import ctypes
import importlib.util
import os
import runpy
import subprocess
import sys
from functools import cache
from pathlib import Path


def ask() -> None:
    """Begin to count, for a later ``gpu_count``."""
    if "torch" not in sys.modules:
        _counting()


def gpu_count() -> int:
    """GPUs that PyTorch sees; those that CUDA_VISIBLE_DEVICES leaves, if it is set."""
    if "torch" not in sys.modules and (counted := _counted()) is not None:
        return counted
    return _by_pytorch()


@cache
def _counting() -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-P", __file__],  # -P: names of files here are not those of packages
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    atexit.register(process.kill)  # nobody may have waited for its answer
    return process


@cache
def _counted() -> int | None:
    process = _counting()
    said, _ = process.communicate()
    return int(said) if process.returncode == 0 and said.strip().isdecimal() else None


def _by_pytorch() -> int:
    import torch  # it is there, or says here why it cannot be

    return torch.cuda.device_count()


def _without_pytorch() -> int | None:
    """Count as PyTorch would; None where only itself can say."""
    built_for = _built_for()
    if built_for != "cuda":
        return 0 if built_for == "cpu" else None
    there = _by_nvml()
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if there is None or chosen is None:
        return there
    numbers = {int(word) for word in chosen.split(",") if word.strip().isdecimal()}
    plain = len(numbers) == chosen.count(",") + 1 and max(numbers) < there  # else names of GPUs, or a mistake
    return len(numbers) if plain else None


def _built_for() -> str | None:
    """``cuda``, ``cpu`` or ``rocm``, by the file in which PyTorch's build says so; None where there is none."""
    found = importlib.util.find_spec("torch")
    if found is None or found.origin is None:
        return None
    file = Path(found.origin).with_name("version.py")
    if not file.is_file():
        return None
    version = runpy.run_path(str(file))
    return "rocm" if version.get("hip") else "cuda" if version["cuda"] else "cpu"


def _by_nvml() -> int | None:
    """GPUs of this machine; None where the library is missing or fails."""
    try:
        nvml = ctypes.CDLL("libnvidia-ml.so.1")
        found = ctypes.c_int(-1)
        failed = nvml.nvmlInit_v2() or nvml.nvmlDeviceGetCount_v2(ctypes.byref(found))
    except (OSError, AttributeError):
        return None
    return None if failed else found.value


if __name__ == "__main__":
    counted = _without_pytorch()
    print(_by_pytorch() if counted is None else counted)
