# mypy: disable-error-code="no-untyped-def"
"""Attention over lists of tiles (``src.attention.tiled.layout``): any key set, queries behind a cache, documents.

A program takes one tile of queries (or of keys) and walks its list in one loop, so that the next tile is on its way
while one is computed. A tile with a mask reads its bits from memory. Keys stand in the order of the layout, so their
rows are read through a table, unless those of every tile are neighbours.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from src.attention.triton.steps import (
    FP32_PRODUCTS,
    LN2,
    begin_queries,
    end_queries,
    head_of,
    load_numbers,
    load_rows,
    padded,
    step_of_keys,
    store_numbers,
    store_rows,
    use_scores,
)


class Rows(NamedTuple):
    """The rows of one head: a view of them, and, where they are described for the GPU's tensor memory accelerator, the
    description of all heads, with the place of this one."""

    view: Any
    described: Any
    batch: Any
    head: Any


@triton.jit
def _kept(masks, place, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """A mask, (ROWS, COLUMNS): a word holds 32 columns of a row."""
    WORDS: tl.constexpr = (COLUMNS + 31) // 32
    row, column = tl.arange(0, ROWS), tl.arange(0, COLUMNS)
    words = masks + place.to(tl.int64) * (ROWS * WORDS) + row * WORDS
    keep = (tl.load(words)[:, None] >> (column % 32)[None, :]) & 1
    for word in tl.static_range(1, WORDS):
        bits = (tl.load(words + word)[:, None] >> (column % 32)[None, :]) & 1
        keep = tl.where((column // 32 == word)[None, :], bits, keep)
    return keep != 0


@triton.jit
def _place(count, groups, HEADS_FIRST: tl.constexpr):
    """Which of the ``count`` programs of a head this is, and whose. HEADS_FIRST: heads are neighbours in memory, so
    programs side by side work at the same tile of all of them; else at neighbouring tiles of one."""
    number = tl.program_id(0)
    if HEADS_FIRST:
        return number // groups, number % groups
    else:
        return number % count, number // count


@triton.jit
def _layout_of(heads_of, head, ALIKE: tl.constexpr):
    """The layout of a head; ALIKE: all have one."""
    own = 0
    if not ALIKE:
        own = tl.load(heads_of + head)
    return own


@triton.jit
def _entry(tiles, places, entry):
    """An entry of a list: its tile, and the place of its mask."""
    return tl.load(tiles + entry), tl.load(places + entry)


@triton.jit
def _first_entry(tiles, places, begin, end):
    """The first entry of a list, which may be empty."""
    there = begin < end
    return tl.load(tiles + begin, mask=there, other=0), tl.load(places + begin, mask=there, other=0)


@triton.jit
def _keys_of(table, tile, IN_ORDER: tl.constexpr, BN: tl.constexpr):
    """Positions of the keys of a tile. IN_ORDER: the table holds 0, 1, 2, ..."""
    places = tile * BN + tl.arange(0, BN)
    if IN_ORDER:
        return places
    else:
        return tl.load(table + places)


@triton.jit
def _load(x, origin, local, WIDTH: tl.constexpr, COUNT: tl.constexpr):
    """Load rows ``origin + local``; where they are described these are neighbours, and 0 behind the last row."""
    if x.described is None:
        return load_rows(x.view, origin, local, None, False, WIDTH)
    else:
        return x.described.load([x.batch, x.head, origin, 0]).reshape(COUNT, padded(WIDTH))


@triton.jit
def _masked(scores, masks, place, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Scores that are minus infinity where a pair is not kept; a full tile has no ``place`` among the masks."""
    if place >= 0:
        scores = tl.where(_kept(masks, place, ROWS, COLUMNS), scores, float("-inf"))
    return scores


@triton.jit
def _see_keys(acc, top, total, q, dout, k, v, masks, place, first, origin, local, scale, DOCUMENTS: tl.constexpr,
              GRAD: tl.constexpr, QK: tl.constexpr, V: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr):  # fmt: skip
    keys = _load(k, origin, local, QK, BN)
    scores = tl.dot(q, tl.trans(keys), input_precision=FP32_PRODUCTS)
    scores = _masked(scores, masks, place, BM, BN)
    if DOCUMENTS:
        scores = tl.where((origin + local)[None, :] >= first[:, None], scores, float("-inf"))
    return use_scores(acc, top, total, scores, dout, keys, _load(v, origin, local, V, BN), scale, GRAD)


@triton.jit
def _over_keys(acc, top, total, q, dout, k, v, table, tiles, places, masks, first, begin, end, n, scale,
               NEIGHBOURS: tl.constexpr, FILLED: tl.constexpr, DOCUMENTS: tl.constexpr, GRAD: tl.constexpr,
               QK: tl.constexpr, V: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr):  # fmt: skip
    """A tile of queries sees the tiles of keys ``begin`` to ``end - 1`` of the list.

    NEIGHBOURS: ``tiles`` holds the position of each tile's first key, the others follow; else the tile's place in the
    table. FILLED: some places of a tile hold no key. No mask keeps them, so the last key is read there.
    """
    lowest = tl.min(first, 0)
    ahead, its_mask = _first_entry(tiles, places, begin, end)
    for entry in range(begin, end):
        if GRAD:
            tile, place = _entry(tiles, places, entry)
        else:
            tile, place = ahead, its_mask
            ahead, its_mask = _entry(tiles, places, tl.minimum(entry + 1, end - 1))
        if NEIGHBOURS:
            origin, local = tile, tl.arange(0, BN)
        else:
            origin, local = 0, _keys_of(table, tile, False, BN)
        if FILLED:
            local = tl.minimum(local, n - 1 - origin)
        if DOCUMENTS:
            if origin + tl.max(local, 0) >= lowest:
                acc, top, total = _see_keys(
                    acc, top, total, q, dout, k, v, masks, place, first, origin, local, scale, True, GRAD, QK, V, BM, BN
                )
        else:
            acc, top, total = _see_keys(
                acc, top, total, q, dout, k, v, masks, place, first, origin, local, scale, False, GRAD, QK, V, BM, BN
            )
    return acc, top, total


@triton.jit
def tiled_queries(q, k, v, out, lse, dout, delta, dq, keys_of, values_of, first, heads_of, table, starts, tiles, places,
                  masks, n, keys, row_tiles, key_places, scale, heads, groups, NEIGHBOURS: tl.constexpr,
                  FILLED: tl.constexpr, GRAD: tl.constexpr, ALIKE: tl.constexpr, DOCUMENTS: tl.constexpr,
                  RATIO: tl.constexpr, HEADS_FIRST: tl.constexpr, QK: tl.constexpr, V: tl.constexpr, BM: tl.constexpr,
                  BN: tl.constexpr):  # fmt: skip
    """One tile of queries: forward writes out and lse; backward (GRAD) reads them and writes delta and dq.

    Grid: tiles x (batch x heads), the last tiles first, which see the most.
    """
    number, group = _place(row_tiles, groups, HEADS_FIRST)
    tile = row_tiles - 1 - number
    batch, head = group // heads, group % heads
    own = _layout_of(heads_of, head, ALIKE)
    table += own * key_places
    begin = tl.load(starts + own * (row_tiles + 1) + tile)
    end = tl.load(starts + own * (row_tiles + 1) + tile + 1)
    k = Rows(head_of(k, batch, head // RATIO), keys_of, batch, head // RATIO)
    v = Rows(head_of(v, batch, head // RATIO), values_of, batch, head // RATIO)
    q, out, lse = head_of(q, batch, head), head_of(out, batch, head), head_of(lse, batch, head)
    if GRAD:
        dout = head_of(dout, batch, head)
    start = tile * BM
    local = tl.arange(0, BM)
    valid = start + local < n
    nearest = local
    if DOCUMENTS:
        nearest = load_numbers(head_of(first, batch, head * 0), start, local, valid, 0x7FFFFFFF, True)
    queries, upstream, acc, top, total = begin_queries(q, out, lse, dout, start, local, valid, GRAD, QK, V, BM)
    acc, top, total = _over_keys(
        acc, top, total, queries, upstream, k, v, table, tiles, places, masks, nearest, begin, end, keys, scale,
        NEIGHBOURS, FILLED, DOCUMENTS, GRAD, QK, V, BM, BN,
    )  # fmt: skip
    if GRAD:
        store_numbers(head_of(delta, batch, head), total, start, local, valid)
        store_rows(head_of(dq, batch, head), acc * (scale * LN2), start, local, valid, QK)
    else:
        end_queries(out, lse, acc, top, total, start, local, valid, False, V)


@triton.jit
def _see_queries(dk, dv, keys, values, q, lse, dout, delta, masks, place, first, j, origin, local, scale,
                 DOCUMENTS: tl.constexpr, QK: tl.constexpr, V: tl.constexpr, BM: tl.constexpr,
                 BN: tl.constexpr):  # fmt: skip
    queries = _load(q, origin, local, QK, BM)
    scores = tl.dot(keys, tl.trans(queries), input_precision=FP32_PRODUCTS)
    scores = _masked(scores, masks, place, BN, BM)
    if DOCUMENTS:
        scores = tl.where(j[:, None] >= first[None, :], scores, float("-inf"))
    top = load_numbers(lse, origin, local, None, 0.0, False)
    mean = load_numbers(delta, origin, local, None, 0.0, False)
    return step_of_keys(dk, dv, scores, queries, values, _load(dout, origin, local, V, BM), top, mean, scale)


@triton.jit
def _over_queries(dk, dv, keys, values, q, lse, dout, delta, tiles, places, masks, first, j, begin, end, n, scale,
                  PARTIAL: tl.constexpr, DOCUMENTS: tl.constexpr, QK: tl.constexpr, V: tl.constexpr, BM: tl.constexpr,
                  BN: tl.constexpr):  # fmt: skip
    """A tile of keys, at positions ``j``, is seen by the tiles of queries ``begin`` to ``end - 1`` of the list.

    PARTIAL: the last tile has rows behind the last query. No mask keeps them, so the last query is read there.
    """
    ahead, its_mask = _first_entry(tiles, places, begin, end)
    for entry in range(begin, end):
        place, start, row = its_mask, ahead * BM, tl.arange(0, BM)
        ahead, its_mask = _entry(tiles, places, tl.minimum(entry + 1, end - 1))
        if PARTIAL:
            row = tl.minimum(row, n - 1 - start)
        if DOCUMENTS:
            nearest = load_numbers(first, start, row, None, 0, False)
            if tl.max(j, 0) >= tl.min(nearest, 0):
                dk, dv = _see_queries(
                    dk, dv, keys, values, q, lse, dout, delta, masks, place, nearest, j, start, row, scale,
                    True, QK, V, BM, BN,
                )  # fmt: skip
        else:
            dk, dv = _see_queries(
                dk, dv, keys, values, q, lse, dout, delta, masks, place, first, j, start, row, scale,
                False, QK, V, BM, BN,
            )  # fmt: skip
    return dk, dv


@triton.jit
def tiled_keys(q, k, v, lse, dout, delta, dk, dv, queries_of, upstream_of, dk_shares, dv_shares, first, heads_of, table,
               parts, tiles, places, masks, n, keys, key_places, count, shares, scale, heads, groups,
               IN_ORDER: tl.constexpr, PARTIAL: tl.constexpr, SHARES: tl.constexpr, ALIKE: tl.constexpr,
               DOCUMENTS: tl.constexpr, RATIO: tl.constexpr, HEADS_FIRST: tl.constexpr, QK: tl.constexpr,
               V: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr):  # fmt: skip
    """Gradients of one tile of keys from one head of queries, or a share of them, written once by one program.

    Grid: parts of the lists of keys x (batch x heads), the longest first (``src.attention.tiled.parts``). Shares are
    (batch x heads, shares, BN, padded width) float32.
    """
    number, group = _place(count, groups, HEADS_FIRST)
    batch, head = group // heads, group % heads
    own = _layout_of(heads_of, head, ALIKE)
    part = parts + (own * count + number) * 4
    begin, end = tl.load(part + 1), tl.load(part + 2)
    j = _keys_of(table + own * key_places, tl.load(part), IN_ORDER, BN)
    there = j < keys
    q = Rows(head_of(q, batch, head), queries_of, batch, head)
    dout = Rows(head_of(dout, batch, head), upstream_of, batch, head)
    lse, delta = head_of(lse, batch, head), head_of(delta, batch, head)
    if DOCUMENTS:
        first = head_of(first, batch, head * 0)
    rows = load_rows(head_of(k, batch, head // RATIO), 0, j, there, True, QK)
    values = load_rows(head_of(v, batch, head // RATIO), 0, j, there, True, V)
    sum_k = tl.zeros((BN, padded(QK)), tl.float32)
    sum_v = tl.zeros((BN, padded(V)), tl.float32)
    sum_k, sum_v = _over_queries(
        sum_k, sum_v, rows, values, q, lse, dout, delta, tiles, places, masks, first, j, begin, end, n, scale,
        PARTIAL, DOCUMENTS, QK, V, BM, BN,
    )  # fmt: skip
    sum_k *= scale * LN2
    if SHARES:
        share = tl.load(part + 3)
        if share >= 0:
            place = (group.to(tl.int64) * shares + share) * BN + tl.arange(0, BN)[:, None]
            tl.store(dk_shares + place * padded(QK) + tl.arange(0, padded(QK))[None, :], sum_k)
            tl.store(dv_shares + place * padded(V) + tl.arange(0, padded(V))[None, :], sum_v)
        else:
            store_rows(head_of(dk, batch, head), sum_k, 0, j, there, QK)
            store_rows(head_of(dv, batch, head), sum_v, 0, j, there, V)
    else:
        store_rows(head_of(dk, batch, head), sum_k, 0, j, there, QK)
        store_rows(head_of(dv, batch, head), sum_v, 0, j, there, V)


@triton.jit
def tiled_key_sums(dx, all_shares, heads_of, table, sums, keys, key_places, count, shares, heads, groups,
                   WIDTH: tl.constexpr, ALIKE: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr):  # fmt: skip
    """Add the shares of a gradient, one after the other. Grid: tiles with shares x (batch x heads)."""
    group = tl.program_id(0) % groups
    batch, head = group // heads, group % heads
    own = _layout_of(heads_of, head, ALIKE)
    row = sums + (own * count + tl.program_id(0) // groups) * 3
    first, some = tl.load(row + 1), tl.load(row + 2)
    j = _keys_of(table + own * key_places, tl.load(row), False, BN)
    total = tl.zeros((BN, padded(WIDTH)), tl.float32)
    for share in range(first, first + some):
        place = (group.to(tl.int64) * shares + share) * BN + tl.arange(0, BN)[:, None]
        total += tl.load(all_shares + place * padded(WIDTH) + tl.arange(0, padded(WIDTH))[None, :])
    there = j < keys * tl.minimum(some, 1)  # rows that fill up have no shares
    store_rows(head_of(dx, batch, head), total, 0, j, there, WIDTH)
