"""How the products of a decoding step are cut into programs (``src.decoding.kernels``).

The constants are for GPUs of the H100's kind; ``python -m scripts.bench.decode --kernels`` ranks others.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

PROGRAMS = 32  # that share out the reading of the weights
FEW = 4  # sequences at most that are multiplied without tensor cores, which take 16 at least
SHARED = 96 * 1024  # bytes of tiles that a program may hold on every GPU, and on one with 227 KB
DEEP_SHARED = 200 * 1024
LARGEST = 1 << 16  # numbers of x and the weights that a program with tensor cores takes


class Gpu(NamedTuple):
    """What a GPU can do beyond what all can."""

    overlap: bool  # a kernel may start before the one before has ended: compute capability 9.0
    deep: bool  # shared memory for ``DEEP_SHARED`` bytes of tiles: 9.x and 10.x


class Tiling(NamedTuple):
    """What a program of ``step_linear`` takes; with one row ``step_vector`` does the work."""

    rows: int
    outputs: int
    depth: int  # columns of x and the weights at once
    stages: int  # of the loop, where the depth is not all
    warps: int


LEAST = Gpu(overlap=False, deep=False)


def gpu_of(device: torch.device) -> Gpu:
    """Describe a device; one that is no GPU is like the least of them."""
    if device.type != "cuda":
        return LEAST
    capability = torch.cuda.get_device_capability(device)
    return Gpu(overlap=capability >= (9, 0), deep=capability[0] in (9, 10))


def tiling(batch: int, width_out: int, width: int, size: int, norm: bool, deep: bool) -> Tiling:
    """Choose the tiles of (batch, width) x (width_out, width) with weights of ``size`` bytes a number."""
    whole = max(16, 1 << (width - 1).bit_length())
    if batch <= FEW:
        warps = min(8, max(1, whole // 512))
        return Tiling(1, max(1, min(4, 2048 * warps // whole)), whole, 1, warps)
    row_tiles = -(-batch // 16)
    wide = (
        n for n in (64, 32, 16)
        if size == 2 and -(-width_out // n) * row_tiles >= PROGRAMS and (16 + n) * whole <= LARGEST
    )  # fmt: skip
    outputs = next(wide, 8)
    deepest = 256 if size == 4 else 1024 if norm else 2048  # deeper tiles do not fit the registers
    room = DEEP_SHARED if deep else SHARED
    depth, stages = whole, 1
    if whole > deepest or (16 + outputs) * size * whole > room:
        stages = 3  # two tiles on their way, of x as it is read, and x as it is multiplied
        column = 2 * (16 * (4 if norm else size) + outputs * size) + 16 * size
        depth = next(d for d in (512, 256, 128, 64) if 2 * d <= deepest and column * d <= SHARED)
    return Tiling(16, outputs, depth, stages, 8 if (16 + outputs) * depth >= LARGEST else 4)
