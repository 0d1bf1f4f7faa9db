"""How many GPUs PyTorch sees, counted by a process of its own: it takes seconds to import, in which ours goes on."""

from __future__ import annotations

import atexit
import subprocess
import sys
from functools import cache

COUNT = "import torch; print(torch.cuda.device_count())"


def ask() -> None:
    """Begin to count, for a later ``gpu_count``."""
    if "torch" not in sys.modules:
        _counting()


def gpu_count() -> int:
    """GPUs that PyTorch sees; those that CUDA_VISIBLE_DEVICES leaves, if it is set."""
    if "torch" not in sys.modules and (counted := _counted()) is not None:
        return counted
    import torch  # it is there, or says here why it cannot be

    return torch.cuda.device_count()


@cache
def _counting() -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", COUNT],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    atexit.register(process.kill)  # nobody may have waited for its answer
    return process


@cache
def _counted() -> int | None:
    process = _counting()
    said, _ = process.communicate()
    return int(said) if process.returncode == 0 and said.strip().isdecimal() else None
