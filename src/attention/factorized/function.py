"""Both passes of the ``torch`` backend: all heads of a layer, over tiles."""

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


def forward(q: Tensor, k: Tensor, v: Tensor, layer: tuple[KeySet, ...], scale: float, out: Tensor, lse: Tensor) -> None:
    """Compute the output and the joint log-sum-exp, in powers of two, of every head.

    Args:
        q: (B, H, N, D), any strides.
        k: (B, Hkv, N, D), likewise; Hkv divides H, and neighbouring heads of queries share keys and values.
        v: (B, Hkv, N, Dv), likewise.
        layer: the key set of every head, any but `Dense`.
        scale: factor of the scores.
        out: (B, H, N, Dv), is written.
        lse: (B, H, N, 1) in `compute_dtype`, is written; +inf for rows without keys.

    Raises:
        ValueError: a key set that has no factorization.
    """
    with torch.autocast(q.device.type, enabled=False):
        for job in _jobs(q, layer):
            running = Forward(job.read(q, k, v, scale))
            for tile in job.tiles(q.shape[2]):
                running.add(tile)
            for target, result in zip((out, lse), running.finish(), strict=True):
                job.write(target, result)


def backward(
    d_out: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, layer: tuple[KeySet, ...], scale: float,
    gradients: tuple[Tensor, Tensor, Tensor],
) -> None:  # fmt: skip
    """Compute the scores again, and from them the gradients of q, k and v.

    Args:
        d_out: (B, H, N, Dv) gradient of the output, any strides.
        q, k, v, layer, scale: as `forward` takes them.
        out, lse: as `forward` wrote them.
        gradients: dq, dk and dv, shaped as q, k and v; are written.
    """
    ratio = q.shape[1] // k.shape[1]
    own = gradients if ratio == 1 else (gradients[0], *(_for_each_head(x, q) for x in (k, v)))
    with torch.autocast(q.device.type, enabled=False):
        for job in _jobs(q, layer):
            d_rows = job.pack(d_out)
            delta = (d_rows * job.pack(out)).sum(-1, keepdim=True)
            sums = Backward(job.read(q, k, v, scale), d_rows, job.pack(lse), delta)
            for tile in job.tiles(q.shape[2]):
                sums.add(tile)
            for target, gradient in zip(own, sums.finish(scale), strict=True):
                job.write(target, gradient)
    if ratio > 1:
        for shared, each in zip(gradients[1:], own[1:], strict=True):
            shared.copy_(each.unflatten(1, (-1, ratio)).sum(2))


def compute_dtype(x: Tensor) -> torch.dtype:
    """The dtype that sums are computed in: float64 stays, all else is float32."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _for_each_head(x: Tensor, q: Tensor) -> Tensor:
    """Room for what each head of queries makes of shared keys or values, (B, H, N, width)."""
    return x.new_empty(*q.shape[:3], x.shape[3], dtype=compute_dtype(x))


@dataclass(frozen=True)
class _Job:
    """Some heads of one group, of one or more batch items, that go through the tiles together."""

    group: HeadGroup
    batch: slice
    heads: slice
    budget: int
    dtype: torch.dtype

    def pack(self, x: Tensor, ratio: int = 1) -> Tensor:
        """Copy this job's heads of (B, H / ratio, N, width) to a contiguous (G, N, width) in the dtype of the
        computation; ``ratio`` neighbouring heads share one of ``x``."""
        if ratio == 1:
            return x[self.batch, self.heads].to(self.dtype).flatten(0, 1).contiguous()
        first, count = self.heads.start // ratio, self.heads.stop - self.heads.start
        each = x[self.batch, first : (self.heads.stop - 1) // ratio + 1].to(self.dtype).repeat_interleave(ratio, 1)
        return each[:, self.heads.start - first * ratio :][:, :count].flatten(0, 1).contiguous()

    def write(self, x: Tensor, values: Tensor) -> None:
        """Copy (G, N, width) to this job's heads of (B, H, N, width)."""
        target = x[self.batch, self.heads]
        target.copy_(values.view(target.shape))

    def read(self, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Sequences:
        batch = len(range(*self.batch.indices(q.shape[0])))
        first = self.group.first_cells[self.heads.start - self.group.start : self.heads.stop - self.group.start]
        keys: Any = self.group.first
        ratio = q.shape[1] // k.shape[1]
        if first:
            cells = Cells.locate(first * batch, q.shape[2], keys.stride, keys.summary, q.device)
        else:
            cells = Cells(q.new_zeros(batch * (self.heads.stop - self.heads.start)), q.new_zeros(0))
        return Sequences(self.pack(q).mul(scale * LOG2_E), self.pack(k, ratio), self.pack(v, ratio), cells)

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
                yield _Job(group, slice(b, b + items), slice(h, stop), share, compute_dtype(q))
