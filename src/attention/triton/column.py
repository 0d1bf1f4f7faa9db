# mypy: disable-error-code="no-untyped-def, assignment"
# ruff: noqa: RUF005
"""Strided attention's second set (section 4.3): query i sees every l-th key back from it.

Seen down the columns of the (n/l, l) matrix of positions this is plain causal attention among the rows m of one
column r, position m * l + r: a view of the sequence with a longer stride, read in place with no transpose. With
STRICT a query does not see itself, since in a merged head the window pass, which follows, holds that pair.
"""

from __future__ import annotations

import triton
import triton.language as tl

from src.attention.triton.steps import (
    FP32_PRODUCTS,
    LN2,
    LOWEST,
    View,
    begin_queries,
    end_queries,
    head_of,
    load_rows,
    padded,
    see_each_other,
    see_keys,
    see_queries,
    shared_of,
    store_numbers,
    store_rows,
)


@triton.jit
def _down_to(acc, top, total, q, dout, k, v, start, end, size, scale, STRICT: tl.constexpr, GRAD: tl.constexpr,
             QK: tl.constexpr, V: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr):  # fmt: skip
    """A tile of queries of a column of ``size`` rows sees the keys above it, those before row ``end``."""
    local = tl.arange(0, BN)
    i = start + tl.arange(0, BM)
    diagonal = start // BN * BN
    for key in range(0, diagonal, BN):
        acc, top, total = see_keys(
            acc, top, total, q, dout, k, v, key, local, None, None, scale, False, False, GRAD, QK, V
        )
    for key in range(diagonal, end, BN):
        j = key + local
        keep = j[None, :] + STRICT <= i[:, None]
        acc, top, total = see_keys(
            acc, top, total, q, dout, k, v, key, local, j < size, keep, scale, True, True, GRAD, QK, V
        )
    return acc, top, total


@triton.jit
def _column(x, r, STRIDE: tl.constexpr):
    """The view of column r: its row m is position m * l + r."""
    return View(x.ptr + (tl.zeros((), tl.int64) + r) * x.row, x.batch, x.head, x.row * STRIDE, x.col)


@triton.jit
def _place(tiles, heads, STRIDE: tl.constexpr, HEADS_FIRST: tl.constexpr, PER: tl.constexpr):
    """Which sequence, head, columns and tile of them this program has: neighbours in memory run side by side."""
    pid = tl.program_id(0)
    STRIPS: tl.constexpr = (STRIDE + PER - 1) // PER
    if HEADS_FIRST:
        head = pid % heads
        strip = pid // heads % STRIPS
        rest = pid // heads // STRIPS
        tile = rest % tiles
        batch = rest // tiles
    else:
        strip = pid % STRIPS
        rest = pid // STRIPS
        tile = rest % tiles
        batch = rest // tiles // heads
        head = rest // tiles % heads
    return batch, head, strip * PER, tiles - 1 - tile


@triton.jit
def column_forward(q, k, v, out, lse, n, scale, heads, tiles, STRICT: tl.constexpr, HEADS_FIRST: tl.constexpr,
                   STRIDE: tl.constexpr, RATIO: tl.constexpr, SHIFT: tl.constexpr, QK: tl.constexpr, V: tl.constexpr,
                   BM: tl.constexpr, BN: tl.constexpr, PER: tl.constexpr, TILES: tl.constexpr):  # fmt: skip
    """Output and log-sum-exp of one tile of PER neighbouring columns. Grid: batch x tiles x columns / PER x heads."""
    batch, head, first, tile = _place(tiles, heads, STRIDE, HEADS_FIRST, PER)
    q = head_of(q, batch, head)
    k, v = shared_of(k, batch, head, RATIO, SHIFT), shared_of(v, batch, head, RATIO, SHIFT)
    out, lse = head_of(out, batch, head), head_of(lse, batch, head)
    start = tile * BM
    local = tl.arange(0, BM)
    for r in range(first, tl.minimum(first + PER, STRIDE)):
        size = tl.cdiv(n - r, STRIDE)
        valid = start + local < size
        out_r, lse_r = _column(out, r, STRIDE), _column(lse, r, STRIDE)
        k_r, v_r = _column(k, r, STRIDE), _column(v, r, STRIDE)
        if TILES > 0:
            _at_once(_column(q, r, STRIDE), k_r, v_r, out_r, lse_r, size, scale, STRICT, QK, V, BN, TILES)
        else:
            queries, upstream, acc, top, total = begin_queries(
                _column(q, r, STRIDE), out_r, lse_r, None, start, local, valid, False, QK, V, BM
            )
            acc, top, total = _down_to(
                acc, top, total, queries, upstream, k_r, v_r, start, tl.minimum(start + BM, size), size, scale, STRICT,
                False, QK, V, BM, BN,
            )  # fmt: skip
            end_queries(out_r, lse_r, acc, top, total, start, local, valid, STRICT, V)


@triton.jit
def _at_once(q, k, v, out, lse, size, scale, STRICT: tl.constexpr, QK: tl.constexpr, V: tl.constexpr,
             BN: tl.constexpr, TILES: tl.constexpr):  # fmt: skip
    """Forward of a whole short column, TILES tiles of BN rows: each row is read once, nothing above the diagonal."""
    local = tl.arange(0, BN)
    keys, values = (), ()
    for a in tl.static_range(TILES):
        valid = a * BN + local < size
        keys = keys + (load_rows(k, a * BN, local, valid, True, QK),)
        values = values + (load_rows(v, a * BN, local, valid, True, V),)
    for a in tl.static_range(TILES):
        valid = a * BN + local < size
        queries = load_rows(q, a * BN, local, valid, True, QK)
        parts = ()
        top = tl.full((BN,), LOWEST, tl.float32)
        for b in tl.static_range(a + 1):
            scores = tl.dot(queries, tl.trans(keys[b]), input_precision=FP32_PRODUCTS)
            if a == b:
                scores = tl.where(local[None, :] + STRICT <= local[:, None], scores, float("-inf"))
            top = tl.maximum(top, tl.max(scores, 1) * scale)
            parts = parts + (scores,)
        acc = tl.zeros((BN, padded(V)), tl.float32)
        total = tl.zeros((BN,), tl.float32)
        for b in tl.static_range(a + 1):
            p = tl.exp2(parts[b] * scale - top[:, None])
            total += tl.sum(p, 1)
            acc = tl.dot(p.to(queries.dtype), values[b], acc, input_precision=FP32_PRODUCTS)
        end_queries(out, lse, acc, top, total, a * BN, local, valid, STRICT, V)


@triton.jit
def column_backward(q, k, v, out, lse, dout, delta, dq, dk, dv, n, scale, heads, tiles, STRICT: tl.constexpr,
                    HEADS_FIRST: tl.constexpr, STRIDE: tl.constexpr, RATIO: tl.constexpr, SHIFT: tl.constexpr,
                    QK: tl.constexpr, V: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, PER: tl.constexpr,
                    TILES: tl.constexpr):  # fmt: skip
    """Gradients of the BM rows of one tile of PER columns, as queries and as keys; other rows come in tiles of BN.

    Writes delta if asked, for the window pass that follows. Grid: batch x tiles x columns / PER x heads.
    """
    batch, head, first, tile = _place(tiles, heads, STRIDE, HEADS_FIRST, PER)
    q = head_of(q, batch, head)
    k, v = shared_of(k, batch, head, RATIO, SHIFT), shared_of(v, batch, head, RATIO, SHIFT)
    out, lse, dout = head_of(out, batch, head), head_of(lse, batch, head), head_of(dout, batch, head)
    dq, dk, dv = head_of(dq, batch, head), head_of(dk, batch, head), head_of(dv, batch, head)
    if delta is not None:
        delta = head_of(delta, batch, head)
    for r in range(first, tl.minimum(first + PER, STRIDE)):
        _column_gradients(
            _column(q, r, STRIDE), _column(k, r, STRIDE), _column(v, r, STRIDE), _column(out, r, STRIDE),
            _column(lse, r, STRIDE), _column(dout, r, STRIDE), delta, _column(dq, r, STRIDE), _column(dk, r, STRIDE),
            _column(dv, r, STRIDE), r, tile * BM, tl.cdiv(n - r, STRIDE), scale, STRICT, STRIDE, QK, V, BM, BN, TILES,
        )  # fmt: skip


@triton.jit
def _column_gradients(q, k, v, out, lse, dout, delta, dq, dk, dv, r, start, size, scale, STRICT: tl.constexpr,
                      STRIDE: tl.constexpr, QK: tl.constexpr, V: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
                      TILES: tl.constexpr):  # fmt: skip
    """Gradients of one tile of one column of ``size`` rows."""
    if delta is not None:
        delta = _column(delta, r, STRIDE)
    if TILES > 0:
        _gradients_at_once(q, k, v, out, lse, dout, delta, dq, dk, dv, size, scale, STRICT, QK, V, BN, TILES)
    else:
        local = tl.arange(0, BM)
        below = tl.arange(0, BN)
        valid = start + local < size
        queries, upstream, sum_q, top, mean = begin_queries(q, out, lse, dout, start, local, valid, True, QK, V, BM)
        if delta is not None:
            store_numbers(delta, mean, start, local, valid)
        keys = load_rows(k, start, local, valid, True, QK)
        values = load_rows(v, start, local, valid, True, V)
        sum_k = tl.zeros((BM, padded(QK)), tl.float32)
        sum_v = tl.zeros((BM, padded(V)), tl.float32)
        sum_q, top, mean = _down_to(
            sum_q, top, mean, queries, upstream, k, v, start, start, size, scale, STRICT, True, QK, V, BM, BN
        )
        keep = local[:, None] + STRICT <= local[None, :]
        sum_q, sum_k, sum_v = see_each_other(
            sum_q, sum_k, sum_v, queries, upstream, keys, values, top, mean, keep, scale, True
        )
        store_rows(dq, sum_q * (scale * LN2), start, local, valid, QK)
        for query in range(start + BM, size, BN):
            sum_k, sum_v = see_queries(
                sum_k, sum_v, keys, values, q, out, lse, dout, None, query, below, query + below < size, None, scale,
                True, False, QK, V,
            )  # fmt: skip
        store_rows(dk, sum_k * (scale * LN2), start, local, valid, QK)
        store_rows(dv, sum_v, start, local, valid, V)


@triton.jit
def _gradients_at_once(q, k, v, out, lse, dout, delta, dq, dk, dv, size, scale, STRICT: tl.constexpr,
                       QK: tl.constexpr, V: tl.constexpr, BN: tl.constexpr, TILES: tl.constexpr):  # fmt: skip
    """Gradients of a whole short column: each row is read once and each pair of tiles computed once."""
    local = tl.arange(0, BN)
    queries, upstreams, tops, means, sums = (), (), (), (), ()
    for a in tl.static_range(TILES):
        valid = a * BN + local < size
        tile, upstream, acc, top, mean = begin_queries(q, out, lse, dout, a * BN, local, valid, True, QK, V, BN)
        if delta is not None:
            store_numbers(delta, mean, a * BN, local, valid)
        queries, upstreams, sums = queries + (tile,), upstreams + (upstream,), sums + (acc,)
        tops, means = tops + (top,), means + (mean,)
    keep = local[:, None] + STRICT <= local[None, :]
    for b in tl.static_range(TILES):
        valid = b * BN + local < size
        keys = load_rows(k, b * BN, local, valid, True, QK)
        values = load_rows(v, b * BN, local, valid, True, V)
        sum_k = tl.zeros((BN, padded(QK)), tl.float32)
        sum_v = tl.zeros((BN, padded(V)), tl.float32)
        new_sums = ()
        for a in tl.static_range(TILES):
            acc = sums[a]
            if a >= b:
                acc, sum_k, sum_v = see_each_other(
                    acc, sum_k, sum_v, queries[a], upstreams[a], keys, values, tops[a], means[a], keep, scale, a == b
                )
            new_sums = new_sums + (acc,)
        sums = new_sums
        store_rows(dk, sum_k * (scale * LN2), b * BN, local, valid, QK)
        store_rows(dv, sum_v, b * BN, local, valid, V)
        store_rows(dq, sums[b] * (scale * LN2), b * BN, local, valid, QK)
