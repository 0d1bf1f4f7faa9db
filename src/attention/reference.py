"""Masked dense attention: the oracle of the tests, O(n*n) and never the fast path."""

from __future__ import annotations

import torch
from torch import Tensor

from src.attention.key_sets import KeySet


def reference_attention(q: Tensor, k: Tensor, v: Tensor, layer: tuple[KeySet, ...], scale: float) -> Tensor:
    """Compute attention straight from the definition of the sets (section 4), head by head, in the dtype given.

    Args:
        q: (B, H, N, D) queries, any floating dtype.
        k: (B, H, N, D) keys.
        v: (B, H, N, Dv) values.
        layer: the key set of every head.
        scale: factor of the scores.

    Returns:
        (B, H, N, Dv), laid out in memory as (B, N, H, Dv). Rows without keys are 0 and pass on no gradient.
    """
    i = torch.arange(q.shape[2], device=q.device)
    heads = []
    for h, keys in enumerate(layer):
        hidden = ~keys.sees(i[:, None], i[None, :])
        empty = hidden.all(-1, keepdim=True)
        scores = (q[:, h] @ k[:, h].mT) * scale
        # an empty row is given finite scores before the softmax and zeros after it: neither pass makes a NaN
        weights = scores.masked_fill(hidden & ~empty, -torch.inf).softmax(-1).masked_fill(empty, 0.0)
        heads.append(weights @ v[:, h])
    return torch.stack(heads, dim=2).transpose(1, 2)
