"""Attention over any key set as PyTorch operators, ``torch.ops.sparse_transformer.tiled_attention``.

A layer travels through them as a text, the codes of its key sets. Lists are made when they are first needed, inside the
operator, so that ``torch.compile`` sees one call.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from src.attention.key_sets import KeySet
from src.attention.tiled import loop
from src.attention.tiled.plan import plan

Computed = Literal["triton", "torch"]


def tiled_attention(
    q: Tensor, k: Tensor, v: Tensor, layer: tuple[KeySet, ...], computed: Computed, scale: float, offset: int = 0,
    first: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Attend over the tiles that the key sets keep.

    Args:
        q: (B, H, Nq, D) queries, any strides.
        k: (B, Hkv, Nk, D) keys; Hkv divides H, and neighbouring heads share keys.
        v: (B, Hkv, Nk, Dv) values.
        layer: the key set of every head of the queries.
        computed: by Triton's kernels or by PyTorch.
        scale: factor of the scores.
        offset: position of the first query; the first key has position 0.
        first: (B, Nq) int32, the first key that each query may see; None: any.

    Returns:
        (B, H, Nq, Dv) in the type of the inputs, laid out as (B, Nq, H, Dv); 0 where a query sees nothing.
    """
    kind = q.device.type
    if computed == "triton" and torch.is_autocast_enabled(kind):
        q, k, v = (x.to(torch.get_autocast_dtype(kind)) for x in (q, k, v))
    code = "\n".join([keys.code for keys in layer])
    return torch.ops.sparse_transformer.tiled_attention(q, k, v, first, code, computed, scale, offset)[0]


@lru_cache(maxsize=256)
def read_layer(code: str) -> tuple[KeySet, ...]:
    """Read a layer from its text."""
    return tuple(map(KeySet.read, code.split("\n")))


def _groups(q: Tensor, k: Tensor, code: str, offset: int) -> list[loop.Heads]:
    found = plan(read_layer(code), q.shape[2], k.shape[2], offset, q.device)
    heads = [[h for h, place in enumerate(found.of_head) if place == one] for one in range(len(found.layouts))]
    return [loop.Heads(*pair) for pair in zip(heads, found.layouts, strict=True)]


@torch.library.custom_op("sparse_transformer::tiled_attention", mutates_args=())
def _attention(
    q: Tensor, k: Tensor, v: Tensor, first: Tensor | None, layer: str, computed: str, scale: float, offset: int
) -> tuple[Tensor, Tensor]:
    if computed == "torch":
        return loop.forward(q, k, v, first, _groups(q, k, layer, offset), scale)
    from src.attention.triton import tiled_passes

    out, lse = _results(q, v, computed)
    tiled_passes.forward(q, k, v, first, out, lse, read_layer(layer), offset, scale)
    return out, lse


@_attention.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, first: Tensor | None, layer: str, computed: str, *_: Any) -> Any:
    return _results(q, v, computed)


@torch.library.custom_op("sparse_transformer::tiled_attention_backward", mutates_args=())
def _attention_backward(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, first: Tensor | None, out: Tensor, lse: Tensor, layer: str,
    computed: str, scale: float, offset: int,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    if computed == "torch":
        return loop.backward(dout, q, k, v, first, out, lse, _groups(q, k, layer, offset), scale)
    from src.attention.triton import tiled_passes

    return tiled_passes.backward(dout, q, k, v, first, out, lse, read_layer(layer), offset, scale)


@_attention_backward.register_fake
def _(dout: Tensor, q: Tensor, k: Tensor, v: Tensor, *_: Any) -> Any:
    return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, first, *ctx.rest = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(q, k, v, first, *output)


def _gradients(ctx: Any, dout: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
    found = torch.ops.sparse_transformer.tiled_attention_backward(dout, *ctx.saved_tensors, *ctx.rest)
    return (*found, None, None, None, None, None)


_attention.register_autograd(_gradients, setup_context=_save)


@register_flop_formula(torch.ops.sparse_transformer.tiled_attention)
def _forward_flops(q: Any, k: Any, v: Any, first: Any, layer: str, *rest: Any, **_: Any) -> int:
    return _flops(q, k, layer, rest[-1], q[3] + v[3])


@register_flop_formula(torch.ops.sparse_transformer.tiled_attention_backward)
def _backward_flops(
    dout: Any, q: Any, k: Any, v: Any, first: Any, out: Any, lse: Any, layer: str, *rest: Any, **_: Any
) -> int:
    return _flops(q, k, layer, rest[-1], 3 * q[3] + 2 * v[3])


def _flops(q: Any, k: Any, layer: str, offset: int, width: int) -> int:
    """Two operations a kept pair and column. Of a few queries behind a cache: those that the whole sequence adds."""
    end = offset + q[2]
    return 2 * q[0] * width * sum(keys.pairs(end) - keys.pairs(offset) for keys in read_layer(layer))


def _results(q: Tensor, v: Tensor, computed: str) -> tuple[Tensor, Tensor]:
    batch, heads, n, _ = q.shape
    exact = torch.float32 if computed == "triton" else torch.promote_types(q.dtype, torch.float32)
    out = v.new_empty(batch, n, heads, v.shape[-1]).transpose(1, 2)
    return out, q.new_empty(q.shape[:3], dtype=exact)
