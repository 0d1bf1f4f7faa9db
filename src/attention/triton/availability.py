"""Whether the Triton backend can run on a device. Imports Triton only when asked."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sysconfig
from pathlib import Path

import torch

LEAST_CAPABILITY = (8, 0)


def problem(device: torch.device | str) -> str | None:
    """Say in one sentence why the Triton kernels cannot run on ``device``; None if they can.

    On a CPU they run only through Triton's interpreter (``TRITON_INTERPRET=1``), far too slowly for anything but tests.
    """
    kind = torch.device(device).type
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed (it exists for Linux only)"
    if kind == "cpu":
        if os.environ.get("TRITON_INTERPRET") == "1":
            return None
        return "Triton runs on GPUs; on a CPU only through its interpreter, with TRITON_INTERPRET=1 set"
    if kind != "cuda" or torch.version.cuda is None:
        return f"the Triton kernels are for NVIDIA GPUs, found device {torch.device(device)}"
    if not torch.cuda.is_available():
        return "no CUDA GPU is visible"
    capability = torch.cuda.get_device_capability(device)
    if capability < LEAST_CAPABILITY:
        return (
            f"the Triton kernels need compute capability 8.0 (Ampere) or newer, found {capability[0]}.{capability[1]}"
        )
    return compiler_problem()


def compiler_problem() -> str | None:
    """Say why Triton cannot build the small C program that starts each kernel; None if it can, as far as one sees."""
    named = os.environ.get("CC")
    if named is not None and shutil.which(named) is None:
        return f"Triton needs a C compiler, and CC={named} is none that can be run: install it or unset CC"
    if named is None and not any(map(shutil.which, ("gcc", "clang"))):
        return "Triton needs a C compiler and found neither gcc nor clang: install one, or set CC"
    scheme = sysconfig.get_default_scheme().replace("posix_local", "posix_prefix")  # as Triton does, for Debian
    headers = Path(sysconfig.get_paths(scheme)["include"]) / "Python.h"
    if not headers.is_file() and not {"CPATH", "C_INCLUDE_PATH"} & set(os.environ):
        return "Triton needs Python's C headers, and Python.h is missing: install them (python3-dev)"
    return None
