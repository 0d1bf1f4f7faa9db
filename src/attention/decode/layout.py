"""Where a head keeps the keys that later queries can still reach: slots of a cache of fixed size.

What a query may see shrinks as decoding goes on, so most patterns need far less than one slot a position:

    key set             slots of a head                        what query t reads
    Dense               n, slot j                              slots 0 .. t
    Strided, Column     n, slot j                              the last l (Column: 1), then t - l, t - 2l, ...
    Window              a ring of l + 1, slot j mod (l + 1)    the whole ring
    OwnBlock            l, slot l - 1 - j mod l                l - 1 - t mod l .. l - 1
    Fixed               the same l, and c for each block       l - 1 - t mod l .. l - 1 + c floor(t/l)
    Summary             c for each block                       the cells up to t
    any other           n, slot j                              slots 0 .. t that ``sees`` keeps

Heads that share keys and values (grouped-query attention) share slots where they keep the same keys. Heads with unlike
sub-blocks of ``Fixed`` or ``Summary`` keep the cells of each.

The own block is stored backwards so that with the cells behind it a query of ``Fixed`` reads one contiguous run.
Positions and slots are plain integers here; ``src/attention/triton/decode.py`` does the same arithmetic on the GPU.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property
from itertools import groupby
from typing import NamedTuple

import torch
from torch import Tensor

from src.attention.key_sets import Column, Dense, Fixed, KeySet, OwnBlock, Strided, Summary, Window


class Kind(IntEnum):
    """How a head's slots are used; the numbers are those of the kernel."""

    ROW = 0  # one slot a position
    RING = 1  # the latest positions
    BLOCK = 2  # the own block, backwards, and the cells of earlier blocks
    CELLS = 3  # cells alone


class Reads(NamedTuple):
    """The slots that one query reads: a contiguous run, and every ``step``-th slot of a range; both may be empty."""

    run: range
    column: range


@dataclass(frozen=True)
class HeadLayout:
    """The slots of one head.

    Args:
        kind: how they are used.
        capacity: their number.
        stride: ``l``; 1 where the key set has none.
        reach: of ROW, the latest positions that are read as a run; of RING, its slots.
        columns: of ROW, whether every ``l``-th earlier position is read too.
        summary: ``c``, cells a block.
        first_cell: first cell within a block.
        keys: of ROW, the set whose ``sees`` says which of the slots read count; None: all.
    """

    kind: Kind
    capacity: int
    stride: int = 1
    reach: int = 0
    columns: bool = False
    summary: int = 0
    first_cell: int = 0
    keys: KeySet | None = None

    @property
    def places(self) -> tuple[Kind, int, tuple[int, ...]]:
        """What decides which keys are kept and where: heads that share keys and are alike in it share slots."""
        if self.kind in (Kind.ROW, Kind.RING):
            return self.kind, self.capacity, ()
        return self.kind, self.capacity, (self.stride, self.summary, self.first_cell)

    def writes(self, t: int) -> list[int]:
        """Slots that the key of position ``t`` goes to: none, one or two."""
        block, place = divmod(t, self.stride)
        if self.kind == Kind.ROW:
            return [t]
        if self.kind == Kind.RING:
            return [t % self.reach]
        cell = self._cell_slot(block, place)
        cells = [] if cell is None else [cell]
        return [self.stride - 1 - place, *cells] if self.kind == Kind.BLOCK else cells

    def reads(self, t: int) -> Reads:
        """Slots that the query of position ``t`` reads, its own key included where it sees it."""
        block, place = divmod(t, self.stride)
        column = range(0)
        if self.kind == Kind.ROW:
            run = range(max(0, t - self.reach + 1), t + 1)
            column = range(place, place + block * self.stride, self.stride) if self.columns else column
        elif self.kind == Kind.RING:
            run = range(min(t + 1, self.reach))
        elif self.kind == Kind.BLOCK:
            run = range(self.stride - 1 - place, self.stride + self.summary * block)
        else:
            run = range(self.summary * block + min(max(place - self.first_cell + 1, 0), self.summary))
        return Reads(run, column)

    def kept(self, n: int) -> tuple[Tensor, Tensor]:
        """Positions before ``n`` that some query from ``n`` on can see, and their slots; int64 of equal length."""
        first = {Kind.ROW: 0, Kind.RING: max(0, n - self.reach), Kind.BLOCK: n - n % self.stride}.get(self.kind, n)
        recent = torch.arange(first, n)
        if self.kind == Kind.ROW:
            return recent, recent
        if self.kind == Kind.RING:
            return recent, recent % self.reach
        cells = torch.arange(n)
        cell = cells % self.stride - self.first_cell
        slots = self._first_cell_slot() + self.summary * (cells // self.stride) + cell
        inside = (cell >= 0) & (cell < self.summary) & (slots < self.capacity)
        own = self.stride - 1 - recent % self.stride
        return torch.cat([recent, cells[inside]]), torch.cat([own, slots[inside]])

    def _first_cell_slot(self) -> int:
        return self.stride if self.kind == Kind.BLOCK else 0

    def _cell_slot(self, block: int, place: int) -> int | None:
        cell = place - self.first_cell
        slot = self._first_cell_slot() + self.summary * block + cell
        return slot if 0 <= cell < self.summary and slot < self.capacity else None


def head_layout(keys: KeySet, n: int) -> HeadLayout:
    """Plan the slots of one head for sequences of up to ``n`` positions."""
    match keys:
        case Dense():
            return HeadLayout(Kind.ROW, n, reach=n)
        case Strided(stride):
            return HeadLayout(Kind.ROW, n, stride, reach=stride, columns=True)
        case Column(stride):
            return HeadLayout(Kind.ROW, n, stride, reach=1, columns=True)
        case Window(stride):
            ring = min(stride + 1, n)
            return HeadLayout(Kind.RING, ring, reach=ring)
        case OwnBlock(stride):
            return HeadLayout(Kind.BLOCK, stride, stride)
        case Fixed(stride, summary):
            # the last block's own cells are never read as cells
            capacity = stride + summary * (-(-n // stride) - 1)
            return HeadLayout(Kind.BLOCK, capacity, stride, summary=summary, first_cell=keys.first_cell)
        case Summary(stride, summary):
            capacity = summary * -(-n // stride)
            return HeadLayout(Kind.CELLS, capacity, stride, summary=summary, first_cell=keys.first_cell)
    return HeadLayout(Kind.ROW, n, reach=n, keys=keys)


class Store(NamedTuple):
    """Slots that neighbouring heads read together: they share keys, and keep them in the same places."""

    start: int  # heads of queries
    stop: int
    key_head: int
    slot: int  # first of the store in the layer's cache


class Group(NamedTuple):
    """Neighbouring heads whose slots are used alike but for the place of their cells; every store has equally many."""

    start: int
    stop: int
    stores: int
    slot: int  # first slot of the group in the layer's cache


@dataclass(frozen=True)
class LayerLayout:
    """The slots of all heads of one layer, one store after the other.

    Args:
        heads: the layout of every head of the queries.
        ratio: so many neighbouring heads share keys and values.
    """

    heads: tuple[HeadLayout, ...]
    ratio: int = 1

    @cached_property
    def stores(self) -> tuple[Store, ...]:
        """The stores in the order of their slots: one a head of keys, or more where its heads keep unlike keys."""
        found: list[Store] = []
        slot = 0
        for (key_head, places), run in groupby(
            range(len(self.heads)), key=lambda h: (h // self.ratio, self.heads[h].places)
        ):
            heads = list(run)
            found.append(Store(heads[0], heads[-1] + 1, key_head, slot))
            slot += places[1]
        return tuple(found)

    @property
    def slots(self) -> int:
        """Slots of the whole layer."""
        return sum(self.heads[store.start].capacity for store in self.stores)

    @property
    def offsets(self) -> list[int]:
        """First slot of each head of the queries."""
        return [store.slot for store in self.stores for _ in range(store.start, store.stop)]

    @cached_property
    def groups(self) -> tuple[Group, ...]:
        """Runs of heads that one tensor operation can serve."""
        offsets = self.offsets

        def alike(index: int) -> tuple[object, ...]:
            head = self.heads[index]
            return head.kind, head.capacity, head.stride, head.reach, head.columns, head.summary, head.keys is None

        parts = [list(run) for _, run in groupby(range(len(self.heads)), key=lambda h: (offsets[h], alike(h)))]
        runs = [list(run) for _, run in groupby(parts, key=lambda part: (len(part), alike(part[0])))]
        return tuple(Group(run[0][0], run[-1][-1] + 1, len(run), offsets[run[0][0]]) for run in runs)

    def most_reads(self, n: int) -> int:
        """Upper bound of the slots that any head's query reads, for sequences of up to ``n`` positions."""
        return max(
            min(head.reach, n) + (-(-n // head.stride) if head.columns else 0)
            if head.kind == Kind.ROW
            else head.capacity
            for head in self.heads
        )


def layer_layout(layer: tuple[KeySet, ...], n: int, kv_heads: int | None = None) -> LayerLayout:
    """Plan the cache of one layer for sequences of up to ``n`` positions; ``kv_heads`` as ``LayerCache`` takes it."""
    return LayerLayout(tuple(head_layout(keys, n) for keys in layer), len(layer) // (kv_heads or len(layer)))
