"""What is private in PyTorch and used here, all of it (seen with PyTorch 2.11 to 2.13)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch.distributed.tensor import DTensor
from torch.utils._pytree import tree_leaves

__all__ = ["first_row", "memory_snapshot", "record_memory", "tree_leaves"]


def record_memory(entries: int | None) -> None:
    """Record who allocates memory of the GPU, at most so many events; None ends it."""
    if entries is None:
        torch.cuda.memory._record_memory_history(enabled=None)
    else:
        torch.cuda.memory._record_memory_history(max_entries=entries)


def memory_snapshot(file: Path) -> None:
    """Write what was recorded, for pytorch.org/memory_viz."""
    torch.cuda.memory._dump_snapshot(str(file))


def first_row(parameter: DTensor) -> int:
    """Give the row of a whole parameter at which the share here begins, where dimension 0 alone is shared out."""
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    found: Any = compute_local_shape_and_global_offset(parameter.shape, parameter.device_mesh, parameter.placements)
    return int(found[1][0])
