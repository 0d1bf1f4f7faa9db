"""The Triton kernels as PyTorch operators: ``torch.ops.sparse_transformer.*``.

They have fake implementations and autograd formulas, so they run under ``torch.compile`` with no graph break, under
activation recomputation and autocast; and FLOP formulas, so ``FlopCounterMode`` reports the pairs the pattern keeps.
A layer travels through them as a list of integers, four a head (see ``encode``).
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch.utils.flop_counter import register_flop_formula

from src.attention.key_sets import PAPER, KeySet
from src.attention.triton import passes

_KINDS: tuple[type[KeySet], ...] = PAPER


def sparse_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, layer: tuple[KeySet, ...], scale: float | None = None
) -> torch.Tensor:
    """Attend with the Triton kernels (section 5.5).

    Args:
        q: (B, H, N, Dqk), any strides; bf16, fp16 or fp32. Under autocast it is cast to its dtype.
        k: (B, Hkv, N, Dqk), likewise. Hkv divides H, and neighbouring heads of queries share keys and values.
        v: (B, Hkv, N, Dv), likewise.
        layer: the key set of each head, as ``Pattern.layer`` gives it; not ``Dense``.
        scale: positive softmax scale; 1/sqrt(Dqk) by default.

    Returns:
        (B, H, N, Dv), laid out in memory as (B, N, H, Dv).

    Raises:
        ValueError: shapes, dtypes or key sets that do not fit; the sentence says which.
    """
    q, k, v = _autocast(q), _autocast(k), _autocast(v)
    _check(q, k, v, layer)
    return torch.ops.sparse_transformer.attention(q, k, v, encode(layer), _scale(q.shape[-1], scale))[0]


def sparse_attention_packed(
    qkv: torch.Tensor,
    layer: tuple[KeySet, ...],
    qk_width: int,
    v_width: int,
    scale: float | None = None,
) -> torch.Tensor:
    """Attend straight from one fused projection; the backward pass writes its gradient as one tensor, no concatenation.

    Args:
        qkv: (B, N, H * qk_width + Hkv * (qk_width + v_width)): all heads' queries, then all heads' keys, then all
            heads' values. Hkv divides H, and neighbouring heads of queries share keys and values.
        layer: the key set of each of the H heads of queries; not ``Dense``.
        qk_width: width of one head's queries and keys.
        v_width: width of one head's values.
        scale: positive softmax scale; 1/sqrt(qk_width) by default.

    Returns:
        (B, N, H * v_width), contiguous: what the output projection takes.

    Raises:
        ValueError: shapes, dtypes or key sets that do not fit; the sentence says which.
    """
    qkv = _autocast(qkv)
    heads = len(layer)
    kv_heads, rest = divmod(qkv.shape[-1] - heads * qk_width, qk_width + v_width)
    if qkv.dim() != 3 or rest or kv_heads < 1 or heads % kv_heads:
        raise ValueError(
            f"qkv must be (batch, n, {heads * qk_width} + {qk_width + v_width} a head of keys) for {heads} heads of "
            f"queries and a divisor of that of keys, found {tuple(qkv.shape)}"
        )
    _check_kind(qkv.dtype, max(qk_width, v_width), layer)
    out = torch.ops.sparse_transformer.attention_packed(qkv, encode(layer), qk_width, v_width, _scale(qk_width, scale))[
        0
    ]
    return out.flatten(2)


def encode(layer: tuple[KeySet, ...]) -> list[int]:
    """Write a layer as integers: kind, stride, summary and sub-block of each head."""
    code: list[int] = []
    for keys in layer:  # not cached: torch.compile traces this, and warns of caches
        stride, summary = getattr(keys, "stride", 0), getattr(keys, "summary", 0)
        code += [_KINDS.index(type(keys)), stride, summary, getattr(keys, "sub_block", 0)]
    return code


@cache
def decode(code: tuple[int, ...]) -> tuple[KeySet, ...]:
    """Read a layer from integers: the inverse of ``encode``."""
    heads = [code[at : at + 4] for at in range(0, len(code), 4)]
    return tuple(
        _KINDS[kind](stride, summary, sub_block) if summary else _KINDS[kind](stride)  # type: ignore[call-arg]
        for kind, stride, summary, sub_block in heads
    )


def unpack(
    qkv: torch.Tensor, heads: int, qk_width: int, v_width: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """View a fused (B, N, H * Dqk + Hkv * (Dqk + Dv)) matrix as q (B, H, N, Dqk), k (B, Hkv, N, Dqk) and
    v (B, Hkv, N, Dv); no copy."""
    batch, n, width = qkv.shape
    long, row, col = qkv.stride()
    kv_heads = (width - heads * qk_width) // (qk_width + v_width)
    keys = qkv.storage_offset() + heads * qk_width * col
    values = keys + kv_heads * qk_width * col
    q = qkv.as_strided((batch, heads, n, qk_width), (long, qk_width * col, row, col), qkv.storage_offset())
    k = qkv.as_strided((batch, kv_heads, n, qk_width), (long, qk_width * col, row, col), keys)
    v = qkv.as_strided((batch, kv_heads, n, v_width), (long, v_width * col, row, col), values)
    return q, k, v


@torch.library.custom_op("sparse_transformer::attention", mutates_args=())
def _attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, layer: list[int], scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    out, lse = _results(q, v)
    passes.forward(q, k, v, out, lse, decode(tuple(layer)), scale)
    return out, lse


@_attention.register_fake
def _(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, layer: list[int], scale: float) -> Any:
    return _results(q, v)


@torch.library.custom_op("sparse_transformer::attention_backward", mutates_args=())
def _attention_backward(
    dout: torch.Tensor, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, out: torch.Tensor, lse: torch.Tensor,
    layer: list[int], scale: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:  # fmt: skip
    dq, dk, dv = _like_rows(q), _like_rows(k), _like_rows(v)
    passes.backward(q, k, v, out, lse, dout, dq, dk, dv, decode(tuple(layer)), scale)
    return dq, dk, dv


@_attention_backward.register_fake
def _(
    dout: torch.Tensor, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, out: torch.Tensor, lse: torch.Tensor,
    layer: list[int], scale: float,
) -> Any:  # fmt: skip
    return _like_rows(q), _like_rows(k), _like_rows(v)


@torch.library.custom_op("sparse_transformer::attention_packed", mutates_args=())
def _attention_packed(
    qkv: torch.Tensor, layer: list[int], qk_width: int, v_width: int, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    q, k, v = unpack(qkv, len(layer) // 4, qk_width, v_width)
    out, lse = _packed_results(qkv, layer, v_width)
    passes.forward(q, k, v, out.transpose(1, 2), lse, decode(tuple(layer)), scale)
    return out, lse


@_attention_packed.register_fake
def _(qkv: torch.Tensor, layer: list[int], qk_width: int, v_width: int, scale: float) -> Any:
    return _packed_results(qkv, layer, v_width)


@torch.library.custom_op("sparse_transformer::attention_packed_backward", mutates_args=())
def _attention_packed_backward(
    dout: torch.Tensor, qkv: torch.Tensor, out: torch.Tensor, lse: torch.Tensor, layer: list[int], qk_width: int,
    v_width: int, scale: float,
) -> torch.Tensor:  # fmt: skip
    dqkv = torch.empty_like(qkv, memory_format=torch.contiguous_format)
    heads = len(layer) // 4
    q, k, v = unpack(qkv, heads, qk_width, v_width)
    dq, dk, dv = unpack(dqkv, heads, qk_width, v_width)
    passes.backward(q, k, v, out.transpose(1, 2), lse, dout.transpose(1, 2), dq, dk, dv, decode(tuple(layer)), scale)
    return dqkv


@_attention_packed_backward.register_fake
def _(
    dout: torch.Tensor, qkv: torch.Tensor, out: torch.Tensor, lse: torch.Tensor, layer: list[int], qk_width: int,
    v_width: int, scale: float,
) -> Any:  # fmt: skip
    return torch.empty_like(qkv, memory_format=torch.contiguous_format)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, torch.Tensor]) -> None:
    tensors = [x for x in inputs if isinstance(x, torch.Tensor)]
    ctx.rest = inputs[len(tensors) :]
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(*tensors, *output)


def _gradients(ctx: Any, dout: torch.Tensor, _: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
    op = torch.ops.sparse_transformer.attention_backward
    return (*op(dout, *ctx.saved_tensors, *ctx.rest), None, None)


def _packed_gradients(ctx: Any, dout: torch.Tensor, _: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
    op = torch.ops.sparse_transformer.attention_packed_backward
    return (op(dout, *ctx.saved_tensors, *ctx.rest), None, None, None, None)


_attention.register_autograd(_gradients, setup_context=_save)
_attention_packed.register_autograd(_packed_gradients, setup_context=_save)


@register_flop_formula(torch.ops.sparse_transformer.attention)
def _forward_flops(q: Any, k: Any, v: Any, layer: list[int], *_: Any, **__: Any) -> int:
    return _flops(q[0], q[2], layer, q[3] + v[3])


@register_flop_formula(torch.ops.sparse_transformer.attention_backward)
def _backward_flops(dout: Any, q: Any, k: Any, v: Any, out: Any, lse: Any, layer: list[int], *_: Any, **__: Any) -> int:
    return _flops(q[0], q[2], layer, 3 * q[3] + 2 * v[3])


@register_flop_formula(torch.ops.sparse_transformer.attention_packed)
def _packed_forward_flops(qkv: Any, layer: list[int], qk_width: int, v_width: int, *_: Any, **__: Any) -> int:
    return _flops(qkv[0], qkv[1], layer, qk_width + v_width)


@register_flop_formula(torch.ops.sparse_transformer.attention_packed_backward)
def _packed_backward_flops(
    dout: Any, qkv: Any, out: Any, lse: Any, layer: list[int], qk_width: int, v_width: int, *_: Any, **__: Any
) -> int:
    return _flops(qkv[0], qkv[1], layer, 3 * qk_width + 2 * v_width)


def _flops(batch: int, n: int, layer: list[int], width: int) -> int:
    """Two operations a kept pair and column: the products over QK and V columns that the pass cannot do without."""
    return 2 * batch * width * sum(keys.pairs(n) for keys in decode(tuple(layer)))


def _results(q: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    batch, heads, n, _ = q.shape
    return v.new_empty(batch, n, heads, v.shape[-1]).transpose(1, 2), q.new_empty(q.shape[:3], dtype=torch.float32)


def _packed_results(qkv: torch.Tensor, layer: list[int], v_width: int) -> tuple[torch.Tensor, torch.Tensor]:
    batch, n, _ = qkv.shape
    heads = len(layer) // 4
    return qkv.new_empty(batch, n, heads, v_width), qkv.new_empty(batch, heads, n, dtype=torch.float32)


def _like_rows(x: torch.Tensor) -> torch.Tensor:
    """An empty (B, H, N, D) tensor laid out as (B, N, H, D)."""
    batch, heads, n, width = x.shape
    return x.new_empty(batch, n, heads, width).transpose(1, 2)


def _scale(width: int, scale: float | None) -> float:
    if scale is None:
        return float(width) ** -0.5
    if scale <= 0:
        raise ValueError(f"scale must be above 0, found {scale}")
    return float(scale)


def _autocast(x: torch.Tensor) -> torch.Tensor:
    kind = x.device.type
    return x.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else x


def _check(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, layer: tuple[KeySet, ...]) -> None:
    alike = q.dim() == k.dim() == v.dim() == 4 and k.shape[:3] == v.shape[:3]
    if not alike or (len(q), *q.shape[2:]) != (len(k), *k.shape[2:]) or k.shape[1] == 0 or q.shape[1] % k.shape[1]:
        shapes = ", ".join(str(tuple(x.shape)) for x in (q, k, v))
        raise ValueError(
            f"q, k and v must be (batch, heads, n, width), the heads of k and v alike and a divisor of those of q, "
            f"found {shapes}"
        )
    if q.shape[1] != len(layer):
        raise ValueError(f"the layer has {len(layer)} heads, q has {q.shape[1]}")
    if not q.dtype == k.dtype == v.dtype:
        raise ValueError(f"q, k and v must have one dtype, found {q.dtype}, {k.dtype}, {v.dtype}")
    _check_kind(q.dtype, max(q.shape[3], v.shape[3]), layer)


def _check_kind(dtype: torch.dtype, width: int, layer: tuple[KeySet, ...]) -> None:
    passes.check_type(dtype, width)
    for keys in layer:
        if type(keys) not in _KINDS:
            raise ValueError(f"the Triton kernels do not compute {keys.name} attention; dense attention is PyTorch's")
