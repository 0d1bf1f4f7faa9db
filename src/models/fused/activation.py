# mypy: disable-error-code="no-untyped-def"
"""The feed-forward's activation f, and its backward pass with the bias gradient inside.

f(x) = x * sigmoid(1.702 x), the paper's (section 5.2), or with RELU2 max(x, 0)^2.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from src.models.fused.row_sums import RowSums
from src.models.options import Activation

SLOPE = tl.constexpr(1.702)
BLOCK = 4096  # numbers a program of the forward kernel
ROWS, COLUMNS, WARPS, STAGES = 8, 512, 4, 3  # a tile of the others


@triton.jit
def act_forward(x, out, numbers, RELU2: tl.constexpr, BLOCK: tl.constexpr):
    """out = f(x), number by number."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < numbers
    value = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    if RELU2:
        value = tl.maximum(value, 0.0)
        value = value * value
    else:
        value = value * tl.sigmoid(value * SLOPE)
    tl.store(out + at, value.to(out.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["rows", "per"])
def act_backward(d_out, x, d_x, out, sums, rows, width, per, sums_stride, RELU2: tl.constexpr, SUM: tl.constexpr,
                 R: tl.constexpr, C: tl.constexpr, STAGES: tl.constexpr):  # fmt: skip
    """d_x = d_out * f'(x), out = f(x) once more, and if SUM a program's share of the column sums of d_x."""
    col = tl.program_id(0) * C + tl.arange(0, C)
    total = tl.zeros((R, C), tl.float32)
    for step in tl.range(per, num_stages=STAGES):
        row = (tl.program_id(1) * per + step) * R + tl.arange(0, R)
        inside = (row < rows)[:, None] & (col < width)[None, :]
        at = row.to(tl.int64)[:, None] * width + col[None, :]
        value = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
        d = tl.load(d_out + at, mask=inside, other=0.0).to(tl.float32)
        if RELU2:
            value = tl.maximum(value, 0.0)
            tl.store(out + at, (value * value).to(out.dtype.element_ty), mask=inside)
            d = d * 2.0 * value
        else:
            gate = tl.sigmoid(value * SLOPE)
            tl.store(out + at, (value * gate).to(out.dtype.element_ty), mask=inside)
            d = d * gate * (1.0 + value * SLOPE * (1.0 - gate))
        tl.store(d_x + at, d.to(d_x.dtype.element_ty), mask=inside)
        if SUM:
            total += d
    if SUM:
        tl.store(sums + tl.program_id(1) * sums_stride + col, tl.sum(total, 0), mask=col < width)


@triton.jit(do_not_specialize=["rows", "per"])
def column_sums(x, sums, rows, width, per, sums_stride, R: tl.constexpr, C: tl.constexpr, STAGES: tl.constexpr):
    """A program's share of the column sums of x."""
    col = tl.program_id(0) * C + tl.arange(0, C)
    total = tl.zeros((R, C), tl.float32)
    for step in tl.range(per, num_stages=STAGES):
        row = (tl.program_id(1) * per + step) * R + tl.arange(0, R)
        inside = (row < rows)[:, None] & (col < width)[None, :]
        at = row.to(tl.int64)[:, None] * width + col[None, :]
        total += tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(sums + tl.program_id(1) * sums_stride + col, tl.sum(total, 0), mask=col < width)


def activate(x: Tensor, kind: Activation = "gelu") -> Tensor:
    """f(x) for a contiguous ``x`` of any shape, in its dtype."""
    out = torch.empty_like(x)
    grid = (triton.cdiv(x.numel(), BLOCK),)
    act_forward[grid](x, out, x.numel(), RELU2=kind == "relu2", BLOCK=BLOCK, num_warps=4)
    return out


def activate_backward(
    d_out: Tensor, x: Tensor, sums: RowSums, bias: str | None, kind: Activation = "gelu"
) -> tuple[Tensor, Tensor]:
    """Backward of ``activate``.

    Args:
        d_out: (R, width) gradient of f(x); overwritten.
        x: (R, width).
        sums: takes the sum over rows of the gradient of x by the name ``bias``, unless that is None.
        bias: name of that sum.
        kind: of f.

    Returns:
        The gradient of x, in the memory of ``d_out``, and f(x).
    """
    out = torch.empty_like(x)
    share = sums.take({} if bias is None else {bias: x.shape[1]})
    act_backward[(triton.cdiv(x.shape[1], COLUMNS), sums.shares)](
        d_out, x, d_out, out, share, *x.shape, sums.tiles(ROWS), share.stride(0), RELU2=kind == "relu2",
        SUM=bias is not None, R=ROWS, C=COLUMNS, STAGES=STAGES, num_warps=WARPS,
    )  # fmt: skip
    return d_out, out


def sum_rows(x: Tensor, sums: RowSums, name: str) -> None:
    """Have ``sums`` take the sum of (R, width) over rows by a name: the gradient of a bias."""
    share = sums.take({name: x.shape[1]})
    column_sums[(triton.cdiv(x.shape[1], COLUMNS), sums.shares)](
        x, share, *x.shape, sums.tiles(ROWS), share.stride(0), R=ROWS, C=COLUMNS, STAGES=STAGES, num_warps=WARPS
    )
