"""The residual block of a training step as one autograd function, forward and backward written by hand.

Between the matrix products stand only the kernels of ``residual`` and ``activation``, so every activation goes through
memory once each way; the bias gradients fall out of kernels that read the same numbers anyway. The residual stream,
the activations and their gradients are in the activation type (bf16 or fp16 under autocast), the weights' gradients in
that of the weights (section 5.6).

What the backward pass finds kept is the recompute policy's choice (u: one (B, N, width) tensor, inner width 4 u):

    none   the block's input, both norms, the projection, attention's result, the middle of the block and the
           feed-forward's inner products: 12 u. The activation itself is always computed again, in the kernel of its
           backward pass.
    light  input, projection, attention's result, middle: 6 u. Norms and inner products are computed again.
    block  the input: 1 u. The whole block but its last product is computed again (section 5.4), and the weights are
           cast to the activation type again, which keeps 2 bytes a parameter from waiting for the backward pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from src.attention import KeySet
from src.attention.backends import Backend
from src.models.fused import activation, residual
from src.models.fused.attended import Attended, attend_packed
from src.models.fused.row_sums import RowSums
from src.models.options import PAPER, BlockOptions, Recompute


@dataclass(frozen=True)
class Plan:
    """What a block computes, besides its weights.

    Args:
        layer: the key set of each head.
        widths: of all queries, all keys and all values.
        backend: of attention.
        dropout: probability at the end of each branch; 0 in evaluation.
        recompute: see above.
        options: norms, activation and the like.
    """

    layer: tuple[KeySet, ...]
    widths: tuple[int, int, int]
    backend: Backend
    dropout: float
    recompute: Recompute
    options: BlockOptions = PAPER

    def norm(self, weight: Tensor | None, bias: Tensor | None) -> residual.Norm:
        """One of the block's norms."""
        return residual.Norm(weight, bias, self.options.norm == "rms")

    def drop(self, seed: Tensor | None, branch: int) -> residual.Drop | None:
        """Dropout at the end of attention (0) or of the feed-forward (1)."""
        return None if seed is None or self.dropout == 0 else residual.Drop(seed, branch, self.dropout)


@dataclass(frozen=True)
class Weights:
    """A block's parameters in the order in which they are used; matrices are (out, in)."""

    attention_norm: Tensor | None
    attention_norm_bias: Tensor | None
    project_in: Tensor
    project_in_bias: Tensor | None
    project_out: Tensor
    project_out_bias: Tensor | None
    feed_forward_norm: Tensor | None
    feed_forward_norm_bias: Tensor | None
    expand: Tensor
    expand_bias: Tensor | None
    contract: Tensor
    contract_bias: Tensor | None

    @classmethod
    def cast(cls, parameters: Sequence[Tensor | None], dtype: torch.dtype) -> Weights:
        """Copy what matrix products take to ``dtype``, in one launch; norms stay as they are."""
        given = dict(zip(NAMES, parameters, strict=True))
        products = {name: p for name, p in given.items() if p is not None and "norm" not in name}
        if any(p.dtype != dtype for p in products.values()):
            copies = {name: torch.empty_like(p, dtype=dtype) for name, p in products.items()}
            torch._foreach_copy_(list(copies.values()), list(products.values()))
            products = copies
        return cls(**(given | products))  # type: ignore[arg-type]


NAMES = tuple(field.name for field in fields(Weights))


@dataclass(frozen=True)
class Kept:
    """Activations between the passes; rows are all positions of all sequences. None: computed again."""

    hidden: Tensor
    normed: Tensor | None = None
    attended: Attended | None = None
    middle: Tensor | None = None
    middle_normed: Tensor | None = None
    inner: Tensor | None = None

    def by(self, recompute: Recompute) -> Kept:
        """Let go of what the policy computes again."""
        if recompute == "none":
            return self
        if recompute == "light":
            return replace(self, normed=None, middle_normed=None, inner=None)
        return Kept(self.hidden)


class _Block(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, seed: Tensor | None, table: Tensor | None, first: Tensor | None, plan: Plan,
        *parameters: Tensor | None,
    ) -> Tensor:  # fmt: skip
        weights = Weights.cast(parameters, hidden.dtype)
        drops = plan.drop(seed, 0), plan.drop(seed, 1)
        kept = _complete(Kept(hidden), plan, weights, table, first, drops[0])
        assert kept.inner is not None and kept.middle is not None
        active = activation.activate(kept.inner, plan.options.activation)
        branch = _product(active, weights.contract, weights.contract_bias)
        result = residual.add(kept.middle, branch, drops[1]).view(hidden.shape)
        ctx.save_for_backward(*parameters)
        ctx.weights = None if plan.recompute == "block" else weights
        ctx.plan, ctx.drops, ctx.kept, ctx.table, ctx.first = plan, drops, kept.by(plan.recompute), table, first
        return result

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, d_result: Tensor) -> tuple[Tensor | None, ...]:
        plan, drops = ctx.plan, ctx.drops
        weights = ctx.weights or Weights.cast(ctx.saved_tensors, ctx.kept.hidden.dtype)
        kept = _complete(ctx.kept, plan, weights, ctx.table, ctx.first, drops[0])
        ctx.kept = ctx.weights = None  # what is no longer needed is free before the next block's turn
        types = {name: p.dtype for name, p in zip(NAMES, ctx.saved_tensors, strict=True) if p is not None}
        d_hidden, found = _backward(kept, d_result.contiguous(), weights, plan, drops, types)
        gradients = (found[name].to(types[name]) if name in types else None for name in NAMES)
        return (d_hidden, None, None, None, None, *gradients)


def fused_block(
    hidden: Tensor, seed: Tensor | None, table: Tensor | None, first: Tensor | None, plan: Plan,
    parameters: Sequence[Tensor | None],
) -> Tensor:  # fmt: skip
    """Add both branches of a block to the residual stream (equations 9 to 14).

    Args:
        hidden: (B, N, width), contiguous; under autocast it is cast to autocast's type.
        seed: (1,) int64 on the device, the seed of dropout; it must stay as it is until the backward pass.
        table: rotary positions, float32 (2, N, d_head / 2), or None.
        first: int32 (B, N), the first position that each one may see; None: any.
        plan: what is computed.
        parameters: as in ``Weights``.

    Returns:
        (B, N, width) in the activation type.
    """
    device = hidden.device.type
    if torch.is_autocast_enabled(device):
        hidden = hidden.to(torch.get_autocast_dtype(device))
    with torch.autocast(device, enabled=False):
        result: Tensor = _Block.apply(hidden.contiguous(), seed, table, first, plan, *parameters)
    return result


def _complete(
    kept: Kept, plan: Plan, w: Weights, table: Tensor | None, first: Tensor | None, drop: residual.Drop | None
) -> Kept:
    """Compute what is missing of a block's activations, up to the feed-forward's inner products."""
    rows = kept.hidden.flatten(0, -2)
    normed, attended, middle, middle_normed, inner = (
        kept.normed, kept.attended, kept.middle, kept.middle_normed, kept.inner,
    )  # fmt: skip
    if normed is None:
        normed = residual.norm(rows, plan.norm(w.attention_norm, w.attention_norm_bias))
    if attended is None:
        qkv = _product(normed, w.project_in, w.project_in_bias).view(*kept.hidden.shape[:-1], -1)
        attended = attend_packed(qkv, plan.layer, plan.widths, plan.backend, table, plan.options.qk_norm, first)
    norm = plan.norm(w.feed_forward_norm, w.feed_forward_norm_bias)
    if middle is None:
        branch = _product(attended.out.flatten(0, -2), w.project_out, w.project_out_bias)
        middle, middle_normed = residual.add_norm(rows, branch, norm, drop)
    if middle_normed is None:
        middle_normed = residual.norm(middle, norm)
    if inner is None:
        inner = _product(middle_normed, w.expand, w.expand_bias)
    return Kept(kept.hidden, normed, attended, middle, middle_normed, inner)


def _product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x W^T + b of (R, in) with (out, in) and (out,)."""
    return torch.mm(x, weight.t()) if bias is None else torch.addmm(bias, x, weight.t())


def _backward(
    kept: Kept,
    d_result: Tensor,
    w: Weights,
    plan: Plan,
    drops: tuple[residual.Drop | None, residual.Drop | None],
    types: dict[str, torch.dtype],
) -> tuple[Tensor, dict[str, Tensor]]:
    """The gradient of the block's input, and of its parameters by name; ``types`` are those of the parameters."""
    rows, d_rows = kept.hidden.flatten(0, -2), d_result.flatten(0, -2)
    normed, attended, middle = kept.normed, kept.attended, kept.middle
    middle_normed, inner = kept.middle_normed, kept.inner
    del kept
    assert normed is not None and attended is not None and middle is not None
    assert middle_normed is not None and inner is not None
    vectors = (getattr(w, name) for name in NAMES)
    sums = RowSums(len(rows), sum(len(v) for v in vectors if v is not None and v.dim() == 1), rows.device)
    found: dict[str, Tensor] = {}

    def bias(name: str) -> str | None:
        return None if getattr(w, name) is None else name

    _, d_branch = residual.backward(d_rows, sums, drops[1], bias=bias("contract_bias"))
    d_inner = d_branch @ w.contract
    d_inner, active = activation.activate_backward(d_inner, inner, sums, bias("expand_bias"), plan.options.activation)
    found["contract"] = _outer(d_branch, active, types["contract"])
    del inner, active
    found["expand"] = _outer(d_inner, middle_normed, types["expand"])
    norm = plan.norm(w.feed_forward_norm, w.feed_forward_norm_bias)
    back = residual.Normed(d_inner @ w.expand, middle, norm, ("feed_forward_norm", "feed_forward_norm_bias"))
    del d_inner, middle_normed
    d_middle, d_branch = residual.backward(d_rows, sums, drops[0], normed=back, bias=bias("project_out_bias"))
    del back, middle
    found["project_out"] = _outer(d_branch, attended.out.flatten(0, -2), types["project_out"])
    d_qkv = attended.backward((d_branch @ w.project_out).view(*d_result.shape[:-1], -1)).flatten(0, -2)
    del attended
    if w.project_in_bias is not None:
        activation.sum_rows(d_qkv, sums, "project_in_bias")
    found["project_in"] = _outer(d_qkv, normed, types["project_in"])
    norm = plan.norm(w.attention_norm, w.attention_norm_bias)
    back = residual.Normed(d_qkv @ w.project_in, rows, norm, ("attention_norm", "attention_norm_bias"))
    d_hidden, _ = residual.backward(d_middle, sums, normed=back)
    return d_hidden.view(d_result.shape), found | sums.joined()


def _outer(d_out: Tensor, x: Tensor, dtype: torch.dtype) -> Tensor:
    """Gradient (out, in) of a matrix, from (R, out) and (R, in), straight in the type of the master weights."""
    if d_out.is_cuda and d_out.dtype != dtype:
        return torch.mm(d_out.t(), x, out_dtype=dtype)
    return (d_out.t() @ x).to(dtype)
