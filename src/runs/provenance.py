"""Where a run came from: code, packages, machine, command."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

PACKAGES = ("torch", "triton", "lightning", "torchmetrics", "hydra-core", "wandb", "numpy")


def provenance() -> dict[str, Any]:
    """Collect git commit, package versions, hardware and command of this process."""
    return {
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": [Path(sys.executable).name, *sys.orig_argv[1:]],
        "git_commit": _git("rev-parse", "HEAD"),
        "git_changed": bool(_git("status", "--porcelain")),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "machine": platform.platform(),
        "cpus": os.cpu_count(),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
    }


def versions() -> dict[str, str | None]:
    """Collect what a checkpoint says of its making: versions of Python and the packages, and the git commit."""
    return {
        "python": platform.python_version(),
        **{name: _version(name) for name in PACKAGES},
        "git_commit": _git("rev-parse", "HEAD"),
    }


def append_provenance(file: Path, data: dict[str, Any] | None = None) -> None:
    """Add this process, and what identifies its ``data``, to a JSON Lines file: one line a process of the run."""
    with file.open("a") as out:
        out.write(json.dumps(provenance() | {"data": data}) + "\n")


def data_changes(file: Path, data: dict[str, Any]) -> list[str]:
    """Say what of the ``data`` is not as the last process of the run had it, such as "size was 9, is 8".

    Runs of before this was written down, and files that cannot be read, have no changes.
    """
    try:
        before = json.loads(file.read_text().splitlines()[-1]).get("data") or {}
    except (OSError, ValueError, IndexError, AttributeError):
        return []
    names = [name for name in before if name in ("size", "sha256", "partial", "offsets_sha256") and name in data]
    return [f"{name} was {before[name]}, is {data[name]}" for name in names if before[name] != data[name]]


def _git(*arguments: str) -> str | None:
    root = Path(__file__).resolve().parents[2]
    try:
        done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
