# mypy: disable-error-code="no-untyped-def"
"""Norm and rotary positions of queries and keys, in place in the fused projection: read once, written once, each way.

What the backward pass needs of the forward pass is its result, which attention keeps anyway, and one number a head and
position: one over the root mean square.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from src.models.options import EPS

ROWS, HEADS, WARPS = 32, 4, 4  # positions and, at most, heads a program


@triton.jit
def _place(rows, width, head, D: tl.constexpr, R: tl.constexpr, HALF: tl.constexpr):
    """First half of one head in a program's rows: offsets, and which are there."""
    row = tl.program_id(0) * R + tl.arange(0, R)
    col = tl.arange(0, HALF)
    inside = (row < rows)[:, None] & (col < D // 2)[None, :]
    return row.to(tl.int64)[:, None] * width + head * D + col[None, :], inside


@triton.jit
def _angles(table, rows, n, context, D: tl.constexpr, R: tl.constexpr, HALF: tl.constexpr):
    """Cosines and sines of a program's rows."""
    row = tl.program_id(0) * R + tl.arange(0, R)
    col = tl.arange(0, HALF)
    inside = (row < rows)[:, None] & (col < D // 2)[None, :]
    at = (row % n).to(tl.int64)[:, None] * (D // 2) + col[None, :]
    cosine = tl.load(table + at, mask=inside, other=1.0)
    return cosine, tl.load(table + context.to(tl.int64) * (D // 2) + at, mask=inside, other=0.0)


@triton.jit(do_not_specialize=["rows", "n", "context"])
def turn_forward(x, table, rstd, rows, n, context, heads, width, gain, eps, NORM: tl.constexpr, ROTARY: tl.constexpr,
                 D: tl.constexpr, H: tl.constexpr, R: tl.constexpr, HALF: tl.constexpr):  # fmt: skip
    """x = rotate(gain * x / rms(x)) for ``heads`` heads at the beginning of each row; rstd = 1 / rms(x)."""
    if ROTARY:
        cosine, sine = _angles(table, rows, n, context, D, R, HALF)
    for step in tl.static_range(H):
        head = tl.program_id(1) * H + step
        at, inside = _place(rows, width, head, D, R, HALF)
        a = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
        b = tl.load(x + at + D // 2, mask=inside, other=0.0).to(tl.float32)
        if NORM:
            scale = 1.0 / tl.sqrt((tl.sum(a * a, 1) + tl.sum(b * b, 1)) / D + eps)
            row = tl.program_id(0) * R + tl.arange(0, R)
            tl.store(rstd + row.to(tl.int64) * heads + head, scale, mask=row < rows)
            scale *= gain
            a, b = a * scale[:, None], b * scale[:, None]
        if ROTARY:
            a, b = a * cosine - b * sine, b * cosine + a * sine
        tl.store(x + at, a.to(x.dtype.element_ty), mask=inside)
        tl.store(x + at + D // 2, b.to(x.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["rows", "n", "context"])
def turn_backward(d_y, y, table, rstd, rows, n, context, heads, width, gain, NORM: tl.constexpr, ROTARY: tl.constexpr,
                  D: tl.constexpr, H: tl.constexpr, R: tl.constexpr, HALF: tl.constexpr):  # fmt: skip
    """The gradient of x in place of that of y, from y and rstd."""
    if ROTARY:
        cosine, sine = _angles(table, rows, n, context, D, R, HALF)
    for step in tl.static_range(H):
        head = tl.program_id(1) * H + step
        at, inside = _place(rows, width, head, D, R, HALF)
        da = tl.load(d_y + at, mask=inside, other=0.0).to(tl.float32)
        db = tl.load(d_y + at + D // 2, mask=inside, other=0.0).to(tl.float32)
        if ROTARY:
            da, db = da * cosine + db * sine, db * cosine - da * sine
        if NORM:
            a = tl.load(y + at, mask=inside, other=0.0).to(tl.float32)
            b = tl.load(y + at + D // 2, mask=inside, other=0.0).to(tl.float32)
            if ROTARY:
                a, b = a * cosine + b * sine, b * cosine - a * sine
            row = tl.program_id(0) * R + tl.arange(0, R)
            scale = tl.load(rstd + row.to(tl.int64) * heads + head, mask=row < rows, other=0.0)
            along = (tl.sum(a * da, 1) + tl.sum(b * db, 1)) / (D * gain * gain)
            scale *= gain
            da = (da - a * along[:, None]) * scale[:, None]
            db = (db - b * along[:, None]) * scale[:, None]
        tl.store(d_y + at, da.to(d_y.dtype.element_ty), mask=inside)
        tl.store(d_y + at + D // 2, db.to(d_y.dtype.element_ty), mask=inside)


class Turned:
    """Queries and keys of one fused projection, turned in place; ``backward`` turns their gradient back.

    Args:
        qkv: (B, N, widths), contiguous: all heads' queries, all heads' keys, values; queries and keys are overwritten.
        heads: of queries and keys together.
        width: of one head.
        table: from ``src.models.rotary.Rotary``, float32 (2, at least N, width / 2) with rows side by side, or None.
        norm: root mean square that each head is given first; None: it stays as it is.
    """

    def __init__(self, qkv: Tensor, heads: int, width: int, table: Tensor | None, norm: float | None) -> None:
        self.y = qkv
        rows = qkv.shape[0] * qkv.shape[1]
        self.rstd = qkv.new_empty(rows, heads, dtype=torch.float32) if norm is not None else None
        context, table = (1, None) if table is None else (table.stride(0) // (width // 2), table)
        self.sizes = (rows, qkv.shape[1], context, heads, qkv.shape[2])
        self.table, self.gain = table, 1.0 if norm is None else norm
        self.constants: dict[str, Any] = {
            "NORM": norm is not None,
            "ROTARY": table is not None,
            "D": width,
            "H": math.gcd(heads, HEADS),
            "R": ROWS,
        }
        self.constants |= {"HALF": max(16, triton.next_power_of_2(width // 2)), "num_warps": WARPS}
        self.grid = (triton.cdiv(rows, ROWS), heads // math.gcd(heads, HEADS))
        turn_forward[self.grid](qkv, table, self.rstd, *self.sizes, self.gain, EPS, **self.constants)

    def backward(self, d_qkv: Tensor) -> Tensor:
        """Give the gradient before turning, in the memory of ``d_qkv`` (B, N, widths), contiguous."""
        turn_backward[self.grid](d_qkv, self.y, self.table, self.rstd, *self.sizes, self.gain, **self.constants)
        return d_qkv
