"""FlexAttention's mask of blocks without n*n memory: the same as PyTorch's own."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask

from scripts.bench.block_mask import block_mask


def shifted(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
    return (j <= i) & ((i - j < 260 + 60 * h) | (j % 50 == h))


@pytest.mark.parametrize("heads", [1, 3])
@pytest.mark.parametrize("size", [(32, 32), (64, 16), (128, 128)])
def test_it_is_the_mask_that_pytorch_makes(heads: int, size: tuple[int, int]) -> None:
    n = 512
    ours = block_mask(shifted, heads, n, size, "cpu")
    theirs = create_block_mask(shifted, 1, heads, n, n, device="cpu", BLOCK_SIZE=size)
    assert ours.BLOCK_SIZE == theirs.BLOCK_SIZE and ours.seq_lengths == theirs.seq_lengths
    for kind in ("kv", "full_kv", "q", "full_q"):
        counts = [getattr(mask, f"{kind}_num_blocks") for mask in (ours, theirs)]
        places = [getattr(mask, f"{kind}_indices") for mask in (ours, theirs)]
        assert torch.equal(*counts) and counts[0].sum() > 0
        kept = torch.arange(places[0].shape[-1]) < counts[0][..., None]
        assert torch.equal(places[0][kept], places[1][kept])
