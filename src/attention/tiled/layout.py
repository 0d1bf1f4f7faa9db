"""Which tiles of queries and keys a key set keeps: lists made once from ``sees``, in memory that grows with them.

A tile is BQ neighbouring queries by BK keys. Keys that far more tiles of queries see than the others do (summary cells,
global tokens) are hubs: they are put side by side, so that their tiles are full. A *full* tile keeps all its pairs, and
all its rows and places are taken. Another one has a mask of BQ x BK bits, and equal masks are stored once.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from src.attention.key_sets import KeySet
from src.attention.tiled.masks import BITS, packed

HUB = 4  # a hub is seen by so many times as many tiles of queries as the median key
FEWEST = 8  # and by so many at least


@dataclass(frozen=True)
class Size:
    """Queries and keys of a tile; ``keys`` is a multiple of 32."""

    queries: int
    keys: int


@dataclass(frozen=True)
class Lists:
    """For every tile of one side, the tiles of the other that it meets: full ones first, then those with a mask.

    Args:
        start: (tiles + 1,) int32, where the list of each tile begins.
        full: (tiles,) int32, how many of its entries are full.
        tiles: (entries,) int32, the tile of the other side.
        masks: (entries,) int32, the mask's place; -1 where the tile is full.
    """

    start: Tensor
    full: Tensor
    tiles: Tensor
    masks: Tensor


@dataclass(frozen=True)
class Layout:
    """The tiles of one key set.

    Args:
        size: of a tile.
        order: (key tiles * size.keys,) int32, the position of each key in the order of the tiles; places that are
            filled up hold the number of keys.
        by_query: for every tile of queries its tiles of keys.
        by_key: for every tile of keys its tiles of queries.
        masks: (masks, size.queries, size.keys / 32) int32, bit j % 32 of word j // 32 tells of key j.
    """

    size: Size
    order: Tensor
    by_query: Lists
    by_key: Lists
    masks: Tensor

    @property
    def entries(self) -> int:
        """Tiles that are computed."""
        return len(self.by_query.tiles)

    @property
    def scores(self) -> int:
        """Scores that are computed, kept or not."""
        return self.entries * self.size.queries * self.size.keys

    def cost(self, full: float, masked: float, query: float) -> float:
        """What they cost, given what a score costs in a full tile and in one with a mask, and a query beside them."""
        share = float(self.by_query.full.sum()) / max(1, self.entries)
        queries = len(self.by_query.full) * self.size.queries
        return self.scores * (share * full + (1 - share) * masked) + queries * query


@lru_cache(maxsize=256)
def layout(keys: KeySet, queries: int, length: int, offset: int, size: Size, device: torch.device) -> Layout:
    """Make the lists of one key set; made once for the same arguments.

    Args:
        keys: what a query sees; of that, keys behind the query are left out.
        queries: how many queries there are.
        length: how many keys there are.
        offset: position of the first query.
        size: of a tile.
        device: where the lists live, and where ``sees`` is computed.

    Returns:
        The lists. Memory while they are made: a few times ``size.queries`` x ``length`` bytes.
    """
    with torch.no_grad():
        return _Maker(keys, queries, length, offset, size, device).made()


class _Maker:
    """Makes a layout, one tile of queries after the other."""

    def __init__(self, keys: KeySet, queries: int, length: int, offset: int, size: Size, device: torch.device) -> None:
        self.keys, self.queries, self.length, self.offset, self.size = keys, queries, length, offset, size
        self.device = device
        self.found: dict[int, int] = {}  # place of a mask by its hash
        self.masks: list[Tensor] = []
        words = size.queries * size.keys // BITS
        drawn = torch.Generator().manual_seed(1)
        self.hash = torch.randint(-(2**62), 2**62, (words,), generator=drawn).mul_(2).add_(1).to(device)

    def made(self) -> Layout:
        order = self._order()
        by_tile = order.view(-1, self.size.keys)
        reach = by_tile.amin(1), by_tile.masked_fill(by_tile == self.length, -1).amax(1)
        entries = [self._entries(tile, i, by_tile, *reach) for tile, i in self._query_tiles()]
        own, other, masks = (torch.cat(column) for column in zip(*entries, strict=True))
        return Layout(
            self.size,
            order.int(),
            _lists(own, other, masks, len(entries)),
            _lists(other, own, masks, len(by_tile)),
            torch.stack(self.masks) if self.masks else torch.zeros(
                (1, self.size.queries, self.size.keys // BITS), dtype=torch.int32, device=self.device
            ),
        )  # fmt: skip

    def _query_tiles(self) -> Iterator[tuple[int, Tensor]]:
        for tile in range(-(-self.queries // self.size.queries)):
            first = tile * self.size.queries
            last = min(first + self.size.queries, self.queries)
            yield tile, torch.arange(self.offset + first, self.offset + last, device=self.device)

    def _sees(self, i: Tensor, j: Tensor) -> Tensor:
        """Which of the keys ``j`` the queries ``i`` see, (len(i), len(j))."""
        seen = self.keys.sees(i[:, None], j[None, :])
        return torch.as_tensor(seen, device=self.device) & (j[None, :] <= i[:, None]) & (j < self.length)

    def _order(self) -> Tensor:
        """Put hubs in front, if there are any, each part filled up to whole tiles."""
        reach = torch.zeros(self.length, dtype=torch.int64, device=self.device)
        for _, i in self._query_tiles():
            for first, last in self._ranges(i):
                reach[first:last] += self._sees(i, torch.arange(first, last, device=self.device)).any(0)
        seen = reach[reach > 0]
        hub = reach >= max(FEWEST, HUB * int(seen.median()) if len(seen) else 0)
        if not hub.any():
            return self._filled(torch.arange(self.length, device=self.device))
        return torch.cat([self._filled(hub.nonzero()[:, 0]), self._filled((~hub).nonzero()[:, 0])])

    def _ranges(self, i: Tensor) -> list[tuple[int, int]]:
        """Where keys of the queries ``i`` may be."""
        last = min(int(i[-1]) + 1, self.length)
        given = self.keys.key_ranges(int(i[0]), int(i[-1]) + 1)
        return [(max(0, first), min(stop, last)) for first, stop in given if max(0, first) < min(stop, last)]

    def _filled(self, positions: Tensor) -> Tensor:
        return torch.nn.functional.pad(positions, (0, -len(positions) % self.size.keys), value=self.length)

    def _entries(
        self, tile: int, i: Tensor, by_tile: Tensor, lowest: Tensor, highest: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Give the tiles of keys that the queries ``i`` of a tile meet: the tile itself, theirs, places of masks or -1.

        Args:
            tile: of the queries.
            i: their positions.
            by_tile: (tiles, keys) positions of the keys.
            lowest: (tiles,) of these positions.
            highest: likewise.
        """
        reached = torch.zeros_like(lowest, dtype=torch.bool)
        for first, last in self._ranges(i):
            reached |= (lowest < last) & (highest >= first)
        near = reached.nonzero()[:, 0]
        seen = self._sees(i, by_tile[near].flatten()).view(len(i), len(near), self.size.keys)
        some = seen.any(2).any(0)
        near, seen = near[some], seen[:, some].transpose(0, 1)
        missing = self.size.queries - len(i)  # rows behind the last query
        whole = seen.all(2).all(1) & (missing == 0)
        bits = seen[~whole]
        if missing:
            bits = torch.nn.functional.pad(bits, (0, 0, 0, missing))
        masks = torch.full_like(near, -1)
        masks[~whole] = self._places(packed(bits))
        return torch.full_like(near, tile), near, masks

    def _places(self, words: Tensor) -> Tensor:
        """Where the masks are stored; those that are new are stored."""
        hashes = (words.flatten(1) * self.hash).sum(1).tolist()
        for mask, value in zip(words, hashes, strict=True):
            if value not in self.found:
                self.found[value] = len(self.masks)
                self.masks.append(mask)
        return torch.tensor([self.found[value] for value in hashes], dtype=torch.int64, device=self.device)


def _lists(own: Tensor, other: Tensor, masks: Tensor, tiles: int) -> Lists:
    """Sort entries by their own tile, full ones first, then by the other tile."""
    width = int(other.max()) + 1 if len(other) else 1
    by = ((own * 2 + (masks >= 0)) * width + other).argsort()
    count = torch.bincount(own, minlength=tiles)
    start = torch.nn.functional.pad(count.cumsum(0), (1, 0))
    full = torch.bincount(own[masks < 0], minlength=tiles)
    return Lists(start.int(), full.int(), other[by].int(), masks[by].int())
