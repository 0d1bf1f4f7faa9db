"""Attention inside a hand-written backward pass: the result of one layer, and its gradient when that is asked for."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from src.attention import KeySet
from src.attention.backends import Backend, attend, resolve_backend
from src.attention.key_sets import PAPER
from src.models.fused.turned import Turned


class Attended(Protocol):
    """What one layer of attention made of a fused projection."""

    out: Tensor
    """(B, N, H * Dv), contiguous."""

    def backward(self, d_out: Tensor) -> Tensor:
        """Gradient of the fused projection from that of ``out``, both (B, N, ...). Can be called once."""


def attend_packed(
    qkv: Tensor,
    layer: tuple[KeySet, ...],
    widths: tuple[int, int, int],
    backend: Backend,
    table: Tensor | None = None,
    qk_norm: float | None = None,
    first: Tensor | None = None,
) -> Attended:
    """Attend straight from one fused projection.

    Args:
        qkv: (B, N, sum(widths)), contiguous: all heads' queries, all heads' keys, all heads' values; overwritten where
            queries and keys are turned or normalised.
        layer: the key set of each head.
        widths: of queries, keys and values of all heads together. Keys and values may have fewer heads, which
            neighbouring heads of queries share.
        backend: see ``src.attention.backends``.
        table: rotary positions, see ``src.models.rotary``, or None.
        qk_norm: root mean square that each head's queries and keys are given, or None.
        first: int32 (B, N), the first position that each one may see; None: any. The paper's sets are then computed as
            others are.
    """
    turned = None
    if table is not None or qk_norm is not None:
        turned = Turned(qkv, len(layer) + _key_heads(layer, widths), widths[0] // len(layer), table, qk_norm)
    papers = first is None and all(isinstance(keys, PAPER) for keys in layer)
    if papers and resolve_backend(backend, layer, qkv.device) == "triton":
        attended: Attended = _Kernels(qkv, layer, widths)
    else:
        attended = _Recorded(qkv, layer, widths, backend, first)
    return attended if turned is None else _OfTurned(turned, attended)


class _OfTurned:
    """Attention of queries and keys that were turned or normalised before."""

    def __init__(self, turned: Turned, attended: Attended) -> None:
        self.turned, self.attended = turned, attended
        self.out = attended.out

    def backward(self, d_out: Tensor) -> Tensor:
        return self.turned.backward(self.attended.backward(d_out).contiguous())


class _Kernels:
    """By the Triton kernels' packed operators: no view, copy or concatenation on the way."""

    def __init__(self, qkv: Tensor, layer: tuple[KeySet, ...], widths: tuple[int, int, int]) -> None:
        from src.attention.triton.operator import encode

        qk, v = widths[0] // len(layer), widths[2] // _key_heads(layer, widths)
        self.settings = (encode(layer), qk, v, float(qk) ** -0.5)
        self.qkv = qkv
        self.heads_out, self.lse = torch.ops.sparse_transformer.attention_packed(qkv, *self.settings)
        self.out = self.heads_out.flatten(2)

    def backward(self, d_out: Tensor) -> Tensor:
        d_heads = d_out.view(self.heads_out.shape)
        saved = (self.qkv, self.heads_out, self.lse)
        gradient: Tensor = torch.ops.sparse_transformer.attention_packed_backward(d_heads, *saved, *self.settings)
        return gradient


class _Recorded:
    """By any backend, as autograd records it: dense attention by PyTorch's own kernels above all."""

    def __init__(
        self, qkv: Tensor, layer: tuple[KeySet, ...], widths: tuple[int, int, int], backend: Backend,
        first: Tensor | None,
    ) -> None:  # fmt: skip
        heads = (len(layer), _key_heads(layer, widths), _key_heads(layer, widths))
        with torch.enable_grad():
            self.qkv = qkv.detach().requires_grad_()
            parts = zip(self.qkv.split(widths, dim=-1), heads, strict=True)
            q, k, v = (part.view(*qkv.shape[:2], count, -1).transpose(1, 2) for part, count in parts)
            self.recorded = attend(q, k, v, layer, backend, first=first).transpose(1, 2).flatten(2)
        self.out = self.recorded.detach()

    def backward(self, d_out: Tensor) -> Tensor:
        (gradient,) = torch.autograd.grad(self.recorded, self.qkv, d_out)
        return gradient


def _key_heads(layer: tuple[KeySet, ...], widths: tuple[int, int, int]) -> int:
    """Heads of keys and values: keys are as wide as queries."""
    return widths[1] * len(layer) // widths[0]
