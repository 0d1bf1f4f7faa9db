"""Masked dense attention: the oracle of the tests, O(n*n) and never the fast path."""

from __future__ import annotations

import torch
from torch import Tensor

from src.attention.key_sets import KeySet


def reference_attention(
    q: Tensor, k: Tensor, v: Tensor, layer: tuple[KeySet, ...], scale: float, offset: int = 0,
    first: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Compute attention straight from the definition of the sets (section 4), head by head, in the dtype given.

    Args:
        q: (B, H, Nq, D) queries, any floating dtype.
        k: (B, Hkv, Nk, D) keys; head h of the queries sees those of head h // (H / Hkv).
        v: (B, Hkv, Nk, Dv) values.
        layer: the key set of every head of the queries.
        scale: factor of the scores.
        offset: position of the first query.
        first: (B, Nq) the first key that each query may see; None: any.

    Returns:
        (B, H, Nq, Dv), laid out in memory as (B, Nq, H, Dv). Rows without keys are 0 and pass on no gradient.
    """
    i = torch.arange(offset, offset + q.shape[2], device=q.device)[:, None]
    j = torch.arange(k.shape[2], device=q.device)[None, :]
    ratio = q.shape[1] // k.shape[1] if k.shape[1] else 1
    heads = []
    for h, keys in enumerate(layer):
        hidden = ~(keys.sees(i, j) & (j <= i))
        if first is not None:
            hidden = hidden | (j < first[:, :, None])
        empty = hidden.all(-1, keepdim=True)
        scores = (q[:, h] @ k[:, h // ratio].mT) * scale
        # an empty row is given finite scores before the softmax and zeros after it: neither pass makes a NaN
        weights = scores.masked_fill(hidden & ~empty, -torch.inf).softmax(-1).masked_fill(empty, 0.0)
        heads.append(weights @ v[:, h // ratio])
    return torch.stack(heads, dim=2).transpose(1, 2)
