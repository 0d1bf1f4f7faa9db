"""Attention over the lists of a layout in plain PyTorch: what the ``torch`` backend computes of key sets of users.

Tile by tile of queries, the keys of its list are gathered and their scores computed, so that memory is that of one row
of tiles. Products and sums are in float32 at least.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from src.attention.tiled.layout import Layout
from src.attention.tiled.masks import unpacked


class Heads(NamedTuple):
    """Heads with one layout.

    Args:
        heads: their places, ascending.
        layout: their tiles.
    """

    heads: list[int]
    layout: Layout


class Row(NamedTuple):
    """A tile of queries, and the keys of its list.

    Args:
        queries: its places among the queries.
        keys: (S,) positions.
        kept: (queries, S), which pairs count.
    """

    queries: slice
    keys: Tensor
    kept: Tensor


def forward(
    q: Tensor, k: Tensor, v: Tensor, first: Tensor | None, groups: list[Heads], scale: float
) -> tuple[Tensor, Tensor]:
    """Attend.

    Args:
        q: (B, H, Nq, D) queries.
        k: (B, Hkv, Nk, D) keys; head h of the queries sees those of head h // (H / Hkv).
        v: (B, Hkv, Nk, Dv) values.
        first: (B, Nq) the first key that a query may see; None: any.
        groups: all heads, by layout.
        scale: factor of the scores.

    Returns:
        (B, H, Nq, Dv) in the type of ``v``, laid out as (B, Nq, H, Dv), and the log-sum-exp (B, H, Nq) in float32 at
        least; 0 and plus infinity where a query sees nothing.
    """
    exact = torch.promote_types(q.dtype, torch.float32)
    batch, heads, n, _ = q.shape
    out = v.new_zeros(batch, n, heads, v.shape[-1]).transpose(1, 2)
    lse = q.new_full((batch, heads, n), torch.inf, dtype=exact)
    for group in groups:
        shared = _shared(group, heads // k.shape[1])
        for row in rows(group.layout, n, k.shape[2]):
            scores = _scores(q[:, group.heads, row.queries].to(exact), k[:, shared][:, :, row.keys].to(exact), scale)
            scores = scores.masked_fill(~_kept(row, first), -torch.inf)
            total = scores.logsumexp(-1)
            empty = total.isneginf()
            total = total.masked_fill(empty, torch.inf)
            p = (scores - total[..., None]).exp()
            out[:, group.heads, row.queries] = (p @ v[:, shared][:, :, row.keys].to(exact)).to(out.dtype)
            lse[:, group.heads, row.queries] = total
    return out, lse


def backward(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, first: Tensor | None, out: Tensor, lse: Tensor,
    groups: list[Heads], scale: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Give the gradients of q, k and v, in their shapes and types; arguments as those and the results of `forward`."""
    exact = lse.dtype
    ratio = q.shape[1] // k.shape[1]
    dq, dk, dv = (torch.zeros(x.shape, dtype=exact, device=x.device) for x in (q, k, v))
    delta = (dout.to(exact) * out.to(exact)).sum(-1)
    for group in groups:
        shared = _shared(group, ratio)
        for row in rows(group.layout, q.shape[2], k.shape[2]):
            queries, keys = q[:, group.heads, row.queries].to(exact), k[:, shared][:, :, row.keys].to(exact)
            upstream, values = dout[:, group.heads, row.queries].to(exact), v[:, shared][:, :, row.keys].to(exact)
            scores = _scores(queries, keys, scale).masked_fill(~_kept(row, first), -torch.inf)
            p = (scores - lse[:, group.heads, row.queries, None]).exp()
            ds = p * (upstream @ values.mT - delta[:, group.heads, row.queries, None]) * scale
            dq[:, group.heads, row.queries] = ds @ keys
            for sums, parts in ((dk, ds.mT @ queries), (dv, p.mT @ upstream)):
                for place, head in enumerate(shared):
                    sums[:, head].index_add_(1, row.keys, parts[:, place])
    return dq.to(q.dtype), dk.to(k.dtype), dv.to(v.dtype)


def rows(layout: Layout, queries: int, length: int) -> Iterator[Row]:
    """Give every tile of queries that sees a key."""
    size, lists = layout.size, layout.by_query
    by_tile = layout.order.view(-1, size.keys)
    starts, fulls = lists.start.tolist(), lists.full.tolist()
    for tile, full in enumerate(fulls):
        begin, end = starts[tile : tile + 2]
        if begin == end:
            continue
        there = slice(tile * size.queries, min((tile + 1) * size.queries, queries))
        keys = by_tile[lists.tiles[begin:end].long()].flatten().long()
        count = there.stop - there.start
        words = layout.masks[lists.masks[begin + full : end].long(), :count]
        masked = unpacked(words).transpose(0, 1).flatten(1)
        kept = torch.cat([masked.new_ones(count, full * size.keys), masked], 1)
        some = kept.any(0) & (keys < length)
        yield Row(there, keys[some], kept[:, some])


def _shared(group: Heads, ratio: int) -> list[int]:
    return [head // ratio for head in group.heads]


def _scores(q: Tensor, k: Tensor, scale: float) -> Tensor:
    return (q @ k.mT) * scale


def _kept(row: Row, first: Tensor | None) -> Tensor:
    """Which pairs count, (queries, S) or (B, 1, queries, S)."""
    if first is None:
        return row.kept
    return (row.kept & (row.keys >= first[:, row.queries, None]))[:, None]
