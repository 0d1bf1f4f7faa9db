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

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from src.attention import KeySet
from src.attention.attend import Backend
from src.models.block import Recompute
from src.models.fused import activation, residual
from src.models.fused.attended import Attended, attend_packed
from src.models.fused.row_sums import RowSums


@dataclass(frozen=True)
class Plan:
    """What a block computes, besides its weights.

    Args:
        layer: the key set of each head.
        widths: of all queries, all keys and all values.
        backend: of attention.
        dropout: probability at the end of each branch; 0 in evaluation.
        recompute: see above.
    """

    layer: tuple[KeySet, ...]
    widths: tuple[int, int, int]
    backend: Backend
    dropout: float
    recompute: Recompute

    def drop(self, seed: Tensor | None, branch: int) -> residual.Drop | None:
        """Dropout at the end of attention (0) or of the feed-forward (1)."""
        return None if seed is None or self.dropout == 0 else residual.Drop(seed, branch, self.dropout)


@dataclass(frozen=True)
class Weights:
    """A block's parameters in the order in which they are used; matrices are (out, in)."""

    attention_norm: Tensor
    attention_norm_bias: Tensor
    project_in: Tensor
    project_in_bias: Tensor
    project_out: Tensor
    project_out_bias: Tensor
    feed_forward_norm: Tensor
    feed_forward_norm_bias: Tensor
    expand: Tensor
    expand_bias: Tensor
    contract: Tensor
    contract_bias: Tensor

    @classmethod
    def cast(cls, parameters: tuple[Tensor, ...], dtype: torch.dtype) -> Weights:
        """Copy what matrix products take to ``dtype``, in one launch; norms stay as they are."""
        norms = (0, 1, 6, 7)
        products = [p for place, p in enumerate(parameters) if place not in norms]
        if any(p.dtype != dtype for p in products):
            copies = [torch.empty_like(p, dtype=dtype) for p in products]
            torch._foreach_copy_(copies, products)
            products = copies
        left = iter(products)
        return cls(*(p if place in norms else next(left) for place, p in enumerate(parameters)))


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
    def forward(ctx: Any, hidden: Tensor, seed: Tensor | None, plan: Plan, *parameters: Tensor) -> Tensor:
        weights = Weights.cast(parameters, hidden.dtype)
        drops = plan.drop(seed, 0), plan.drop(seed, 1)
        kept = _complete(Kept(hidden), plan, weights, drops[0])
        assert kept.inner is not None and kept.middle is not None
        branch = torch.addmm(weights.contract_bias, activation.activate(kept.inner), weights.contract.t())
        result = residual.add(kept.middle, branch, drops[1]).view(hidden.shape)
        ctx.save_for_backward(*parameters)
        ctx.weights = None if plan.recompute == "block" else weights
        ctx.plan, ctx.drops, ctx.kept = plan, drops, kept.by(plan.recompute)
        ctx.types = [p.dtype for p in parameters]
        return result

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, d_result: Tensor) -> tuple[Tensor | None, ...]:
        plan, drops = ctx.plan, ctx.drops
        weights = ctx.weights or Weights.cast(ctx.saved_tensors, ctx.kept.hidden.dtype)
        kept = _complete(ctx.kept, plan, weights, drops[0])
        ctx.kept = ctx.weights = None  # what is no longer needed is free before the next block's turn
        d_hidden, gradients = _backward(kept, d_result.contiguous(), weights, drops, ctx.types)
        return (d_hidden, None, None, *gradients)


def fused_block(hidden: Tensor, seed: Tensor | None, plan: Plan, parameters: tuple[Tensor, ...]) -> Tensor:
    """Add both branches of a block to the residual stream (equations 9 to 14).

    Args:
        hidden: (B, N, width), contiguous; under autocast it is cast to autocast's type.
        seed: (1,) int64 on the device, the seed of dropout; it must stay as it is until the backward pass.
        plan: what is computed.
        parameters: as in ``Weights``.

    Returns:
        (B, N, width) in the activation type.
    """
    device = hidden.device.type
    if torch.is_autocast_enabled(device):
        hidden = hidden.to(torch.get_autocast_dtype(device))
    with torch.autocast(device, enabled=False):
        result: Tensor = _Block.apply(hidden.contiguous(), seed, plan, *parameters)
    return result


def _complete(kept: Kept, plan: Plan, w: Weights, drop: residual.Drop | None) -> Kept:
    """Compute what is missing of a block's activations, up to the feed-forward's inner products."""
    rows = kept.hidden.flatten(0, -2)
    normed, attended, middle, middle_normed, inner = (
        kept.normed, kept.attended, kept.middle, kept.middle_normed, kept.inner,
    )  # fmt: skip
    if normed is None:
        normed = residual.norm(rows, w.attention_norm, w.attention_norm_bias)
    if attended is None:
        qkv = torch.addmm(w.project_in_bias, normed, w.project_in.t())
        attended = attend_packed(qkv.view(*kept.hidden.shape[:-1], -1), plan.layer, plan.widths, plan.backend)
    if middle is None:
        branch = torch.addmm(w.project_out_bias, attended.out.flatten(0, -2), w.project_out.t())
        middle, middle_normed = residual.add_norm(rows, branch, w.feed_forward_norm, w.feed_forward_norm_bias, drop)
    if middle_normed is None:
        middle_normed = residual.norm(middle, w.feed_forward_norm, w.feed_forward_norm_bias)
    if inner is None:
        inner = torch.addmm(w.expand_bias, middle_normed, w.expand.t())
    return Kept(kept.hidden, normed, attended, middle, middle_normed, inner)


def _backward(
    kept: Kept,
    d_result: Tensor,
    w: Weights,
    drops: tuple[residual.Drop | None, residual.Drop | None],
    types: list[torch.dtype],
) -> tuple[Tensor, list[Tensor]]:
    """The gradient of the block's input, and of its parameters in the order of ``Weights``."""
    rows, d_rows = kept.hidden.flatten(0, -2), d_result.flatten(0, -2)
    normed, attended, middle = kept.normed, kept.attended, kept.middle
    middle_normed, inner = kept.middle_normed, kept.inner
    del kept
    assert normed is not None and attended is not None and middle is not None
    assert middle_normed is not None and inner is not None
    width, inner_width, in_width = rows.shape[1], inner.shape[1], w.project_in.shape[0]
    sums = RowSums(len(rows), 6 * width + inner_width + in_width, rows.device)

    _, d_branch = residual.backward(d_rows, sums, drops[1], branch=True)
    d_inner, active = activation.activate_backward(d_branch @ w.contract, inner, sums)
    d_contract = _outer(d_branch, active, types[10])
    del inner, active
    d_expand = _outer(d_inner, middle_normed, types[8])
    normed_middle = (d_inner @ w.expand, middle, w.feed_forward_norm)
    del d_inner, middle_normed
    d_middle, d_branch = residual.backward(d_rows, sums, drops[0], normed=normed_middle, branch=True)
    del normed_middle, middle
    d_out = _outer(d_branch, attended.out.flatten(0, -2), types[4])
    d_qkv = attended.backward((d_branch @ w.project_out).view(*d_result.shape[:-1], -1)).flatten(0, -2)
    del attended
    activation.sum_rows(d_qkv, sums)
    d_in = _outer(d_qkv, normed, types[2])
    normed_input = (d_qkv @ w.project_in, rows, w.attention_norm)
    d_hidden, _ = residual.backward(d_middle, sums, normed=normed_input)

    parts = sums.joined().split([width, inner_width, width, width, width, in_width, width, width])
    d_contract_bias, d_expand_bias, d_norm2, d_norm2_bias, d_out_bias, d_in_bias, d_norm1, d_norm1_bias = parts
    gradients = (
        d_norm1, d_norm1_bias, d_in, d_in_bias, d_out, d_out_bias,
        d_norm2, d_norm2_bias, d_expand, d_expand_bias, d_contract, d_contract_bias,
    )  # fmt: skip
    return d_hidden.view(d_result.shape), [g.to(dtype) for g, dtype in zip(gradients, types, strict=True)]


def _outer(d_out: Tensor, x: Tensor, dtype: torch.dtype) -> Tensor:
    """Gradient (out, in) of a matrix, from (R, out) and (R, in), straight in the type of the master weights."""
    if d_out.is_cuda and d_out.dtype != dtype:
        return torch.mm(d_out.t(), x, out_dtype=dtype)
    return (d_out.t() @ x).to(dtype)
