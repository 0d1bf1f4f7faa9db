"""Bit-identical runs: the same configuration on the same machine gives the same weights, also on a GPU."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import torch

CUBLAS = ":4096:8"  # two fixed workspaces, so that cuBLAS sums in one order; read when CUDA starts


def set_deterministic(on: bool) -> None:
    """Make every operation of PyTorch take its deterministic implementation, and refuse one that has none.

    Our own kernels sum in a fixed order anyway. Call it before anything runs on a GPU.
    """
    if on:
        os.environ["CUBLAS_WORKSPACE_CONFIG"] = CUBLAS
    torch.use_deterministic_algorithms(on)
    # our kernels write all of what they return, and the tests poison it; filling it first would cost time
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.deterministic = on
    torch.backends.cudnn.benchmark = False


@contextlib.contextmanager
def anything_goes() -> Iterator[None]:
    """Allow operations without a deterministic implementation: for what has no influence on training."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(False)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
