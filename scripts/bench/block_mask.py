"""FlexAttention's mask of blocks, made one row of blocks after the other: no n*n memory, and nothing to compile."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

Sees = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]  # of batch, head, query and key


def block_mask(sees: Sees, heads: int, n: int, size: tuple[int, int], device: torch.device | str) -> BlockMask:
    """Give what ``create_block_mask`` gives for one sequence of ``n`` positions.

    Args:
        sees: which keys a query sees.
        heads: that differ; 1 where all are alike.
        n: queries and keys.
        size: queries and keys of a block.
        device: where it lives.
    """
    blocks = [-(-n // one) for one in size]
    partial, full = (torch.zeros(1, heads, *blocks, dtype=torch.bool, device=device) for _ in range(2))
    sequence, j = torch.zeros((), dtype=torch.int64, device=device), torch.arange(n, device=device)
    for head in range(heads):
        for row, i in enumerate(j.split(size[0])):
            kept = sees(sequence, sequence + head, i[:, None], j[None, :]).expand(len(i), n)
            filled = torch.nn.functional.pad(kept, (0, -n % size[1], 0, size[0] - len(i)))
            by_block = filled.view(size[0], blocks[1], size[1])
            full[0, head, row] = by_block.all(2).all(0)
            partial[0, head, row] = by_block.any(2).any(0) & ~full[0, head, row]
    return BlockMask.from_kv_blocks(
        partial.sum(-1).int(), _set_first(partial), full.sum(-1).int(), _set_first(full),
        BLOCK_SIZE=size, mask_mod=sees, seq_lengths=(n, n),
    )  # fmt: skip


def _set_first(table: Tensor) -> Tensor:
    """Places of a row, those that are set first, in their order."""
    return table.int().argsort(dim=-1, descending=True, stable=True).int()
