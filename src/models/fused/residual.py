# mypy: disable-error-code="no-untyped-def"
"""Residual addition, dropout and layer norm as one kernel each way: every number goes through memory once.

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

EPS = 1e-5  # of torch.nn.LayerNorm
ELEMENTS = 4096  # numbers of a tile
BACKWARD_ELEMENTS, WARPS, STAGES = 2048, 2, 3  # of the backward kernel: its loop keeps loads in flight


class Drop(NamedTuple):
    """Dropout at the end of a branch: a seed (1,) int64 on the device, which branch it is (0 or 1), its probability."""

    seed: Tensor
    branch: int
    p: float


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
                     ADD: tl.constexpr, NORM: tl.constexpr, DROP: tl.constexpr, R: tl.constexpr,
                     W: tl.constexpr):  # fmt: skip
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
        normal, _ = _normalized(x, inside, width, eps)
        w = tl.load(weight + col, mask=col < width, other=0.0).to(tl.float32)
        b = tl.load(bias + col, mask=col < width, other=0.0).to(tl.float32)
        y = normal * w[None, :] + b[None, :]
        tl.store(normed + at, y.to(normed.dtype.element_ty), mask=inside)


@triton.jit
def _normalized(x, inside, width, eps):
    """Rows of mean 0 and variance 1, and one over their deviation."""
    mean = tl.sum(x, 1) / width
    centred = tl.where(inside, x - mean[:, None], 0.0)
    rstd = 1.0 / tl.sqrt(tl.sum(centred * centred, 1) / width + eps)
    return centred * rstd[:, None], rstd


@triton.jit(do_not_specialize=["rows", "keep", "per"])
def add_norm_backward(d_total, d_normed, total, weight, d_hidden, d_branch, sums, seed, branch_seed, rows, width, keep,
                      eps, per, sums_stride, ADD: tl.constexpr, NORM: tl.constexpr, DROP: tl.constexpr,
                      R: tl.constexpr, W: tl.constexpr, STAGES: tl.constexpr):  # fmt: skip
    """Gradients of ``add_norm_forward``: of hidden, of the branch, and a program's share of sums over rows: those
    of the norm's weight and bias, and of the branch, which is the bias of the product that made it."""
    program = tl.program_id(0)
    col = tl.arange(0, W)
    d_weight = tl.zeros((R, W), tl.float32)
    d_bias = tl.zeros((R, W), tl.float32)
    d_sum = tl.zeros((R, W), tl.float32)
    w = tl.zeros((W,), tl.float32)
    if NORM:
        w += tl.load(weight + col, mask=col < width, other=0.0).to(tl.float32)
    for step in tl.range(per, num_stages=STAGES):
        row = (program * per + step) * R + tl.arange(0, R)
        inside = (row < rows)[:, None] & (col < width)[None, :]
        at = row.to(tl.int64)[:, None] * width + col[None, :]
        d = tl.load(d_total + at, mask=inside, other=0.0).to(tl.float32)
        if NORM:
            x = tl.load(total + at, mask=inside, other=0.0).to(tl.float32)
            dy = tl.load(d_normed + at, mask=inside, other=0.0).to(tl.float32)
            normal, rstd = _normalized(x, inside, width, eps)
            d_weight += dy * normal
            d_bias += dy
            g = dy * w[None, :]
            d += (g - tl.sum(g, 1)[:, None] / width - normal * (tl.sum(g * normal, 1)[:, None] / width)) * rstd[:, None]
            d = tl.where(inside, d, 0.0)
            stored = d.to(d_hidden.dtype.element_ty)
            tl.store(d_hidden + at, stored, mask=inside)
            d = stored.to(tl.float32)
        if ADD:
            if DROP:
                d = _dropped(d, tl.load(seed) + branch_seed, row, keep, R, W)
                tl.store(d_branch + at, d.to(d_branch.dtype.element_ty), mask=inside)
            d_sum += d
    place = sums + program * sums_stride + col
    if NORM:
        tl.store(place, tl.sum(d_weight, 0), mask=col < width)
        tl.store(place + width, tl.sum(d_bias, 0), mask=col < width)
        place += 2 * width
    if ADD:
        tl.store(place, tl.sum(d_sum, 0), mask=col < width)


def norm(hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Layer norm of each row of ``hidden`` (R, width), in its dtype; weight and bias are (width,)."""
    return _forward(hidden, None, weight, bias, None)[1]


def add(hidden: Tensor, branch: Tensor, drop: Drop | None) -> Tensor:
    """hidden + dropout(branch), both (R, width)."""
    return _forward(hidden, branch, None, None, drop)[0]


def add_norm(hidden: Tensor, branch: Tensor, weight: Tensor, bias: Tensor, drop: Drop | None) -> tuple[Tensor, Tensor]:
    """The sum hidden + dropout(branch) and its layer norm, both (R, width)."""
    return _forward(hidden, branch, weight, bias, drop)


def backward(
    d_total: Tensor,
    sums: RowSums,
    drop: Drop | None = None,
    *,
    normed: tuple[Tensor, Tensor, Tensor] | None = None,
    branch: bool = False,
) -> tuple[Tensor, Tensor]:
    """Backward of ``norm`` (give ``normed``), of ``add`` (``branch``) or of ``add_norm`` (both).

    Args:
        d_total: (R, width) gradient that reaches hidden, or the sum, past the norm.
        sums: takes, in this order, the gradients of the norm's weight and bias (if ``normed``) and the sum over rows
            of the branch's gradient (if ``branch``).
        drop: of the branch.
        normed: gradient of the norm's result (R, width), what was normalized (R, width), the norm's weight (width,).
        branch: whether there is one.

    Returns:
        The gradients of hidden and of the branch, (R, width).
    """
    d_normed, total, weight = normed or (None, None, None)
    rows, width = d_total.shape
    d_hidden = d_total if normed is None else torch.empty_like(d_total)
    d_branch = torch.empty_like(d_total) if branch and drop is not None else d_hidden
    R, W = _tile(width, BACKWARD_ELEMENTS)
    share = sums.take(width * (2 * (normed is not None) + branch))
    add_norm_backward[(sums.shares,)](
        d_total, d_normed, total, weight, d_hidden, d_branch, share, *_arguments(drop, rows, width),
        sums.tiles(R), share.stride(0), ADD=branch, NORM=normed is not None, DROP=drop is not None, R=R, W=W,
        STAGES=STAGES, num_warps=WARPS,
    )  # fmt: skip
    return d_hidden, d_branch


def _forward(
    hidden: Tensor, branch: Tensor | None, weight: Tensor | None, bias: Tensor | None, drop: Drop | None
) -> tuple[Tensor, Tensor]:
    rows, width = hidden.shape
    total = hidden if branch is None else torch.empty_like(hidden)
    normed = total if weight is None else torch.empty_like(hidden)
    R, W = _tile(width)
    add_norm_forward[(triton.cdiv(rows, R),)](
        hidden, branch, weight, bias, total, normed, *_arguments(drop, rows, width),
        ADD=branch is not None, NORM=weight is not None, DROP=drop is not None, R=R, W=W, num_warps=4,
    )  # fmt: skip
    return total, normed


def _arguments(drop: Drop | None, rows: int, width: int) -> tuple[Any, ...]:
    seed, branch, keep = (None, 0, 1.0) if drop is None else (drop.seed, drop.branch, 1.0 - drop.p)
    return seed, branch, rows, width, keep, EPS


def _tile(width: int, elements: int = ELEMENTS) -> tuple[int, int]:
    padded = max(16, triton.next_power_of_2(width))
    return max(1, elements // padded), padded
