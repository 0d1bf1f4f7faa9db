"""The forward and backward pass over lists of tiles: grids and launches of the kernels of ``tiled``."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from src.attention.key_sets import KeySet
from src.attention.tiled.plan import Joined, Tables, plan, tables
from src.attention.triton import passes, tiled, tuning
from src.attention.triton.passes import LOG2E, on, view
from src.attention.triton.tuning import Config


def forward(
    q: Tensor, k: Tensor, v: Tensor, first: Tensor | None, out: Tensor, lse: Tensor,
    layer: tuple[KeySet, ...], offset: int, scale: float,
) -> None:  # fmt: skip
    """Write the attention output and its log-sum-exp, base 2, plus infinity for a query that sees nothing.

    Args:
        q: (B, H, Nq, D); k, v: (B, Hkv, Nk, D or Dv); any strides, one dtype: bf16, fp16 or fp32.
        first: (B, Nq) int32, the first key of each query, or None.
        out: (B, H, Nq, Dv), overwritten.
        lse: (B, H, Nq) float32, overwritten.
        layer: the key set of every head.
        offset: position of the first query.
        scale: of the scores.

    Raises:
        ValueError: a dtype or a width that the kernels do not take.
    """
    passes.check_type(q.dtype, max(q.shape[3], v.shape[3]))
    with on(q.device):
        job = _Job(q, k, v, first, layer, offset, scale)
        job.queries([*map(view, (q, k, v, out, lse)), None, None, None], grad=False)


def backward(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, first: Tensor | None, out: Tensor, lse: Tensor,
    layer: tuple[KeySet, ...], offset: int, scale: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Give the gradients of q, k and v; each element is written by one program, so no two runs differ."""
    delta, dq = torch.empty_like(lse), torch.empty_like(q)
    shared = q.shape[1] != k.shape[1]
    kinds = [x.new_empty(q.shape[0], q.shape[1], *x.shape[2:], dtype=torch.float32 if shared else None) for x in (k, v)]
    dk, dv = kinds if shared else (torch.empty_like(k), torch.empty_like(v))
    with on(q.device):
        job = _Job(q, k, v, first, layer, offset, scale)
        job.queries([*map(view, (q, k, v, out, lse, dout, delta, dq))], grad=True)
        job.keys([*map(view, (q, k, v, lse, dout, delta, dk, dv))])
    if shared:
        dk, dv = (x.unflatten(1, (k.shape[1], -1)).sum(2).to(k.dtype) for x in (dk, dv))
    return dq, dk, dv


class _Job:
    """The launches over one plan."""

    def __init__(
        self, q: Tensor, k: Tensor, v: Tensor, first: Tensor | None, layer: tuple[KeySet, ...], offset: int,
        scale: float,
    ) -> None:  # fmt: skip
        self.batch, self.heads, self.n, qk = q.shape
        self.length, self.scale = k.shape[2], scale * LOG2E
        self.widths = qk, v.shape[-1]
        self.kind = (q.device, q.dtype, *self.widths)
        self.found = lambda sizes: plan(layer, self.n, self.length, offset, q.device, sizes)
        self.first = None if first is None else view(first[:, None])
        self.constants = {
            "DOCUMENTS": first is not None, "RATIO": self.heads // k.shape[1], "QK": qk, "V": v.shape[-1],
            "HEADS_FIRST": q.stride(1) < q.stride(2),
        }  # fmt: skip

    def queries(self, tensors: list[Any], grad: bool) -> None:
        name = "tiled_backward_queries" if grad else "tiled_forward"
        config, found = self._tiles(name)
        lists = found.by_query
        if found.origins is not None:
            lists = lists._replace(tiles=found.origins)
        tiles = lists.start.shape[1] - 1
        described = _described(tensors[1:3], config.BN) if found.origins is not None else (None, None)
        passes.launch(
            name, tiled.tiled_queries, tiles * self.batch * self.heads, config,
            (*tensors, *described, *self._lists(found, lists),
             self.n, self.length, tiles, found.order.shape[1], *self._groups()),
            {"NEIGHBOURS": found.origins is not None, "FILLED": found.filled, "GRAD": grad} | self._constants(found),
        )  # fmt: skip

    def keys(self, tensors: list[Any]) -> None:
        name = "tiled_backward_keys"
        config, found = self._tiles(name)
        parts, groups = found.parts, self.batch * self.heads
        count, places = parts.parts.shape[1], found.order.shape[1]
        shares = [
            tensors[0].ptr.new_empty(groups, parts.shares, config.BN, tuning.padded(width), dtype=torch.float32)
            if parts.shares else None for width in self.widths
        ]  # fmt: skip
        entries = found.by_key.tiles, found.by_key.masks, found.masks_of_keys
        lists = self.first, found.of_head, found.order, parts.parts, *entries
        kind = {"IN_ORDER": found.in_order, "PARTIAL": self.n % config.BM > 0, "SHARES": parts.shares > 0}
        passes.launch(
            name, tiled.tiled_keys, count * groups, config,
            (*tensors, *_described([tensors[0], tensors[4]], config.BM), *shares, *lists,
             self.n, self.length, places, count, parts.shares, *self._groups()),
            kind | self._constants(found),
        )  # fmt: skip
        for gradient, own, width in zip(tensors[-2:], shares, self.widths, strict=True):
            if own is not None:
                sums = parts.sums.shape[1]
                passes.launch(
                    "tiled_sums", tiled.tiled_key_sums, sums * groups, Config(0, config.BN, 4, 1),
                    (gradient, own, found.of_head, found.order, parts.sums, self.length, places, sums, parts.shares,
                     self.heads, groups), {"WIDTH": width, "ALIKE": found.alike},
                )  # fmt: skip

    def _tiles(self, name: str) -> tuple[Config, Tables]:
        """Every kernel has tiles of its own size."""
        found = self.found(tuning.tiled_sizes(name, *self.kind))
        return tuning.tiled(name, *self.kind, found.size), tables(found)

    def _lists(self, found: Tables, lists: Joined) -> tuple[Any, ...]:
        return self.first, found.of_head, found.order, lists.start, lists.tiles, lists.masks, found.masks

    def _constants(self, found: Tables) -> dict[str, Any]:
        return self.constants | {"ALIKE": found.alike}

    def _groups(self) -> tuple[Any, ...]:
        return self.scale, self.heads, self.batch * self.heads


def _described(views: list[Any], rows: int) -> tuple[TensorDescriptor | None, ...]:
    """Describe (B, H, N, D) tensors for loads of ``rows`` neighbours; None where their place in memory does not allow
    it, or where the GPU has no such loads."""
    every = [view.ptr for view in views]
    if not tuning.has_descriptors(every[0].device) or not all(_fits(x) for x in every):
        return (None,) * len(every)
    return tuple(TensorDescriptor(x, x.shape, x.stride(), [1, 1, rows, tuning.padded(x.shape[3])]) for x in every)


def _fits(x: Tensor) -> bool:
    strides = [stride * x.element_size() for stride in x.stride()[:3]]
    return x.stride(3) == 1 and x.data_ptr() % 16 == 0 and all(one > 0 and one % 16 == 0 for one in strides)
