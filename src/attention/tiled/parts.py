"""Long lists of key tiles in parts, so that no program works while all others have ended.

Some keys, such as the first ones of a sequence, are seen by nearly all queries. Each part adds up its share of their
gradients, and the shares are added in a fixed order: the same bits every time, without atomics.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

PROGRAMS = 264  # that a GPU works at once, about: a part is no longer than the share of each of them
SHORTEST = 16  # entries of a list that is worth parting


@dataclass(frozen=True)
class Parts:
    """The lists of key tiles in parts, the longest first.

    Args:
        parts: (layouts, parts, 4) int32: the tile, the first entry, the end, and the place of its share; -1 where the
            part is the whole list and needs none. Rows that fill up have no entries.
        sums: (layouts, sums, 3) int32: a tile whose list is parted, its first share and how many there are; 0 of them
            in rows that fill up.
        shares: how many shares of a head there are, with one for the rows that fill up.
    """

    parts: Tensor
    sums: Tensor
    shares: int


def parted(starts: Tensor, heads: int) -> Parts:
    """Part what is longer than a program's share of the work.

    Args:
        starts: (layouts, tiles + 1), where the list of each tile of keys begins.
        heads: that share them.
    """
    start = starts.cpu().long()
    lengths = start[:, 1:] - start[:, :-1]
    limit = max(SHORTEST, int(lengths.sum()) * heads // (len(start) * PROGRAMS))
    made = [_of_layout(*one, limit) for one in zip(start, lengths, strict=True)]
    shares = max(int((parts[:, 3] >= 0).sum()) for parts, _ in made)
    filling = torch.tensor([0, 0, 0, shares])
    device = starts.device
    return Parts(
        _stacked([parts for parts, _ in made], filling).to(device),
        _stacked([sums for _, sums in made], torch.zeros(3, dtype=torch.int64)).to(device),
        shares + 1 if shares else 0,
    )


def _of_layout(start: Tensor, lengths: Tensor, limit: int) -> tuple[Tensor, Tensor]:
    count = (-(-lengths // limit)).clamp(min=1)
    tile = torch.repeat_interleave(torch.arange(len(count)), count)
    number = torch.arange(len(tile)) - torch.repeat_interleave(count.cumsum(0) - count, count)
    each = (-(-lengths // count))[tile]
    end = start[1:][tile]
    begin = torch.minimum(start[:-1][tile] + number * each, end)
    end = torch.minimum(begin + each, end)
    share = (count > 1)[tile]
    place = torch.where(share, share.cumsum(0) - 1, -1)
    longest_first = (begin - end).argsort(stable=True)
    split = count > 1
    shares = torch.where(split, count, 0)
    sums = torch.stack([split.nonzero()[:, 0], (shares.cumsum(0) - shares)[split], count[split]], 1)
    return torch.stack([tile, begin, end, place], 1)[longest_first], sums


def _stacked(rows: list[Tensor], filling: Tensor) -> Tensor:
    most = max(len(one) for one in rows)
    return torch.stack([torch.cat([one, filling.expand(most - len(one), -1)]) for one in rows]).int()
