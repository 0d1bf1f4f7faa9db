"""Small archives in the official formats."""

from __future__ import annotations

import io
import pickle
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


def planes(count: int, side: int, seed: int = 0) -> Any:
    """Pictures stored channel by channel."""
    return np.random.default_rng(seed).integers(0, 256, (count, 3 * side * side), dtype=np.uint8)


def batch(count: int, seed: int = 0, protocol: int = 2, **changes: Any) -> bytes:
    """A batch file of CIFAR-10."""
    content = {b"data": planes(count, 32, seed), b"labels": [i % 10 for i in range(count)]}
    content |= {key.encode(): value for key, value in changes.items()}
    return pickle.dumps(content, protocol)


def cifar(**changes: bytes) -> dict[str, bytes]:
    """All six batch files: 5 x 10 and 10 pictures."""
    names = [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]
    return {name: batch(10, seed) for seed, name in enumerate(names)} | changes


def png(side: int = 64, mode: str = "RGB", seed: int = 0) -> bytes:
    """A PNG of noise."""
    file = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
    Image.fromarray(pixels).convert(mode).save(file, "PNG")
    return file.getvalue()


def tar(path: Path, files: dict[str, bytes], mode: str = "w") -> Path:
    """A tar archive of files."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path
