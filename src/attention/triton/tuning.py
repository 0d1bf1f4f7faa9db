"""Which tile sizes each kernel runs with: a stored table, found by ``python -m scripts.tune_kernels``.

Nothing is tuned when a user starts a run. A GPU or shape that the table does not know gets the safe configuration,
which fits the 100 KB of shared memory a program of consumer Ampere and Ada cards has (a test compiles them all).
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch

from src.attention.tiled.layout import Size
from src.attention.tiled.plan import Choice, Sizes

TABLE = Path(__file__).with_name("tuning.json")

_SAFE_TILES = {
    "block_forward": (64, 64),
    "block_backward_queries": (64, 32),
    "block_backward_keys": (32, 64),
    "window_forward": (64, 64),
    "window_backward": (32, 32),
    "column_forward": (32, 32),
    "column_backward": (32, 32),
}


class Config(NamedTuple):
    """How one kernel runs: BM queries by BN keys a tile (window and column backward: BM rows of its own, BN of the
    other side), warps a program, stages of the software pipeline, most registers a thread may have (0: the compiler
    decides), and how many tiles or columns a window or column program works through."""

    BM: int
    BN: int
    warps: int
    stages: int
    registers: int = 0
    per: int = 1


def find(kernel: str, device: torch.device, dtype: torch.dtype, qk: int, v: int, stride: int, rows: int = 0) -> Config:
    """Find the configuration of one launch.

    Args:
        kernel: ``block_forward``, ``block_backward_queries``, ``block_backward_keys``, ``window_forward``,
            ``window_backward``, ``column_forward`` or ``column_backward``.
        device: where it runs.
        dtype: of q, k and v.
        qk: width of a query.
        v: width of a value.
        stride: the pattern's stride.
        rows: rows of a column, for the column kernels.
    """
    return _find(kernel, capability(device), dtype.itemsize, padded(qk), padded(v), stride, padded(rows) if rows else 0)


def tiled_sizes(kernel: str, device: torch.device, dtype: torch.dtype, qk: int, v: int) -> Sizes:
    """Give the tile sizes that a kernel of ``src.attention.triton.tiled`` has configurations for on this GPU."""
    return _tiled_sizes(kernel, capability(device), dtype.itemsize, padded(qk), padded(v))


def tiled(kernel: str, device: torch.device, dtype: torch.dtype, qk: int, v: int, size: Size) -> Config:
    """Find the configuration of a kernel of ``src.attention.triton.tiled`` for tiles of ``size``."""
    return _tiled(kernel, capability(device), dtype.itemsize, padded(qk), padded(v), size)


@cache
def _tiled_sizes(kernel: str, gpu: str, itemsize: int, qk: int, v: int) -> Sizes:
    found = _table().get(gpu, {})
    stored = [found[name] for name in found if name.startswith(f"{key(kernel, itemsize, qk, v)} tile")]
    choices = [Choice(Size(*one[:2]), *one[5:]) for one in stored]
    smallest_last = sorted(choices, key=lambda one: -one.size.queries * one.size.keys)
    return tuple(smallest_last) or (Choice(Size(*_safe_tiled(itemsize * (qk + v))[:2])),)


@cache
def _tiled(kernel: str, gpu: str, itemsize: int, qk: int, v: int, size: Size) -> Config:
    found = _table().get(gpu, {}).get(f"{key(kernel, itemsize, qk, v)} tile {size.queries}x{size.keys}")
    if found:
        return Config(*found[:5])  # behind it: what its tiles cost (``Choice``)
    return _safe_tiled(itemsize * (qk + v))._replace(BM=size.queries, BN=size.keys)


def _safe_tiled(row_bytes: int) -> Config:
    if row_bytes <= 256:
        return Config(64, 32, 4, 2, 224)  # the compiler left alone spills to keep below 168
    return Config(32, 32, 8, 2) if row_bytes <= 512 else Config(16, 32, 8, 1)


def key(kernel: str, itemsize: int, qk: int, v: int) -> str:
    """The table's key of a kernel for 16- or 32-bit numbers and padded head widths."""
    return f"{kernel} {8 * itemsize}-bit {qk}x{v}"


def safe(kernel: str, itemsize: int, qk: int, v: int) -> Config:
    """A configuration for any GPU from Ampere on: it fits 100 KB of shared memory, and its tiles fit the registers."""
    BM, BN = _SAFE_TILES[kernel]
    row_bytes = itemsize * (qk + v)
    shrink = 1 if row_bytes <= 256 else 2 if row_bytes <= 512 else 4
    stages = 1 if kernel == "column_backward" else 2  # its columns keep many addresses: no registers to run ahead
    return Config(max(16, BM // shrink), max(16, BN // shrink), 4, stages)


@cache
def _find(kernel: str, gpu: str, itemsize: int, qk: int, v: int, stride: int, rows: int) -> Config:
    entries = _table().get(gpu, {})
    name = key(kernel, itemsize, qk, v)
    for variant in (f"{name} rows {rows}", f"{name} l {stride}", name):
        if variant in entries:
            config = Config(*entries[variant])
            break
    else:
        config = safe(kernel, itemsize, qk, v)
    if rows:  # no tile longer than the column
        config = config._replace(BM=min(config.BM, rows), BN=min(config.BN, rows))
    return config


@cache
def _table() -> dict[str, dict[str, list[int]]]:
    try:
        return json.loads(TABLE.read_text())
    except OSError as error:  # without it every kernel would run in slow safe tiles
        raise RuntimeError(f"{TABLE} cannot be read ({error.strerror}): install the package again") from error


def capability(device: torch.device) -> str:
    """The table's name of a GPU: its compute capability, such as ``sm_90``."""
    if device.type != "cuda":
        return device.type
    return "sm_{}{}".format(*_capability(device.index or 0))


def has_descriptors(device: torch.device) -> bool:
    """Whether a GPU loads tiles by descriptors of tensors (from Hopper on); so does Triton's interpreter on CPUs."""
    name = capability(device)
    return name == "cpu" or (name.startswith("sm_") and int(name[3:]) >= 90)


@cache
def _capability(index: int) -> tuple[int, int]:
    return torch.cuda.get_device_capability(index)


def padded(width: int) -> int:
    """Width of a tile of ``width`` columns in the kernels, as ``steps.padded``."""
    return max(16, 1 << (width - 1).bit_length())
