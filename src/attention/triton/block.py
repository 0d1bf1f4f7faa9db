# mypy: disable-error-code="no-untyped-def"
"""Fixed attention (section 4.3): the own block (OWN) and the summary cells (SUMMARY a block, 0 for none).

In their own order, block after block, the summary cells are a short sequence with causal attention, and a tile of
them is a few runs of neighbouring rows: it is loaded in place by its computed rows, with no gathered copy.

    key set          OWN    SUMMARY   keys of query i
    OwnBlock(l) yes    0         j in the block of i
    Summary(l, c)    no     c         every cell j <= i
    Fixed(l, c)      yes    c         the block of i and the cells of earlier blocks, in one online softmax
"""

from __future__ import annotations

import triton
import triton.language as tl

from src.attention.triton.steps import (
    FP32_PRODUCTS,
    LN2,
    begin_queries,
    end_queries,
    head_of,
    load_rows,
    padded,
    see_keys,
    see_queries,
    shared_of,
    store_numbers,
    store_rows,
    use_scores,
)


@triton.jit
def _first_cell(head, first_sub, sub_step, REPEAT: tl.constexpr, STRIDE: tl.constexpr, SUMMARY: tl.constexpr):
    """First summary cell within a block for one head of the group; 0 where there are none."""
    cell = head * 0
    if REPEAT > 1:
        head //= REPEAT
    if SUMMARY > 0:
        cell = STRIDE - ((first_sub + head * sub_step) % (STRIDE // SUMMARY) + 1) * SUMMARY
    return cell


@triton.jit
def _cell_rows(start, first, BN: tl.constexpr, STRIDE: tl.constexpr, SUMMARY: tl.constexpr):
    """Rows of the cells ``start`` to ``start + BN - 1``, ``start`` a multiple of BN, as (origin, local)."""
    cell = tl.arange(0, BN)
    if BN % SUMMARY == 0 or SUMMARY % BN == 0:  # the whole tile moves by one number
        origin = start // SUMMARY * STRIDE + start % SUMMARY + first
    else:
        origin = first
        cell += start
    return origin, cell // SUMMARY * STRIDE + cell % SUMMARY


@triton.jit
def _cells_up_to(i, first, STRIDE: tl.constexpr, SUMMARY: tl.constexpr):
    """Count the cells j <= i."""
    return i // STRIDE * SUMMARY + tl.minimum(tl.maximum(i % STRIDE - first + 1, 0), SUMMARY)


@triton.jit
def _keep(i, j, first, STRIDE: tl.constexpr, SUMMARY: tl.constexpr):
    """Which pairs Block or Fixed keep, for positions of any blocks."""
    keep = (j <= i) & (j // STRIDE == i // STRIDE)
    if SUMMARY > 0:
        keep = keep | ((j <= i) & (j % STRIDE >= first) & (j % STRIDE < first + SUMMARY))
    return keep


@triton.jit
def _extent(start, n, first, OWN: tl.constexpr, STRIDE: tl.constexpr, SUMMARY: tl.constexpr, BM: tl.constexpr):
    """Cells that a tile of queries sees, how many of them every query of it sees, and where its own block begins."""
    seen = start * 0
    seen_by_all = start * 0
    if OWN:
        if SUMMARY > 0:
            seen = start // STRIDE * SUMMARY
        seen_by_all = seen
    else:
        seen = _cells_up_to(tl.minimum(start + BM, n) - 1, first, STRIDE, SUMMARY)
        seen_by_all = _cells_up_to(start, first, STRIDE, SUMMARY)
    return seen, seen_by_all, start // STRIDE * STRIDE


@triton.jit
def _key_tile(t, cell_tiles, seen, begin, n, first, OWN: tl.constexpr, STRIDE: tl.constexpr, SUMMARY: tl.constexpr,
              BN: tl.constexpr):  # fmt: skip
    """Rows of the t-th tile of keys, and which are there: tiles of cells first, then the own block in one go."""
    local = tl.arange(0, BN)
    j = begin + (t - cell_tiles) * BN + local
    valid = j < n
    if SUMMARY > 0:
        cell = t * BN + local
        row = cell // SUMMARY * STRIDE + first + cell % SUMMARY
        if OWN:
            valid = tl.where(t < cell_tiles, cell < seen, valid)
            j = tl.where(t < cell_tiles, row, j)
        else:
            valid = cell < seen
            j = row
    return j, valid


@triton.jit
def _over_keys(acc, top, total, q, dout, k, v, start, n, first, scale, OWN: tl.constexpr, GRAD: tl.constexpr,
               STRIDE: tl.constexpr, SUMMARY: tl.constexpr, QK: tl.constexpr, V: tl.constexpr, BM: tl.constexpr,
               BN: tl.constexpr):  # fmt: skip
    """A tile of queries sees its cells and its own block.

    One loop over the cells that all of them see, with no mask; one, short, over the other cells and the own block.
    """
    i = start + tl.arange(0, BM)
    ONE_BLOCK: tl.constexpr = STRIDE % BM == 0 and STRIDE % BN == 0
    seen, seen_by_all, begin = _extent(start, n, first, OWN, STRIDE, SUMMARY, BM)
    cell_tiles = tl.cdiv(seen, BN)
    tiles = cell_tiles
    if OWN:
        tiles += tl.cdiv(tl.minimum(start + BM, n) - begin, BN)
    whole_tiles = seen_by_all * 0
    if SUMMARY > 0:
        whole_tiles = seen_by_all // BN
        for t in range(0, whole_tiles):
            origin, local = _cell_rows(t * BN, first, BN, STRIDE, SUMMARY)
            acc, top, total = see_keys(
                acc, top, total, q, dout, k, v, origin, local, None, None, scale, False, False, GRAD, QK, V
            )
    for t in range(whole_tiles, tiles):
        j, valid = _key_tile(t, cell_tiles, seen, begin, n, first, OWN, STRIDE, SUMMARY, BN)
        keys = load_rows(k, 0, j, valid, True, QK)
        scores = tl.dot(q, tl.trans(keys), input_precision=FP32_PRODUCTS)
        values = load_rows(v, 0, j, valid, True, V)
        if OWN and not ONE_BLOCK:  # a tile spans blocks
            keep = _keep(i[:, None], j[None, :], first, STRIDE, SUMMARY) & valid[None, :]
        else:
            keep = tl.where(valid, j, n)[None, :] <= i[:, None]
        scores = tl.where(keep, scores, float("-inf"))
        acc, top, total = use_scores(acc, top, total, scores, dout, keys, values, scale, GRAD)
    return acc, top, total


@triton.jit
def block_queries(q, k, v, out, lse, dout, delta, dq, n, scale, heads, groups, first_sub, sub_step,
                  GRAD: tl.constexpr, OWN: tl.constexpr, STRIDE: tl.constexpr, SUMMARY: tl.constexpr,
                  REPEAT: tl.constexpr, RATIO: tl.constexpr, SHIFT: tl.constexpr, QK: tl.constexpr, V: tl.constexpr,
                  BM: tl.constexpr, BN: tl.constexpr):  # fmt: skip
    """One tile of queries: forward writes out and lse; backward (GRAD) reads them and writes delta and dq.

    Grid: tiles x (batch x heads), the last tiles first since they see the most summary cells.
    """
    tile = tl.cdiv(n, BM) - 1 - tl.program_id(0) // groups
    group = tl.program_id(0) % groups
    batch, head = group // heads, group % heads
    first = _first_cell(head, first_sub, sub_step, REPEAT, STRIDE, SUMMARY)
    q = head_of(q, batch, head)
    k, v = shared_of(k, batch, head, RATIO, SHIFT), shared_of(v, batch, head, RATIO, SHIFT)
    out, lse = head_of(out, batch, head), head_of(lse, batch, head)
    if GRAD:
        dout = head_of(dout, batch, head)
    start = tile * BM
    local = tl.arange(0, BM)
    valid = start + local < n
    queries, upstream, acc, top, total = begin_queries(q, out, lse, dout, start, local, valid, GRAD, QK, V, BM)
    acc, top, total = _over_keys(
        acc, top, total, queries, upstream, k, v, start, n, first, scale, OWN, GRAD, STRIDE, SUMMARY, QK, V, BM, BN
    )
    if GRAD:
        store_numbers(head_of(delta, batch, head), total, start, local, valid)
        store_rows(head_of(dq, batch, head), acc * (scale * LN2), start, local, valid, QK)
    else:
        end_queries(out, lse, acc, top, total, start, local, valid, False, V)


@triton.jit
def _cells_seen(dk, dv, keys, values, q, lse, dout, delta, j, n, first_row, last_row, scale, QK: tl.constexpr,
                V: tl.constexpr, BM: tl.constexpr):  # fmt: skip
    """A tile of cells is seen by every query from the first cell on; those up to the last cell pay for a mask."""
    local = tl.arange(0, BM)
    begin = first_row // BM * BM
    all_seen = tl.minimum(tl.cdiv(last_row, BM) * BM, tl.cdiv(n, BM) * BM)
    for query in range(begin, all_seen, BM):
        valid = query + local < n
        keep = j[:, None] <= (query + local)[None, :]
        dk, dv = see_queries(
            dk, dv, keys, values, q, None, lse, dout, delta, query, local, valid, keep, scale, True, True, QK, V
        )
    for query in range(tl.maximum(begin, all_seen), n, BM):
        valid = query + local < n
        dk, dv = see_queries(
            dk, dv, keys, values, q, None, lse, dout, delta, query, local, valid, None, scale, True, False, QK, V
        )
    return dk, dv


@triton.jit
def _block_seen(dk, dv, keys, values, q, lse, dout, delta, start, n, scale, STRIDE: tl.constexpr, QK: tl.constexpr,
                V: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr):  # fmt: skip
    """A tile of keys is seen by the later queries of its own block (or blocks)."""
    local = tl.arange(0, BM)
    j = start + tl.arange(0, BN)
    last_block = (tl.minimum(start + BN, n) - 1) // STRIDE
    for query in range(start // BM * BM, tl.minimum((last_block + 1) * STRIDE, n), BM):
        i = query + local
        keep = _keep(i[None, :], j[:, None], 0, STRIDE, 0)
        dk, dv = see_queries(
            dk, dv, keys, values, q, None, lse, dout, delta, query, local, i < n, keep, scale, True, True, QK, V
        )
    return dk, dv


@triton.jit
def block_keys(q, k, v, lse, dout, delta, dk, dv, n, scale, heads, groups, first_sub, sub_step, cell_tiles,
               OWN: tl.constexpr, STRIDE: tl.constexpr, SUMMARY: tl.constexpr, REPEAT: tl.constexpr,
               RATIO: tl.constexpr, SHIFT: tl.constexpr, QK: tl.constexpr, V: tl.constexpr, BM: tl.constexpr,
               BN: tl.constexpr):  # fmt: skip
    """Gradients of one tile of keys, written once by one program: no atomics, the same bits every time.

    Where heads of queries share keys, each has dk and dv of its own; the caller adds them up.

    Grid: (tiles of cells, then tiles of the sequence) x (batch x heads). The first kind writes the cells, seen by
    every later query, the heaviest first; the second writes all other keys (with no OWN, zeros).
    """
    tile = tl.program_id(0) // groups
    group = tl.program_id(0) % groups
    batch, head = group // heads, group % heads
    first = _first_cell(head, first_sub, sub_step, REPEAT, STRIDE, SUMMARY)
    q = head_of(q, batch, head)
    k, v = shared_of(k, batch, head, RATIO, SHIFT), shared_of(v, batch, head, RATIO, SHIFT)
    lse, dout, delta = head_of(lse, batch, head), head_of(dout, batch, head), head_of(delta, batch, head)
    sum_k = tl.zeros((BN, padded(QK)), tl.float32)
    sum_v = tl.zeros((BN, padded(V)), tl.float32)
    if tile < cell_tiles:
        if SUMMARY > 0:
            cell = tile * BN + tl.arange(0, BN)
            j = cell // SUMMARY * STRIDE + first + cell % SUMMARY
            valid = j < n
            first_row = tile * BN // SUMMARY * STRIDE + tile * BN % SUMMARY + first
            last_row = (tile * BN + BN - 1) // SUMMARY * STRIDE + (tile * BN + BN - 1) % SUMMARY + first
            keys = load_rows(k, 0, j, valid, True, QK)
            values = load_rows(v, 0, j, valid, True, V)
            sum_k, sum_v = _cells_seen(
                sum_k, sum_v, keys, values, q, lse, dout, delta, j, n, first_row, last_row, scale, QK, V, BM
            )
            store_rows(head_of(dk, batch, head), sum_k * (scale * LN2), 0, j, valid, QK)
            store_rows(head_of(dv, batch, head), sum_v, 0, j, valid, V)
    else:
        start = (tile - cell_tiles) * BN
        local = tl.arange(0, BN)
        valid = start + local < n
        if OWN:
            keys = load_rows(k, start, local, valid, True, QK)
            values = load_rows(v, start, local, valid, True, V)
            sum_k, sum_v = _block_seen(
                sum_k, sum_v, keys, values, q, lse, dout, delta, start, n, scale, STRIDE, QK, V, BM, BN
            )
        if SUMMARY > 0:
            cell = (start + local) % STRIDE
            valid = valid & ((cell < first) | (cell >= first + SUMMARY))
        store_rows(head_of(dk, batch, head), sum_k * (scale * LN2), start, local, valid, QK)
        store_rows(head_of(dv, batch, head), sum_v, start, local, valid, V)
