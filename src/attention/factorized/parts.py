"""Which tiles make up each key set (section 4.3); every kept pair lies in exactly one tile.

``n`` is the sequence length, ``l`` the stride and ``c`` the summary width; the sequence is ``n // l`` whole blocks and
a tail of ``n % l`` positions. ``budget`` bounds the scores that one tile may hold for one head, save that a tile
holds at least one row of queries and one key.

    Window(l)      own block, and the previous block from position i - l on
    Column(l)      the sequence as (n/l, l), read down the columns, diagonal included
    Strided(l)     own block, previous block from i - l + 1 on, columns strictly below the diagonal
    OwnBlock(l)    own block
    Summary(l, c)  the cells of earlier blocks, and those of the own block up to the query
    Fixed(l, c)    own block, and the cells of earlier blocks
"""

from __future__ import annotations

from collections.abc import Iterator

from src.attention.factorized.tiles import Rows, Tile
from src.attention.key_sets import Column, Fixed, KeySet, OwnBlock, Strided, Summary, Window

# Rows of queries in one tile: enough for the matrix product to be efficient, few enough that a triangle, of which half
# the scores are computed in vain, is a small part of the whole.
MAX_ROWS = 128


def tiles_of(keys: KeySet, n: int, budget: int) -> Iterator[Tile]:
    """Cut a key set into tiles.

    Args:
        keys: any key set but `Dense`.
        n: sequence length.
        budget: scores that a tile may hold for one head.

    Yields:
        Tiles that hold every pair of ``keys.pairs(n)`` exactly once.

    Raises:
        ValueError: a key set that has no factorization.
    """
    match keys:
        case Window(stride):
            yield from own_blocks(n, stride, budget)
            yield from previous_blocks(n, stride, budget, first=0)
        case Column(stride):
            yield from columns(n, stride, budget, diagonal=True)
        case Strided(stride):
            yield from own_blocks(n, stride, budget)
            yield from previous_blocks(n, stride, budget, first=1)
            yield from columns(n, stride, budget, diagonal=False)
        case OwnBlock(stride):
            yield from own_blocks(n, stride, budget)
        case Summary(stride, cells):
            yield from earlier_cells(n, stride, cells, budget)
            yield from own_cells(n, stride, cells, budget)
        case Fixed(stride, cells):
            yield from own_blocks(n, stride, budget)
            yield from earlier_cells(n, stride, cells, budget)
        case _:
            raise ValueError(f"backend torch factorizes sparse key sets only, found {keys.name}")


def own_blocks(n: int, stride: int, budget: int) -> Iterator[Tile]:
    """Every query against the keys of its own block up to itself."""
    blocks, rest = divmod(n, stride)
    for a, b in _runs(blocks, budget // (min(stride, MAX_ROWS) * stride)):
        yield from _triangle(Rows(a * stride, stride, 1, b - a, stride), budget, diagonal=True)
    if rest:
        yield from _triangle(Rows(blocks * stride, rest), budget, diagonal=True)


def previous_blocks(n: int, stride: int, budget: int, first: int) -> Iterator[Tile]:
    """Row ``r`` of every block against the keys of the block before it from row ``r + first`` on."""
    blocks, rest = divmod(n, stride)
    pairs = [(a, b, stride) for a, b in _runs(blocks - 1, budget // (min(stride, MAX_ROWS) * stride))]
    if blocks and rest:
        pairs.append((blocks - 1, blocks, rest))
    for a, b, rows in pairs:
        for r, stop in _runs(rows, min(MAX_ROWS, budget // ((b - a) * stride))):
            if r + first < stride:
                queries = Rows((a + 1) * stride + r, stop - r, 1, b - a, stride)
                yield Tile(queries, Rows(a * stride + r + first, stride - r - first, 1, b - a, stride), "upper")


def columns(n: int, stride: int, budget: int, diagonal: bool) -> Iterator[Tile]:
    """Every query against the keys a whole number of strides before it, its own included if ``diagonal``."""
    blocks, rest = divmod(n, stride)
    if blocks:
        for a, b in _runs(stride, budget // (min(blocks, MAX_ROWS) * blocks)):
            yield from _triangle(Rows(a, blocks, stride, b - a, 1), budget, diagonal)
    count = blocks + diagonal
    if count:
        for a, b in _runs(rest, budget // count):
            yield Tile(Rows(blocks * stride + a, 1, stride, b - a, 1), Rows(a, count, stride, b - a, 1))


def earlier_cells(n: int, stride: int, cells: int, budget: int) -> Iterator[Tile]:
    """Every query against the summary cells of all blocks before its own: a growing prefix of the gathered cells."""
    for start in range(stride, n, stride):
        rows = min(stride, n - start)
        for r, stop in _runs(rows, MAX_ROWS):
            for a, b in _runs(start // stride * cells, budget // (stop - r)):
                yield Tile(Rows(start + r, stop - r), Rows(a, b - a), gathered=True)


def own_cells(n: int, stride: int, cells: int, budget: int) -> Iterator[Tile]:
    """Every query against the summary cells of its own block up to itself."""
    blocks, rest = divmod(n, stride)
    for a, b in _runs(blocks, budget // (stride * cells)):
        yield Tile(
            Rows(a * stride, stride, 1, b - a, stride), Rows(a * cells, cells, 1, b - a, cells), "cells", gathered=True
        )
    if rest:
        yield Tile(Rows(blocks * stride, rest), Rows(blocks * cells, cells), "cells", gathered=True)


def _triangle(rows: Rows, budget: int, diagonal: bool) -> Iterator[Tile]:
    """Causal attention of some rows among themselves, item by item, with or without the diagonal."""
    for r, stop in _runs(rows.count, min(MAX_ROWS, budget // (rows.batch * rows.count))):
        keys = stop if diagonal else stop - 1
        if keys:
            queries = Rows(rows.start + r * rows.step, stop - r, rows.step, rows.batch, rows.batch_step)
            yield Tile(queries, Rows(rows.start, keys, rows.step, rows.batch, rows.batch_step), "lower")


def _runs(count: int, size: int) -> Iterator[tuple[int, int]]:
    """Cut ``range(count)`` into runs of ``size``, at least one element each."""
    size = max(1, size)
    for start in range(0, count, size):
        yield start, min(start + size, count)
