"""Queries and keys before they meet: norm of each head, and rotary positions (Su et al. 2021, RoFormer).

A head's first half of numbers and its second half are the two coordinates of points in planes; position t turns the
plane i by t / base^(2 i / d_head). The product of a query and a key then depends on their distance alone.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from src.models.options import EPS


class Rotary(nn.Module):
    """Cosines and sines of all positions, once for all blocks.

    Args:
        base: of the angles.
        context: largest number of positions.
        width: of a head's queries and keys; even.

    Raises:
        ValueError: an odd width.
    """

    def __init__(self, base: float, context: int, width: int) -> None:
        super().__init__()
        if width % 2:
            raise ValueError(f"rotary positions need an even width of a head's queries and keys, found {width}")
        self.table: Tensor
        """float32 (2, context, width / 2): cosines, then sines."""
        self.register_buffer("table", rotary_table(base, context, width), persistent=False)

    def forward(self, first: int, last: int) -> Tensor:
        """Give the table of positions ``first`` to ``last - 1``, (2, last - first, width / 2)."""
        return self.table[:, first:last]


def rotary_table(base: float, context: int, width: int) -> Tensor:
    """Compute cosines and sines, float32 (2, context, width / 2), from angles in float64: positions can be large."""
    turns = base ** (-torch.arange(0, width, 2, dtype=torch.float64) / width)
    angle = torch.arange(context, dtype=torch.float64)[:, None] * turns
    return torch.stack([angle.cos(), angle.sin()]).float()


def turn(x: Tensor, table: Tensor | None, norm: float | None) -> Tensor:
    """Normalise each head and turn it by its position, in float32 at least.

    Args:
        x: (..., N, H, D) queries or keys of H heads, any floating dtype.
        table: from ``Rotary``, (2, N, D / 2); None: no positions.
        norm: root mean square that each head is given first; None: it stays as it is.

    Returns:
        As ``x``, in its dtype.
    """
    if table is None and norm is None:
        return x
    y = x.to(torch.promote_types(x.dtype, torch.float32))
    if norm is not None:
        y = F.rms_norm(y, y.shape[-1:], eps=EPS) * norm
    if table is not None:
        cosine, sine = table[:, :, None]
        a, b = y.chunk(2, dim=-1)
        y = torch.cat([a * cosine - b * sine, b * cosine + a * sine], dim=-1)
    return y.to(x.dtype)
