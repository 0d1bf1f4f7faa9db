"""The same key sets through PyTorch's FlexAttention, compiled: to compare with, and to fall back on.

It refuses what it cannot do; it never computes something else.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import flex_attention as flex

from src.attention.key_sets import KeySet

BLOCK = 128  # FlexAttention's default


@lru_cache(maxsize=1)
def _compiled() -> tuple[Callable[..., Any], Callable[..., Any]]:
    return torch.compile(flex.flex_attention, dynamic=False), torch.compile(flex.create_block_mask, dynamic=False)


def flex_attention(
    q: Tensor, k: Tensor, v: Tensor, layer: tuple[KeySet, ...], scale: float, offset: int = 0,
    first: Tensor | None = None, block: int = BLOCK,
) -> Tensor:  # fmt: skip
    """Attend; arguments and result as in `src.attention.tiled.tiled_attention`.

    Args:
        q, k, v, layer, scale, offset, first: see there. On an NVIDIA GPU.
        block: queries and keys of a block of FlexAttention's mask.

    Raises:
        ValueError: a dtype or width that it does not take, or a ``sees`` that it cannot compile.
    """
    if q.dtype not in (torch.bfloat16, torch.float16, torch.float32):
        raise ValueError(f"backend flex takes bf16, fp16 or fp32, found {q.dtype}; use reference")
    if min(q.shape[3], v.shape[3]) < 16:
        raise ValueError(f"backend flex takes heads of at least 16, found {min(q.shape[3], v.shape[3])}; use auto")
    queries, length = q.shape[2], k.shape[2]
    try:
        if first is None:
            mask = _mask(layer, queries, length, offset, q.device, block)
        else:
            mask = _block_mask(_sees(layer, offset, first, q.device), len(q), layer, queries, length, q.device, block)
        out: Tensor = _compiled()[0](q, k, v, block_mask=mask, scale=scale, enable_gqa=q.shape[1] != k.shape[1])
    except (torch._dynamo.exc.TorchDynamoException, torch._inductor.exc.InductorError) as error:
        said = str(error).strip().splitlines()[0]
        raise ValueError(f"FlexAttention cannot compile {layer[0].name} attention ({said}); use auto") from error
    return out


@lru_cache(maxsize=64)
def _mask(
    layer: tuple[KeySet, ...], queries: int, length: int, offset: int, device: torch.device, block: int
) -> flex.BlockMask:
    return _block_mask(_sees(layer, offset, None, device), None, layer, queries, length, device, block)


def _block_mask(
    sees: Callable[..., Tensor], batch: int | None, layer: tuple[KeySet, ...], queries: int, length: int,
    device: torch.device, block: int,
) -> flex.BlockMask:  # fmt: skip
    heads = len(layer) if len(set(layer)) > 1 else None
    found: flex.BlockMask = _compiled()[1](sees, batch, heads, queries, length, device=device, BLOCK_SIZE=block)
    return found


def _sees(
    layer: tuple[KeySet, ...], offset: int, first: Tensor | None, device: torch.device
) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    """Write a layer as FlexAttention wants it: a function of batch, head, query and key."""
    different = tuple(dict.fromkeys(layer))
    place = torch.tensor([different.index(keys) for keys in layer], device=device)

    def sees(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        at = i + offset
        found = different[0].sees(at, j)
        for number, keys in enumerate(different[1:], start=1):
            found = torch.where(place[h] == number, keys.sees(at, j), found)
        found = found & (j <= at)
        return found if first is None else found & (j >= first[b, i])

    return sees
