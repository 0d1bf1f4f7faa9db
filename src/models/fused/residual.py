# mypy: disable-error-code="no-untyped-def"
"""Residual addition, dropout and norm as one kernel each way: every number goes through memory once.

A row is one position of one sequence; rows are (R, width), contiguous. Sums and statistics are float32 whatever the
type of the rows. Dropout draws its mask from Philox by (seed, place), so the backward pass draws it again instead of
reading it, and a recomputed block drops what it dropped before. The seed lies on the device: a CUDA graph that is
replayed with another seed draws another mask.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from src.models.fused.row_sums import RowSums
from src.models.options import EPS

ELEMENTS = 4096  # numbers of a tile
BACKWARD_ELEMENTS, WARPS, STAGES = 2048, 2, 3  # of the backward kernel: its loop keeps loads in flight


class Drop(NamedTuple):
    """Dropout at the end of a branch: a seed (1,) int64 on the device, which branch it is (0 or 1), its probability."""

    seed: Tensor
    branch: int
    p: float


class Norm(NamedTuple):
    """Layer norm with its weight and bias (width,), each of which may be absent, or RMS norm without weights."""

    weight: Tensor | None
    bias: Tensor | None
    rms: bool = False


@triton.jit
def _dropped(x, seed, row, keep, R: tl.constexpr, W: tl.constexpr):
    """Drop entries of rows ``row`` and divide the others by ``keep``; one Philox draw serves eight of them."""
    place = row[:, None] * (W // 8) + tl.arange(0, W // 8)[None, :]
    a, b, c, d = tl.randint4x(seed, place)
    words = tl.join(tl.join(a, b), tl.join(c, d)).to(tl.uint32, bitcast=True)
    halves = tl.join(words & 0xFFFF, words >> 16)
    bits = tl.reshape(halves, (R, W)).to(tl.float32)
    return tl.where(bits < keep * 65536.0, x / keep, 0.0)


@triton.jit(do_not_specialize=["rows", "keep"])
def add_norm_forward(hidden, branch, weight, bias, total, normed, seed, branch_seed, rows, width, keep, eps,
                     ADD: tl.constexpr, NORM: tl.constexpr, RMS: tl.constexpr, DROP: tl.constexpr,
                     R: tl.constexpr, W: tl.constexpr):  # fmt: skip
    """total = hidden + dropout(branch) if ADD; normed = norm(total) if NORM."""
    row = tl.program_id(0) * R + tl.arange(0, R)
    col = tl.arange(0, W)
    inside = (row < rows)[:, None] & (col < width)[None, :]
    at = row.to(tl.int64)[:, None] * width + col[None, :]
    x = tl.load(hidden + at, mask=inside, other=0.0).to(tl.float32)
    if ADD:
        b = tl.load(branch + at, mask=inside, other=0.0).to(tl.float32)
        if DROP:
            b = _dropped(b, tl.load(seed) + branch_seed, row, keep, R, W)
        kept = (x + b).to(total.dtype.element_ty)
        tl.store(total + at, kept, mask=inside)
        x = kept.to(tl.float32)  # the norm is of what is stored
    if NORM:
        y, _ = _normalized(x, inside, width, eps, RMS)
        if weight is not None:
            y = y * tl.load(weight + col, mask=col < width, other=0.0).to(tl.float32)[None, :]
        if bias is not None:
            y = y + tl.load(bias + col, mask=col < width, other=0.0).to(tl.float32)[None, :]
        tl.store(normed + at, y.to(normed.dtype.element_ty), mask=inside)


@triton.jit
def _normalized(x, inside, width, eps, RMS: tl.constexpr):
    """Rows of mean 0 (unless RMS) and mean square 1, and what they were multiplied by."""
    if not RMS:
        x = tl.where(inside, x - (tl.sum(x, 1) / width)[:, None], 0.0)
    square = tl.sum(x * x, 1) / width + eps
    rstd = tl.rsqrt(square) if RMS else 1.0 / tl.sqrt(square)  # the division would spill registers before sm_90
    return x * rstd[:, None], rstd


@triton.jit(do_not_specialize=["rows", "keep", "per"])
def add_norm_backward(d_total, d_normed, total, weight, d_hidden, d_branch, sums, seed, branch_seed, rows, width, keep,
                      eps, per, sums_stride, NORM: tl.constexpr, RMS: tl.constexpr, DROP: tl.constexpr,
                      BIAS: tl.constexpr, SUM: tl.constexpr, R: tl.constexpr, W: tl.constexpr,
                      STAGES: tl.constexpr):  # fmt: skip
    """Gradients of ``add_norm_forward``: of hidden, of the branch, and a program's share of sums over rows: those
    of the norm's weight and bias (BIAS), and of the branch (SUM), which is the bias of the product that made it."""
    program = tl.program_id(0)
    col = tl.arange(0, W)
    d_weight = tl.zeros((R, W), tl.float32)
    d_bias = tl.zeros((R, W), tl.float32)
    d_sum = tl.zeros((R, W), tl.float32)
    w = tl.full((W,), 1.0, tl.float32)
    if weight is not None:
        w = tl.load(weight + col, mask=col < width, other=0.0).to(tl.float32)
    for step in tl.range(per, num_stages=STAGES):
        row = (program * per + step) * R + tl.arange(0, R)
        inside = (row < rows)[:, None] & (col < width)[None, :]
        at = row.to(tl.int64)[:, None] * width + col[None, :]
        d = tl.load(d_total + at, mask=inside, other=0.0).to(tl.float32)
        if NORM:
            x = tl.load(total + at, mask=inside, other=0.0).to(tl.float32)
            dy = tl.load(d_normed + at, mask=inside, other=0.0).to(tl.float32)
            normal, rstd = _normalized(x, inside, width, eps, RMS)
            if weight is not None:
                d_weight += dy * normal
            if BIAS:
                d_bias += dy
            g = dy * w[None, :]
            if RMS:
                d += (g - normal * (tl.sum(g * normal, 1)[:, None] / width)) * rstd[:, None]
            else:  # in one expression: in two it spills registers on sm_80
                mean = tl.sum(g, 1)[:, None] / width
                d += (g - mean - normal * (tl.sum(g * normal, 1)[:, None] / width)) * rstd[:, None]
            d = tl.where(inside, d, 0.0)
            stored = d.to(d_hidden.dtype.element_ty)
            tl.store(d_hidden + at, stored, mask=inside)
            d = stored.to(tl.float32)
        if DROP:
            d = _dropped(d, tl.load(seed) + branch_seed, row, keep, R, W)
            tl.store(d_branch + at, d.to(d_branch.dtype.element_ty), mask=inside)
        if SUM:
            d_sum += d
    place = sums + program * sums_stride + col
    if weight is not None:
        tl.store(place, tl.sum(d_weight, 0), mask=col < width)
        place += width
    if BIAS:
        tl.store(place, tl.sum(d_bias, 0), mask=col < width)
        place += width
    if SUM:
        tl.store(place, tl.sum(d_sum, 0), mask=col < width)


def norm(hidden: Tensor, norm: Norm) -> Tensor:
    """Norm of each row of ``hidden`` (R, width), in its dtype."""
    return _forward(hidden, None, norm, None)[1]


def add(hidden: Tensor, branch: Tensor, drop: Drop | None) -> Tensor:
    """hidden + dropout(branch), both (R, width)."""
    return _forward(hidden, branch, None, drop)[0]


def add_norm(hidden: Tensor, branch: Tensor, norm: Norm, drop: Drop | None) -> tuple[Tensor, Tensor]:
    """The sum hidden + dropout(branch) and its norm, both (R, width)."""
    return _forward(hidden, branch, norm, drop)


class Normed(NamedTuple):
    """A norm on the way back: the gradient of its result and what was normalized, both (R, width), the norm, and the
    names of the gradients of its weight and bias among the sums over rows."""

    d_normed: Tensor
    total: Tensor
    norm: Norm
    names: tuple[str, str]


def backward(
    d_total: Tensor, sums: RowSums, drop: Drop | None = None, *, normed: Normed | None = None, bias: str | None = None
) -> tuple[Tensor, Tensor]:
    """Backward of ``norm`` (give ``normed``), of ``add`` or of ``add_norm`` (``normed``).

    Args:
        d_total: (R, width) gradient that reaches hidden, or the sum, past the norm.
        sums: takes the gradients of the norm's weight and bias where it has them, and the sum over rows of the branch's
            gradient where ``bias`` names it.
        drop: of the branch.
        normed: the norm.
        bias: name of the bias of the product that made the branch, if it has one.

    Returns:
        The gradients of hidden and of the branch, (R, width).
    """
    if normed is None and drop is None and bias is None:
        return d_total, d_total
    d_normed, total, norm, names = normed or (None, None, Norm(None, None), ("", ""))
    rows, width = d_total.shape
    d_hidden = d_total if normed is None else torch.empty_like(d_total)
    d_branch = torch.empty_like(d_total) if drop is not None else d_hidden
    R, W = _tile(width, BACKWARD_ELEMENTS)
    wanted = {name: width for name, given in zip(names, norm[:2], strict=True) if given is not None}
    share = sums.take(wanted | ({} if bias is None else {bias: width}))
    add_norm_backward[(sums.shares,)](
        d_total, d_normed, total, norm.weight, d_hidden, d_branch, share, *_arguments(drop, rows, width),
        sums.tiles(R), share.stride(0), NORM=normed is not None, RMS=norm.rms, DROP=drop is not None,
        BIAS=norm.bias is not None, SUM=bias is not None, R=R, W=W, STAGES=STAGES, num_warps=WARPS,
    )  # fmt: skip
    return d_hidden, d_branch


def _forward(hidden: Tensor, branch: Tensor | None, norm: Norm | None, drop: Drop | None) -> tuple[Tensor, Tensor]:
    rows, width = hidden.shape
    total = hidden if branch is None else torch.empty_like(hidden)
    normed = total if norm is None else torch.empty_like(hidden)
    weight, bias, rms = norm or Norm(None, None)
    R, W = _tile(width)
    add_norm_forward[(triton.cdiv(rows, R),)](
        hidden, branch, weight, bias, total, normed, *_arguments(drop, rows, width),
        ADD=branch is not None, NORM=norm is not None, RMS=rms, DROP=drop is not None, R=R, W=W, num_warps=4,
    )  # fmt: skip
    return total, normed


def _arguments(drop: Drop | None, rows: int, width: int) -> tuple[Any, ...]:
    seed, branch, keep = (None, 0, 1.0) if drop is None else (drop.seed, drop.branch, 1.0 - drop.p)
    return seed, branch, rows, width, keep, EPS


def _tile(width: int, elements: int = ELEMENTS) -> tuple[int, int]:
    padded = max(16, triton.next_power_of_2(width))
    return max(1, elements // padded), padded
