# mypy: disable-error-code="no-untyped-def"
"""Sums over rows that kernels take on their way: each program adds up its share of the rows, one sum joins the shares.

No atomics: the same rows give the same sums, bit for bit.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

SHARES_PER_MULTIPROCESSOR = 4
SHARES, COLUMNS = 64, 32  # a tile of the joining kernel


@triton.jit
def join_shares(partial, out, shares, width, R: tl.constexpr, C: tl.constexpr):
    """Sum (shares, width) over shares."""
    col = tl.program_id(0) * C + tl.arange(0, C)
    total = tl.zeros((R, C), tl.float32)
    for start in range(0, shares, R):
        row = start + tl.arange(0, R)
        inside = (row < shares)[:, None] & (col < width)[None, :]
        total += tl.load(partial + row[:, None] * width + col[None, :], mask=inside, other=0.0)
    tl.store(out + col, tl.sum(total, 0), mask=col < width)


class RowSums:
    """Room for the partial sums of several kernels over the same rows, joined by one reduction at the end.

    Args:
        rows: rows that the kernels go through.
        width: columns of all sums together.
        device: where they run.
    """

    def __init__(self, rows: int, width: int, device: torch.device) -> None:
        self.rows = rows
        self.shares = 3  # through the interpreter: few, but more than one
        if device.type == "cuda":
            self.shares = SHARES_PER_MULTIPROCESSOR * torch.cuda.get_device_properties(device).multi_processor_count
        self._partial = torch.empty(self.shares, width, dtype=torch.float32, device=device)
        self._taken: dict[str, int] = {}

    def tiles(self, height: int) -> int:
        """Tiles of ``height`` rows that a share consists of."""
        return -(-self.rows // (height * self.shares))

    def take(self, widths: dict[str, int]) -> Tensor:
        """Give the next kernel the columns of its sums, side by side (shares, width); it must write them all."""
        start = sum(self._taken.values())
        self._taken |= widths
        return self._partial[:, start : start + sum(widths.values())]

    def joined(self) -> dict[str, Tensor]:
        """All sums by name, float32."""
        shares, width = self._partial.shape
        out = self._partial.new_empty(width)
        if width:
            join_shares[(triton.cdiv(width, COLUMNS),)](
                self._partial, out, shares, width, R=SHARES, C=COLUMNS, num_warps=4
            )
        return dict(zip(self._taken, out.split(list(self._taken.values())), strict=True))
