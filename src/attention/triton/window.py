# mypy: disable-error-code="no-untyped-def"
"""Strided attention's first set (section 4.3): query i sees the keys j with 0 <= i - j < REACH, a causal band.

REACH is l for the merged set, whose column part holds position i - l, and l + 1 for a head of its own. In a merged
head the column pass has run before: this pass goes on from its output, log-sum-exp and gradients (JOIN), in place.
"""

from __future__ import annotations

import triton
import triton.language as tl

from src.attention.triton.steps import (
    FP32_PRODUCTS,
    LN2,
    LOWEST,
    begin_queries,
    end_queries,
    head_of,
    load_numbers,
    load_rows,
    padded,
    see_each_other,
    shared_of,
    store_rows,
    use_scores,
    use_seen_scores,
)


@triton.jit
def _band_before(acc, top, total, q, dout, k, v, start, end, n, scale, GRAD: tl.constexpr, REACH: tl.constexpr,
                 QK: tl.constexpr, V: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr):  # fmt: skip
    """A tile of queries sees the keys of its band that come before ``end``.

    One loop, so that loads run ahead of it from end to end; only the tiles at an edge of the band pay for a mask.
    """
    local = tl.arange(0, BN)
    row = tl.arange(0, BM)
    for key in range(tl.maximum(start - REACH + 1, 0) // BN * BN, end, BN):
        valid = key + local < n
        keys = load_rows(k, key, local, valid, True, QK)
        scores = tl.dot(q, tl.trans(keys), input_precision=FP32_PRODUCTS)
        values = load_rows(v, key, local, valid, True, V)
        if key + BN > start + 1:
            scores = tl.where(local[None, :] <= (row + (start - key))[:, None], scores, float("-inf"))
        if start + BM > key + REACH:
            scores = tl.where(local[None, :] > (row + (start - key - REACH))[:, None], scores, float("-inf"))
        acc, top, total = use_scores(acc, top, total, scores, dout, keys, values, scale, GRAD)
    return acc, top, total


@triton.jit
def _band_after(dk, dv, keys, values, q, out, lse, dout, delta, start, n, scale, REACH: tl.constexpr,
                QK: tl.constexpr, V: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr):  # fmt: skip
    """A tile of BM keys is seen by the queries of its band that come after its own rows."""
    local = tl.arange(0, BN)
    row = tl.arange(0, BM)
    for query in range(start + BM, tl.minimum(start + BM - 1 + REACH, n), BN):
        valid = query + local < n
        queries = load_rows(q, query, local, valid, True, QK)
        scores = tl.dot(keys, tl.trans(queries), input_precision=FP32_PRODUCTS)
        if query + BN > start + REACH:
            scores = tl.where((local + (query - start - REACH))[None, :] < row[:, None], scores, float("-inf"))
        dk, dv = use_seen_scores(
            dk, dv, scores, queries, values, out, lse, dout, delta, query, local, valid, scale, True, V
        )
    return dk, dv


@triton.jit
def window_forward(q, k, v, out, lse, n, scale, heads, groups, JOIN: tl.constexpr, REACH: tl.constexpr,
                   RATIO: tl.constexpr, SHIFT: tl.constexpr, QK: tl.constexpr, V: tl.constexpr, BM: tl.constexpr,
                   BN: tl.constexpr):  # fmt: skip
    """Output and log-sum-exp of one tile of queries. Grid: (batch x heads) x tiles."""
    tiles = tl.cdiv(n, BM)
    group = groups - 1 - tl.program_id(0) // tiles  # backwards: the column pass has left its last heads in the cache
    batch, head = group // heads, group % heads
    q = head_of(q, batch, head)
    k, v = shared_of(k, batch, head, RATIO, SHIFT), shared_of(v, batch, head, RATIO, SHIFT)
    out, lse = head_of(out, batch, head), head_of(lse, batch, head)
    start = tl.program_id(0) % tiles * BM
    local = tl.arange(0, BM)
    valid = start + local < n
    queries, upstream, acc, top, total = begin_queries(q, out, lse, None, start, local, valid, False, QK, V, BM)
    if JOIN:
        acc = load_rows(out, start, local, valid, True, V).to(tl.float32)
        top = load_numbers(lse, start, local, valid, LOWEST, True)
        total += 1.0  # acc is normalised; where the column was empty, the first key of the band wipes this out
    acc, top, total = _band_before(
        acc,
        top,
        total,
        queries,
        upstream,
        k,
        v,
        start,
        tl.minimum(start + BM, n),
        n,
        scale,
        False,
        REACH,
        QK,
        V,
        BM,
        BN,
    )
    end_queries(out, lse, acc, top, total, start, local, valid, False, V)


@triton.jit
def window_backward(q, k, v, out, lse, dout, delta, dq, dk, dv, n, scale, heads, groups, JOIN: tl.constexpr,
                    REACH: tl.constexpr, RATIO: tl.constexpr, SHIFT: tl.constexpr, QK: tl.constexpr, V: tl.constexpr,
                    BM: tl.constexpr, BN: tl.constexpr):  # fmt: skip
    """Gradients of the BM rows of one tile, as queries and as keys; other rows come in tiles of BN, a divisor of BM.

    One program for both, so that what its queries and its keys make of each other is computed once and their rows are
    read once. With JOIN, adds to the gradients of the column pass and reads its delta. Grid: (batch x heads) x tiles.
    """
    tiles = tl.cdiv(n, BM)
    group = groups - 1 - tl.program_id(0) // tiles
    batch, head = group // heads, group % heads
    q = head_of(q, batch, head)
    k, v = shared_of(k, batch, head, RATIO, SHIFT), shared_of(v, batch, head, RATIO, SHIFT)
    out, lse, dout = head_of(out, batch, head), head_of(lse, batch, head), head_of(dout, batch, head)
    dq, dk, dv = head_of(dq, batch, head), head_of(dk, batch, head), head_of(dv, batch, head)
    start = tl.program_id(0) % tiles * BM
    local = tl.arange(0, BM)
    valid = start + local < n
    unscale = 1.0 / (scale * LN2)
    if JOIN:  # go on from the column pass
        delta = head_of(delta, batch, head)
        queries = load_rows(q, start, local, valid, True, QK)
        upstream = load_rows(dout, start, local, valid, True, V)
        top = load_numbers(lse, start, local, valid, float("inf"), True)
        mean = load_numbers(delta, start, local, valid, 0.0, True)
        sum_q = load_rows(dq, start, local, valid, True, QK).to(tl.float32) * unscale
    else:
        queries, upstream, sum_q, top, mean = begin_queries(q, out, lse, dout, start, local, valid, True, QK, V, BM)
    sum_q, top, mean = _band_before(
        sum_q, top, mean, queries, upstream, k, v, start, start, n, scale, True, REACH, QK, V, BM, BN
    )
    keys = load_rows(k, start, local, valid, True, QK)
    values = load_rows(v, start, local, valid, True, V)
    if JOIN:
        sum_k = load_rows(dk, start, local, valid, True, QK).to(tl.float32) * unscale
        sum_v = load_rows(dv, start, local, valid, True, V).to(tl.float32)
    else:
        sum_k = tl.zeros((BM, padded(QK)), tl.float32)
        sum_v = tl.zeros((BM, padded(V)), tl.float32)
    keep = (local[:, None] <= local[None, :]) & (local[None, :] - local[:, None] < REACH)
    sum_q, sum_k, sum_v = see_each_other(
        sum_q, sum_k, sum_v, queries, upstream, keys, values, top, mean, keep, scale, True
    )
    store_rows(dq, sum_q * (scale * LN2), start, local, valid, QK)
    sum_k, sum_v = _band_after(
        sum_k, sum_v, keys, values, q, out, lse, dout, delta, start, n, scale, REACH, QK, V, BM, BN
    )
    store_rows(dk, sum_k * (scale * LN2), start, local, valid, QK)
    store_rows(dv, sum_v, start, local, valid, V)
