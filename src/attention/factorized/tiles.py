"""The pieces of work that sparse attention is cut into: some queries against some keys, both in regular steps.

Every key set of the paper is a disjoint union of small causal attentions in another index order. A `Tile` is one
such piece as indices only; `src.attention.factorized.step` does its arithmetic.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Mask = Literal["none", "lower", "upper", "cells"]


@dataclass(frozen=True)
class Rows:
    """Positions ``start + a * batch_step + r * step`` for ``a < batch`` and ``r < count``, as a strided view.

    Args:
        start: first position.
        count: rows of each batch item.
        step: distance of two neighbouring rows, in positions.
        batch: how many independent items.
        batch_step: distance of two neighbouring items, in positions.
    """

    start: int
    count: int
    step: int = 1
    batch: int = 1
    batch_step: int = 0

    def of(self, x: Tensor) -> Tensor:
        """View these positions of a contiguous (G, N, D) tensor as (G, batch, count, D), without a copy."""
        heads, n, width = x.shape
        return x.as_strided(
            (heads, self.batch, self.count, width),
            (n * width, self.batch_step * width, self.step * width, 1),
            x.storage_offset() + self.start * width,
        )


@dataclass(frozen=True)
class Tile:
    """Some queries and the keys that they see, item by item of the batch.

    Args:
        queries: M rows an item.
        keys: S rows an item; positions of the sequence, or of the gathered summary cells where ``gathered``.
        mask: which of the M x S pairs count. ``none``: all. ``lower``: all but the upper triangle of the square that
            ends at the last key (the diagonal counts). ``upper``: all but the lower triangle of the square that begins
            at the first key (the diagonal counts). ``cells``: cell ``s`` of a block only from its own position on,
            which is ``first_cell + s`` and so differs from head to head.
        gathered: whether the keys are the gathered summary cells.
    """

    queries: Rows
    keys: Rows
    mask: Mask = "none"
    gathered: bool = False

    def scores(self) -> int:
        """Count the scores computed for one head, kept or masked."""
        return self.queries.batch * self.queries.count * self.keys.count

    def bias(self, first_cells: Tensor, like: Tensor) -> tuple[slice, Tensor] | None:
        """Give what to add to the scores so that masked pairs become -inf.

        Args:
            first_cells: (G,) first summary cell within a block for each head.
            like: a tensor with the dtype and device wanted.

        Returns:
            The range of keys that the bias covers and the bias, (M, W) or (G, 1, M, S) for ``cells``; or None.
        """
        if self.mask == "none":
            return None
        rows, keys = self.queries.count, self.keys.count
        i = torch.arange(rows, device=like.device)[:, None]
        if self.mask == "cells":
            hidden = first_cells[:, None, None, None] + torch.arange(keys, device=like.device) > i
            return slice(0, keys), _minus_infinity(hidden, like)
        j = torch.arange(rows, device=like.device)
        width = min(rows, keys)
        if self.mask == "lower":
            return slice(keys - width, keys), _minus_infinity((j > i)[:, rows - width :], like)
        return slice(0, width), _minus_infinity((j < i)[:, :width], like)


def _minus_infinity(hidden: Tensor, like: Tensor) -> Tensor:
    return torch.zeros(hidden.shape, dtype=like.dtype, device=like.device).masked_fill_(hidden, -torch.inf)
