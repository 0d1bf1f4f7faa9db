"""The arithmetic of one tile, forward and backward: the only place where scores exist.

The softmax is online: a tile updates, for its queries, the running maximum, the running sum of exponentials and the
running weighted sum of values. Tiles may therefore come in any order and from any part of a key set, and the parts are
joined exactly. The backward pass uses the joint log-sum-exp and ``delta = rowsum(dO * O)`` for every tile.

Powers of two instead of e: the queries are scaled by ``log2(e)`` beforehand, as GPU kernels do, since ``exp2`` is
several times faster than ``exp`` on a CPU too.

Shapes: G heads (batch and heads flattened), N positions, D width of queries and keys, Dv width of values; in a tile A
batch items, M queries, S keys.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache

import torch
from torch import Tensor

from src.attention.factorized.tiles import Rows, Tile

LOG2_E = math.log2(math.e)
LN_2 = math.log(2.0)
# Any score is larger; a finite number, so that a row without a key so far gives no inf - inf.
_LOWEST = -1e30


@dataclass
class Cells:
    """Where the summary cells of some heads lie (fixed patterns, section 4.3).

    Args:
        first: (G,) first summary cell within a block, for each head.
        index: (G * C,) rows of the flattened (G * N, width) tensor that hold the cells, head by head. Cells of an
            unfinished last block point at the last position, and the causal mask hides them.
    """

    first: Tensor
    index: Tensor

    @classmethod
    def locate(cls, first: Sequence[int], n: int, stride: int, summary: int, device: torch.device) -> Cells:
        """Find the cells of every block of ``n`` positions."""
        first_cell = _on_device(tuple(first), device)
        block = torch.arange(0, n, stride, device=device)[:, None] + torch.arange(summary, device=device)
        cells = (first_cell[:, None] + block.flatten()).clamp_(max=n - 1)
        heads = torch.arange(len(first), device=device)[:, None] * n
        return cls(first_cell, (cells + heads).flatten())

    def gather(self, x: Tensor) -> Tensor:
        """Copy the cells of a (G, N, width) tensor to (G, C, width)."""
        heads, _, width = x.shape
        return x.flatten(0, 1).index_select(0, self.index).view(heads, -1, width)

    def scatter_add(self, x: Tensor, cells: Tensor) -> None:
        """Add (G, C, width) cells to their places in a contiguous (G, N, width) tensor."""
        x.flatten(0, 1).index_add_(0, self.index, cells.flatten(0, 1))


@cache
def _on_device(first: tuple[int, ...], device: torch.device) -> Tensor:
    """Copy a handful of numbers once: a copy from the host at every call would wait for it, and cannot be captured."""
    return torch.tensor(first, dtype=torch.long, device=device)


@dataclass
class Workspace:
    """Memory that tiles use again and again: fresh pages for every tile would cost more than the arithmetic.

    Args:
        keys_first: hold scores as (S, M) instead of (M, S). The forward pass reduces over keys and wants (M, S); four
            of the five products of the backward pass run a quarter faster on a CPU with (S, M).
    """

    keys_first: bool = False
    buffers: dict[str, Tensor] = field(default_factory=dict)
    biases: dict[tuple[str, int, int], tuple[slice, Tensor] | None] = field(default_factory=dict)

    def product(self, name: str, a: Tensor, b: Tensor) -> Tensor:
        """Multiply two batches of matrices into the buffer ``name``; valid until that buffer's next use."""
        shape = (a.shape[0], a.shape[1], b.shape[2])
        buffer = self.buffers.get(name)
        if buffer is None or buffer.numel() < math.prod(shape):
            buffer = self.buffers[name] = a.new_empty(math.prod(shape))
        return torch.bmm(a, b, out=buffer[: math.prod(shape)].view(shape))

    def mask(self, scores: Tensor, tile: Tile, first_cells: Tensor) -> None:
        """Set the scores of masked pairs to -inf, in place."""
        key = (tile.mask, tile.queries.count, tile.keys.count)
        if key not in self.biases:
            bias = tile.bias(first_cells, scores)
            if bias is not None and self.keys_first:
                bias = bias[0], bias[1].mT.contiguous()
            self.biases[key] = bias
        bias = self.biases[key]
        if bias is not None:
            covered, values = bias
            by_head = scores.unflatten(0, (len(first_cells), -1))
            (by_head[..., covered, :] if self.keys_first else by_head[..., covered]).add_(values)


@dataclass
class Sequences:
    """What the tiles of some heads read: packed, contiguous, in the dtype of the computation.

    Args:
        q: (G, N, D), scaled by scale * log2(e).
        k: (G, N, D).
        v: (G, N, Dv).
        cells: where the summary cells lie; they are gathered once.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    cells: Cells

    def __post_init__(self) -> None:
        empty = not self.cells.index.numel()
        self.k_cells = self.k if empty else self.cells.gather(self.k)
        self.v_cells = self.v if empty else self.cells.gather(self.v)

    def scores(self, tile: Tile, work: Workspace) -> Tensor:
        """Compute the tile's scores in powers of two, (G * A, M, S) or keys first; masked pairs are -inf."""
        q, k = rows_of(tile.queries, self.q), rows_of(tile.keys, self.k_cells if tile.gathered else self.k)
        scores = work.product("scores", k, q.mT) if work.keys_first else work.product("scores", q, k.mT)
        work.mask(scores, tile, self.cells.first)
        return scores


class Forward:
    """Running softmax of some heads, updated tile by tile."""

    def __init__(self, x: Sequences) -> None:
        heads, n, _ = x.q.shape
        self.x, self.work = x, Workspace()
        self.highest = x.q.new_full((heads, n, 1), _LOWEST)
        self.total = x.q.new_zeros((heads, n, 1))
        self.values = torch.zeros_like(x.v)

    def add(self, tile: Tile) -> None:
        """Take one tile into the softmax."""
        p = self.x.scores(tile, self.work)
        before = rows_of(tile.queries, self.highest)
        highest = torch.maximum(before, p.amax(-1, keepdim=True))
        shrink = (before - highest).exp2_()
        p.sub_(highest).exp2_()
        v = rows_of(tile.keys, self.x.v_cells if tile.gathered else self.x.v)
        _scale_add(self.total, tile.queries, shrink, p.sum(-1, keepdim=True))
        _scale_add(self.values, tile.queries, shrink, self.work.product("values", p, v))
        target = tile.queries.of(self.highest)
        target.copy_(highest.view(target.shape))

    def finish(self) -> tuple[Tensor, Tensor]:
        """Give the output (G, N, Dv) and the log-sum-exp (G, N, 1) in powers of two; rows without keys 0 and +inf."""
        empty = self.total == 0
        lse = (self.highest + self.total.log2()).masked_fill_(empty, torch.inf)
        return self.values.div_(self.total.masked_fill_(empty, 1.0)), lse


class Backward:
    """Gradients of some heads, summed up tile by tile."""

    def __init__(self, x: Sequences, d_out: Tensor, lse: Tensor, delta: Tensor) -> None:
        """Start from zero.

        Args:
            x: what the forward pass read.
            d_out: (G, N, Dv) gradient of the output.
            lse: (G, N, 1) joint log-sum-exp in powers of two.
            delta: (G, N, 1) rowsum(d_out * out).
        """
        self.x, self.work = x, Workspace(keys_first=True)
        self.d_out, self.lse, self.delta = d_out, lse, delta
        self.dq, self.dk, self.dv = torch.zeros_like(x.q), torch.zeros_like(x.k), torch.zeros_like(x.v)
        gathered = x.k_cells is not x.k
        self.dk_cells = torch.zeros_like(x.k_cells) if gathered else self.dk
        self.dv_cells = torch.zeros_like(x.v_cells) if gathered else self.dv

    def add(self, tile: Tile) -> None:
        """Add one tile's share of the three gradients."""
        x, work = self.x, self.work
        p_t = x.scores(tile, work).sub_(rows_of(tile.queries, self.lse).mT).exp2_()
        d_out = rows_of(tile.queries, self.d_out)
        _add(self.dv_cells if tile.gathered else self.dv, tile.keys, work.product("dv", p_t, d_out))
        v = rows_of(tile.keys, x.v_cells if tile.gathered else x.v)
        ds_t = work.product("ds", v, d_out.mT).sub_(rows_of(tile.queries, self.delta).mT).mul_(p_t)
        q, k = rows_of(tile.queries, x.q), rows_of(tile.keys, x.k_cells if tile.gathered else x.k)
        _add(self.dk_cells if tile.gathered else self.dk, tile.keys, work.product("dk", ds_t, q))
        _add(self.dq, tile.queries, work.product("dq", ds_t.mT, k))

    def finish(self, scale: float) -> tuple[Tensor, Tensor, Tensor]:
        """Give dq, dk (G, N, D) and dv (G, N, Dv)."""
        if self.dk_cells is not self.dk:
            self.x.cells.scatter_add(self.dk, self.dk_cells)
            self.x.cells.scatter_add(self.dv, self.dv_cells)
        # q was scaled by scale * log2(e); the softmax derivative in base e leaves scale for both
        return self.dq.mul_(scale), self.dk.mul_(LN_2), self.dv


def rows_of(rows: Rows, x: Tensor) -> Tensor:
    """Give some rows of (G, N, width) as (G * A, count, width); a view where the strides allow it."""
    return rows.of(x).flatten(0, 1)


def _add(x: Tensor, rows: Rows, values: Tensor) -> None:
    target = rows.of(x)
    target.add_(values.view(target.shape))


def _scale_add(x: Tensor, rows: Rows, factor: Tensor, values: Tensor) -> None:
    target = rows.of(x)
    shape = target.shape[:3]
    torch.addcmul(values.view(target.shape), target, factor.view(*shape, 1), out=target)
