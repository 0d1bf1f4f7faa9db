"""The layouts of all heads of a call, at the tile size that costs least."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor

from src.attention.key_sets import KeySet
from src.attention.tiled.layout import Layout, Lists, Size, layout
from src.attention.tiled.masks import packed, unpacked
from src.attention.tiled.parts import Parts, parted


class Choice(NamedTuple):
    """A size of tiles, what a score costs in a full tile and in one with a mask, and what a query costs beside them."""

    size: Size
    full: float = 1.0
    masked: float = 1.0
    query: float = 0.0


Sizes = tuple[Choice, ...]
OF_CPUS: Sizes = (Choice(Size(64, 64)),)


@dataclass(frozen=True)
class Plan:
    """The layouts of all heads.

    Args:
        size: of the tiles.
        layouts: those that differ.
        of_head: the place of each head's among them.
        length: how many keys there are.
    """

    size: Size
    layouts: tuple[Layout, ...]
    of_head: tuple[int, ...]
    length: int

    @property
    def scores(self) -> int:
        """Scores of one sequence that are computed, kept or not."""
        return sum(self.layouts[place].scores for place in self.of_head)

    def cost(self, choice: Choice) -> float:
        """What they cost in all."""
        return sum(self.layouts[place].cost(*choice[1:]) for place in self.of_head)


class Joined(NamedTuple):
    """The lists of all layouts, one behind the other.

    Args:
        start: (layouts, tiles + 1) int32, where the list of each tile begins.
        tiles: (entries,) int32, the tile of the other side.
        masks: (entries,) int32, the mask's place among those of all layouts; -1 where the tile is full.
    """

    start: Tensor
    tiles: Tensor
    masks: Tensor


@dataclass(frozen=True)
class Tables:
    """A plan as the kernels read it: the lists of all layouts one behind the other.

    Args:
        of_head: (H,) int32, the layout of each head.
        order: (layouts, places) int32, positions of keys.
        origins: (entries,) int32, for every entry of ``by_query`` the position of its tile's first key; None unless
            the keys of every tile are neighbours.
        by_query: for every tile of queries its tiles of keys.
        by_key: for every tile of keys its tiles of queries.
        parts: of the lists of ``by_key``.
        in_order: whether ``order`` is 0, 1, 2, ... for all heads; places behind the last key are filled up.
        filled: whether some places of the tiles of keys hold no key.
        masks: (masks, BQ, BK / 32) int32: bit j % 32 of word j // 32 of row i tells whether query i keeps key j.
    """

    of_head: Tensor
    order: Tensor
    origins: Tensor | None
    by_query: Joined
    by_key: Joined
    parts: Parts
    masks: Tensor
    in_order: bool
    filled: bool

    @property
    def alike(self) -> bool:
        """Whether all heads have one layout."""
        return len(self.order) == 1

    @cached_property
    def masks_of_keys(self) -> Tensor:
        """The masks transposed, (masks, BK, BQ / 32 rounded up) int32: a row holds the queries of a key."""
        parts = self.masks.split(1024)  # a bit takes eight bytes on its way
        return torch.cat([packed(unpacked(part).transpose(1, 2)) for part in parts])


def plan(
    layer: tuple[KeySet, ...], queries: int, length: int, offset: int, device: torch.device, sizes: Sizes = OF_CPUS
) -> Plan:
    """Lay out all heads.

    Args:
        layer: the key set of every head.
        queries: how many queries there are.
        length: how many keys.
        offset: position of the first query.
        device: where the lists live.
        sizes: of the tiles. That one is taken which costs least, of those that are no longer than the sequence, or else
            the last one.
    """
    different = tuple(dict.fromkeys(layer))
    return _plan(different, tuple(map(different.index, layer)), queries, length, offset, device, sizes)


@lru_cache(maxsize=256)
def _plan(
    layer: tuple[KeySet, ...], of_head: tuple[int, ...], queries: int, length: int, offset: int, device: torch.device,
    sizes: Sizes,
) -> Plan:  # fmt: skip
    fitting = [one for one in sizes if one.size.queries <= queries and one.size.keys <= length] or sizes[-1:]
    found = [
        (Plan(one.size, _layouts(layer, queries, length, offset, one.size, device), of_head, length), one)
        for one in fitting
    ]
    return min(found, key=lambda pair: pair[0].cost(pair[1]))[0]


def _layouts(
    layer: tuple[KeySet, ...], queries: int, length: int, offset: int, size: Size, device: torch.device
) -> tuple[Layout, ...]:
    return tuple(layout(keys, queries, length, offset, size, device) for keys in layer)


@lru_cache(maxsize=256)
def tables(found: Plan) -> Tables:
    """Write a plan as the kernels read it."""
    device = found.layouts[0].order.device
    places = max(len(one.order) for one in found.layouts)
    order = torch.stack([_padded(one.order, places, found.length) for one in found.layouts])
    shift = [0, *accumulate(len(one.masks) for one in found.layouts)]
    by_key = _joined([one.by_key for one in found.layouts], shift)
    return Tables(
        torch.tensor(found.of_head, dtype=torch.int32, device=device),
        order,
        _origins(found),
        _joined([one.by_query for one in found.layouts], shift),
        by_key,
        parted(by_key.start, len(found.of_head)),
        torch.cat([one.masks for one in found.layouts]),
        bool((order == torch.arange(places, device=device).clamp(max=found.length)).all()),
        places > found.length,
    )


def _origins(found: Plan) -> Tensor | None:
    every = []
    for one in found.layouts:
        by_tile = one.order.view(-1, found.size.keys)
        neighbours = by_tile[:, :1] + torch.arange(found.size.keys, device=by_tile.device)
        if not ((by_tile == neighbours) | (by_tile == found.length)).all():
            return None
        every.append(by_tile[one.by_query.tiles.long(), 0])
    return torch.cat(every)


def _joined(lists: list[Lists], shift: list[int]) -> Joined:
    length, entries = max(len(one.start) for one in lists), 0
    start, masks = [], []
    for one, by in zip(lists, shift, strict=False):
        start.append(_padded(one.start, length, int(one.start[-1])) + entries)
        masks.append(torch.where(one.masks < 0, one.masks, one.masks + by))
        entries += len(one.tiles)
    return Joined(torch.stack(start), torch.cat([one.tiles for one in lists]), torch.cat(masks))


def _padded(x: Tensor, length: int, value: int) -> Tensor:
    return torch.nn.functional.pad(x, (0, length - len(x)), value=value)
