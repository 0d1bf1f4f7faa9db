"""The autograd operator of the ``torch`` backend: all heads of a layer, forward and backward over tiles."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from src.attention.factorized.parts import tiles_of
from src.attention.factorized.step import LOG2_E, Backward, Cells, Forward, Sequences
from src.attention.factorized.tiles import Tile
from src.attention.key_sets import KeySet
from src.attention.patterns import HeadGroup, head_groups

# Scores that one tile may hold. On a CPU they should stay in the cache between the product that makes them and the
# one that uses them (512 K scores of fp32 are 2 MB); on a GPU larger pieces keep it busy.
CPU_BUDGET = 1 << 19
GPU_BUDGET = 1 << 25


@torch.compiler.disable
def factorized_attention(q: Tensor, k: Tensor, v: Tensor, layer: tuple[KeySet, ...], scale: float) -> Tensor:
    """Compute sparse attention in O(pairs) time and O(n) memory beyond its inputs (sections 4.3 and 5.5).

    Args:
        q: (B, H, N, D) queries, any strides; fp16, bf16 (computed in fp32), fp32 or fp64.
        k: (B, H, N, D) keys, likewise.
        v: (B, H, N, Dv) values, likewise.
        layer: the key set of every head, any but `Dense`.
        scale: factor of the scores.

    Returns:
        (B, H, N, Dv) in the dtype of ``v``, laid out in memory as (B, N, H, Dv). Rows without keys are 0.

    Raises:
        ValueError: a key set that has no factorization.
    """
    out: Tensor = _Factorized.apply(q, k, v, layer, scale)
    return out


class _Factorized(torch.autograd.Function):
    """Keeps q, k, v, the output and the joint log-sum-exp; the backward pass computes the scores again."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, layer: tuple[KeySet, ...], scale: float) -> Tensor:
        batch, heads, n, _ = q.shape
        out = v.new_empty((batch, n, heads, v.shape[-1])).transpose(1, 2)
        lse = q.new_empty((batch, heads, n, 1), dtype=_compute_dtype(q))
        with torch.autocast(q.device.type, enabled=False):
            for job in _jobs(q, layer):
                x = job.read(q, k, v, scale)
                running = Forward(x)
                for tile in job.tiles(n):
                    running.add(tile)
                job.write(out, (result := running.finish())[0])
                job.write(lse, result[1])
        ctx.save_for_backward(q, k, v, out, lse)
        ctx.layer, ctx.scale = layer, scale
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, d_out: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        q, k, v, out, lse = ctx.saved_tensors
        dq, dk, dv = (torch.empty_like(x, memory_format=torch.preserve_format) for x in (q, k, v))
        with torch.autocast(q.device.type, enabled=False):
            for job in _jobs(q, ctx.layer):
                d_rows = job.pack(d_out)
                delta = (d_rows * job.pack(out)).sum(-1, keepdim=True)
                sums = Backward(job.read(q, k, v, ctx.scale), d_rows, job.pack(lse), delta)
                for tile in job.tiles(q.shape[2]):
                    sums.add(tile)
                for target, gradient in zip((dq, dk, dv), sums.finish(ctx.scale), strict=True):
                    job.write(target, gradient)
        return dq, dk, dv, None, None


@dataclass(frozen=True)
class _Job:
    """Some heads of one group, of one or more batch items, that go through the tiles together."""

    group: HeadGroup
    batch: slice
    heads: slice
    budget: int
    dtype: torch.dtype

    def pack(self, x: Tensor) -> Tensor:
        """Copy this job's heads of (B, H, N, width) to a contiguous (G, N, width) in the dtype of the computation."""
        return x[self.batch, self.heads].to(self.dtype).flatten(0, 1).contiguous()

    def write(self, x: Tensor, values: Tensor) -> None:
        """Copy (G, N, width) to this job's heads of (B, H, N, width)."""
        target = x[self.batch, self.heads]
        target.copy_(values.view(target.shape))

    def read(self, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Sequences:
        batch = len(range(*self.batch.indices(q.shape[0])))
        first = self.group.first_cells[self.heads.start - self.group.start : self.heads.stop - self.group.start]
        keys: Any = self.group.first
        if first:
            cells = Cells.locate(first * batch, q.shape[2], keys.stride, keys.summary, q.device)
        else:
            cells = Cells(q.new_zeros(batch * (self.heads.stop - self.heads.start)), q.new_zeros(0))
        return Sequences(self.pack(q).mul(scale * LOG2_E), self.pack(k), self.pack(v), cells)

    def tiles(self, n: int) -> Iterator[Tile]:
        return tiles_of(self.group.first, n, self.budget)


def _jobs(q: Tensor, layer: tuple[KeySet, ...]) -> Iterator[_Job]:
    """Cut the heads of a layer so that a tile of all the heads in hand stays within the budget."""
    batch, _, n, _ = q.shape
    budget = CPU_BUDGET if q.device.type == "cpu" else GPU_BUDGET
    for group in head_groups(layer):
        stride = getattr(group.first, "stride", n)
        together = max(1, budget // max(1, n * min(n, stride)))
        heads = group.stop - group.start
        items = max(1, min(batch, together // heads))
        share = max(1, budget // min(batch * heads, together))
        for b in range(0, batch, items):
            for h in range(group.start, group.stop, min(heads, together)):
                stop = min(group.stop, h + min(heads, together))
                yield _Job(group, slice(b, b + items), slice(h, stop), share, _compute_dtype(q))


def _compute_dtype(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32
