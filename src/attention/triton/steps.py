# mypy: disable-error-code="no-untyped-def"
"""The tile step of every kernel, written once: scores, online softmax, and the products of the backward pass.

A kernel works on tiles: a few queries by a few keys. Which rows of the sequence make a tile, and which pairs of it
are kept, is the business of ``block``, ``window`` and ``column``; what happens to a tile is here.

Scores are in base 2: ``scale`` is the softmax scale times log2(e), and the log-sum-exp written to memory is a log2.
A pair that is not kept has score minus infinity. A row that keeps nothing has log-sum-exp plus infinity, so its
probabilities in the backward pass come out as 0 and never as NaN.

Legend of the names: q, k, v, o queries, keys, values, output; d before a name its gradient; i and j positions of
queries and keys; BM and BN how many queries and keys make a tile; QK and V the widths of a head.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

# The running maximum starts here, below every real score but above a masked one: exp2(-inf - LOWEST) is 0, not NaN.
LOWEST = tl.constexpr(-1e30)
LN2 = tl.constexpr(0.6931471805599453)
# fp32 inputs go through the tensor cores in three passes, which keeps fp32's accuracy; 16-bit inputs ignore this.
FP32_PRODUCTS = tl.constexpr("tf32x3")


class View(NamedTuple):
    """A (batch, heads, n, width) tensor, or (batch, heads, n) with ``col`` 0: its pointer and strides in elements."""

    ptr: Any
    batch: int
    head: int
    row: int
    col: int


@triton.constexpr_function
def padded(width):
    """Width of a tile in registers: a power of two of at least 16, as the tensor cores want it."""
    return max(16, triton.next_power_of_2(width))


@triton.jit
def head_of(x, batch, head):
    """The view of one head of one sequence: the same strides, the pointer moved."""
    return View(x.ptr + batch.to(tl.int64) * x.batch + head.to(tl.int64) * x.head, x.batch, x.head, x.row, x.col)


@triton.jit
def shared_of(x, batch, head, RATIO: tl.constexpr, SHIFT: tl.constexpr):
    """The view of the keys or values that a head of queries sees: RATIO neighbouring heads share one; the first of
    ``x`` already serves SHIFT heads that are not of this launch."""
    if RATIO > 1:
        head = (head + SHIFT) // RATIO
    return head_of(x, batch, head)


@triton.jit
def _row(x, origin):
    """Pointer to a row; 64-bit, since a long sequence of wide rows has more than 2^31 elements."""
    return x.ptr + (tl.zeros((), tl.int64) + origin) * x.row


@triton.jit
def _pointers(x, origin, local, PADDED: tl.constexpr):
    # `origin` changes from tile to tile and `local` does not, so the compiler keeps all but one addition out of loops
    cols = tl.arange(0, PADDED).to(tl.int64) * x.col
    tile = (local.to(tl.int64) * x.row)[:, None] + cols[None, :]
    return _row(x, origin) + tile


@triton.jit
def load_rows(x, origin, local, valid, CHECK: tl.constexpr, WIDTH: tl.constexpr):
    """Load rows ``origin + local`` of one head, (rows, padded width); 0 where not ``valid`` or beyond the width."""
    PADDED: tl.constexpr = padded(WIDTH)
    pointers = _pointers(x, origin, local, PADDED)
    if PADDED != WIDTH:
        inside = (tl.arange(0, PADDED) < WIDTH)[None, :]
        if CHECK:
            inside = inside & valid[:, None]
        return tl.load(pointers, mask=inside, other=0.0)
    if CHECK:
        return tl.load(pointers, mask=valid[:, None], other=0.0)
    return tl.load(pointers)


@triton.jit
def store_rows(x, tile, origin, local, valid, WIDTH: tl.constexpr):
    """Store the rows of ``tile`` that are ``valid`` as rows ``origin + local`` of one head."""
    PADDED: tl.constexpr = padded(WIDTH)
    inside = valid[:, None] & (tl.arange(0, PADDED) < WIDTH)[None, :]
    tl.store(_pointers(x, origin, local, PADDED), tile.to(x.ptr.dtype.element_ty), mask=inside)


@triton.jit
def load_numbers(x, origin, local, valid, other, CHECK: tl.constexpr):
    """Load one number a row (a log-sum-exp, a delta); ``other`` where not ``valid``."""
    pointers = _row(x, origin) + local.to(tl.int64) * x.row
    if CHECK:
        return tl.load(pointers, mask=valid, other=other)
    return tl.load(pointers)


@triton.jit
def store_numbers(x, numbers, origin, local, valid):
    """Store one number a row."""
    tl.store(_row(x, origin) + local.to(tl.int64) * x.row, numbers, mask=valid)


@triton.jit
def begin_queries(q, out, lse, dout, origin, local, valid, GRAD: tl.constexpr, QK: tl.constexpr, V: tl.constexpr,
                  BM: tl.constexpr):  # fmt: skip
    """Load a tile of queries and the state that ``see_keys`` carries from tile to tile of keys.

    Returns:
        q, dout and the state (sum, top, total): forward, the unnormalised output, the running maximum and the running
        normaliser; backward (``GRAD``), the gradient of the queries, the log-sum-exp and delta = sum(out * dout).
    """
    queries = load_rows(q, origin, local, valid, True, QK)
    if GRAD:
        upstream = load_rows(dout, origin, local, valid, True, V)
        o = load_rows(out, origin, local, valid, True, V)
        top = load_numbers(lse, origin, local, valid, float("inf"), True)
        total = tl.sum(o.to(tl.float32) * upstream.to(tl.float32), 1)
        acc = tl.zeros((BM, padded(QK)), tl.float32)
    else:
        upstream = queries
        top = tl.full((BM,), LOWEST, tl.float32)
        total = tl.zeros((BM,), tl.float32)
        acc = tl.zeros((BM, padded(V)), tl.float32)
    return queries, upstream, acc, top, total


@triton.jit
def see_keys(acc, top, total, q, dout, k, v, origin, local, valid, keep, scale, CHECK: tl.constexpr,
             MASKED: tl.constexpr, GRAD: tl.constexpr, QK: tl.constexpr, V: tl.constexpr):  # fmt: skip
    """Let a tile of queries see a tile of keys, rows ``origin + local``: one step of the online softmax or of dq."""
    keys = load_rows(k, origin, local, valid, CHECK, QK)
    scores = tl.dot(q, tl.trans(keys), input_precision=FP32_PRODUCTS)
    if MASKED:
        scores = tl.where(keep, scores, float("-inf"))
    values = load_rows(v, origin, local, valid, CHECK, V)
    return use_scores(acc, top, total, scores, dout, keys, values, scale, GRAD)


@triton.jit
def use_scores(acc, top, total, scores, dout, keys, values, scale, GRAD: tl.constexpr):
    """The part of ``see_keys`` after the scores, which are minus infinity where a pair is not kept."""
    if GRAD:
        p = tl.exp2(scores * scale - top[:, None])
        dp = tl.dot(dout, tl.trans(values), input_precision=FP32_PRODUCTS)
        ds = p * (dp - total[:, None])
        acc = tl.dot(ds.to(keys.dtype), keys, acc, input_precision=FP32_PRODUCTS)
    else:
        new_top = tl.maximum(top, tl.max(scores, 1) * scale)
        p = tl.exp2(scores * scale - new_top[:, None])
        shrink = tl.exp2(top - new_top)
        total = total * shrink + tl.sum(p, 1)
        acc = tl.dot(p.to(values.dtype), values, acc * shrink[:, None], input_precision=FP32_PRODUCTS)
        top = new_top
    return acc, top, total


@triton.jit
def end_queries(out, lse, acc, top, total, origin, local, valid, PARTIAL: tl.constexpr, V: tl.constexpr):
    """Store the output and its log-sum-exp; PARTIAL: another pass goes on, so an empty row stays LOWEST."""
    empty = total == 0.0
    whole = tl.where(empty, 1.0, total)
    store_rows(out, acc * (1.0 / whole)[:, None], origin, local, valid, V)
    nothing = LOWEST if PARTIAL else float("inf")
    store_numbers(lse, tl.where(empty, nothing, top + tl.log2(whole)), origin, local, valid)


@triton.jit
def see_queries(dk, dv, keys, values, q, out, lse, dout, delta, origin, local, valid, keep, scale,
                CHECK: tl.constexpr, MASKED: tl.constexpr, QK: tl.constexpr, V: tl.constexpr):  # fmt: skip
    """Let a tile of keys be seen by a tile of queries, rows ``origin + local``: one step of dk and dv.

    Everything is transposed, (keys, queries), so that probabilities feed the next product without leaving registers.
    ``keep`` is transposed too.
    """
    queries = load_rows(q, origin, local, valid, CHECK, QK)
    scores = tl.dot(keys, tl.trans(queries), input_precision=FP32_PRODUCTS)
    if MASKED:
        scores = tl.where(keep, scores, float("-inf"))
    return use_seen_scores(
        dk, dv, scores, queries, values, out, lse, dout, delta, origin, local, valid, scale, CHECK, V
    )


@triton.jit
def use_seen_scores(dk, dv, scores, queries, values, out, lse, dout, delta, origin, local, valid, scale,
                    CHECK: tl.constexpr, V: tl.constexpr):  # fmt: skip
    """The part of ``see_queries`` after the scores. With no ``delta`` to read (None), it is computed from ``out``."""
    upstream = load_rows(dout, origin, local, valid, CHECK, V)
    top = load_numbers(lse, origin, local, valid, float("inf"), CHECK)
    if delta is None:
        o = load_rows(out, origin, local, valid, CHECK, V)
        mean = tl.sum(o.to(tl.float32) * upstream.to(tl.float32), 1)
    else:
        mean = load_numbers(delta, origin, local, valid, 0.0, CHECK)
    return step_of_keys(dk, dv, scores, queries, values, upstream, top, mean, scale)


@triton.jit
def step_of_keys(dk, dv, scores, queries, values, upstream, top, mean, scale):
    """One step of dk and dv from the scores, (keys, queries), and all rows and numbers of the queries."""
    p = tl.exp2(scores * scale - top[None, :])
    dv = tl.dot(p.to(upstream.dtype), upstream, dv, input_precision=FP32_PRODUCTS)
    dp = tl.dot(values, tl.trans(upstream), input_precision=FP32_PRODUCTS)
    ds = p * (dp - mean[None, :])
    dk = tl.dot(ds.to(queries.dtype), queries, dk, input_precision=FP32_PRODUCTS)
    return dk, dv


@triton.jit
def see_each_other(dq, dk, dv, q, dout, k, v, top, mean, keep, scale, MASKED: tl.constexpr):
    """One step of all three gradients, for a tile of queries and a tile of keys that are both at hand.

    Transposed as in ``see_queries``; scores and probabilities are computed once for the three.
    """
    scores = tl.dot(k, tl.trans(q), input_precision=FP32_PRODUCTS)
    if MASKED:
        scores = tl.where(keep, scores, float("-inf"))
    p = tl.exp2(scores * scale - top[None, :])
    dv = tl.dot(p.to(dout.dtype), dout, dv, input_precision=FP32_PRODUCTS)
    dp = tl.dot(v, tl.trans(dout), input_precision=FP32_PRODUCTS)
    ds = (p * (dp - mean[None, :])).to(k.dtype)
    dk = tl.dot(ds, q, dk, input_precision=FP32_PRODUCTS)
    dq = tl.dot(tl.trans(ds), k, dq, input_precision=FP32_PRODUCTS)
    return dq, dk, dv
