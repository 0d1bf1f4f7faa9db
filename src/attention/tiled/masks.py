"""Masks of tiles as bits: a word of 32 bits holds 32 columns of a row."""

from __future__ import annotations

import torch
from torch import Tensor

BITS = 32  # of a word


def packed(bits: Tensor) -> Tensor:
    """Pack (..., columns) bool into (..., columns / 32, rounded up) int32: column j is bit j % 32 of word j // 32."""
    whole = torch.nn.functional.pad(bits, (0, -bits.shape[-1] % BITS)).unflatten(-1, (-1, BITS))
    return (whole.long() << torch.arange(BITS, device=bits.device)).sum(-1).int()


def unpacked(words: Tensor) -> Tensor:
    """Unpack (..., words) int32 into (..., 32 words) bool."""
    bits = (words[..., None] >> torch.arange(BITS, device=words.device)) & 1
    return bits.bool().flatten(-2)
