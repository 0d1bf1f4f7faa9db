"""The residual block of the Sparse Transformer (section 5.2, equations 9 to 14)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from src.attention import KeySet
from src.attention.backends import Backend, attend, triton_problem
from src.models.options import PAPER, Activation, BlockBackend, BlockOptions, Recompute
from src.models.rotary import turn


def resolve_block_backend(name: BlockBackend, device: torch.device, dtype: torch.dtype) -> BlockBackend:
    """Say which implementation of the residual block is taken, so that the caller can log what ``auto`` means here.

    Args:
        name: ``fused`` is ``src.models.fused``, ``eager`` is this file as it stands.
        device: where the tensors live.
        dtype: of the residual stream; the fused block computes sums in float32, so float64 is not for it.

    Raises:
        ValueError: ``fused`` where it cannot run.
    """
    if name == "eager":
        return "eager"
    problem = "the fused block takes bf16, fp16 or fp32" if dtype == torch.float64 else triton_problem(device)
    if name == "fused" and problem is not None:
        raise ValueError(f"backend fused is not available: {problem}; use eager or auto")
    return "fused" if problem is None and (name == "fused" or device.type == "cuda") else "eager"


class SparseAttention(nn.Module):
    """Multi-head attention whose heads see the key sets of one layer of a pattern.

    Args:
        width: ``d``, of the residual stream and of all values together.
        qk_width: of all queries together, and of all keys: ``d``, or ``d/2`` for half-size projections (section 7.1).
        layer: the key set of each head.
        backend: see ``src.attention.backends``.
        bias: whether the matrices have biases.
        qk_norm: see ``BlockOptions``.
        kv_heads: heads of keys and values, a divisor of the heads of queries, neighbours of which share one
            (grouped-query attention, Ainslie et al. 2023); None: as many as of queries.
    """

    def __init__(
        self,
        width: int,
        qk_width: int,
        layer: tuple[KeySet, ...],
        backend: Backend,
        bias: bool = True,
        qk_norm: float | None = None,
        kv_heads: int | None = None,
    ) -> None:
        super().__init__()
        self.layer = layer
        self.backend = backend
        self.qk_norm = qk_norm
        shared = len(layer) if kv_heads is None else kv_heads
        self.heads = (len(layer), shared, shared)
        self.widths = (qk_width, qk_width * shared // len(layer), width * shared // len(layer))
        self.project_in = nn.Linear(width, sum(self.widths), bias=bias)
        self.project_out = nn.Linear(width, width, bias=bias)

    def forward(self, x: Tensor, table: Tensor | None = None, first: Tensor | None = None) -> Tensor:
        """Attend.

        Args:
            x: (B, N, width), as is the result.
            table: rotary positions (2, N, d_head / 2), or None.
            first: (B, N) int32, the first position that each one may see; None: any.
        """
        q, k, v = (part.transpose(1, 2) for part in self.queries_keys_values(x, table))
        out = attend(q, k, v, self.layer, self.backend, first=first)
        return self.project_out(out.transpose(1, 2).flatten(2))

    def queries_keys_values(self, x: Tensor, table: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Project ``x`` (B, N, width) to queries (B, N, H, d_head), and keys and values (B, N, kv_heads, d_head)."""
        parts = zip(self.project_in(x).split(self.widths, dim=-1), self.heads, strict=True)
        q, k, v = (part.unflatten(-1, (heads, part.shape[-1] // heads)) for part, heads in parts)
        return turn(q, table, self.qk_norm), turn(k, table, self.qk_norm), v


class FeedForward(nn.Module):
    """W2 f(W1 x + b1) + b2; the paper's f is x * sigmoid(1.702 x), an approximate GELU (section 5.2)."""

    def __init__(self, width: int, inner: int, bias: bool = True, activation: Activation = "gelu") -> None:
        super().__init__()
        self.expand = nn.Linear(width, inner, bias=bias)
        self.contract = nn.Linear(inner, width, bias=bias)
        self.activation: Activation = activation

    def forward(self, x: Tensor) -> Tensor:
        """Transform each position by itself. ``x`` and the result are (B, N, width)."""
        return self.contract(activated(self.expand(x), self.activation))


def activated(x: Tensor, activation: Activation) -> Tensor:
    """Apply the activation of ``BlockOptions`` to each number."""
    return F.relu(x).square() if activation == "relu2" else x * torch.sigmoid(1.702 * x)


class ResidualBlock(nn.Module):
    """H + a + b, where a = dropout(attention(norm(H))) and b = dropout(ff(norm(H + a))).

    Dropout acts only at the end of each branch, so that recomputing attention in the backward pass is exact
    (section 5.4).

    Args:
        attention: the first branch.
        feed_forward: the second branch.
        width: ``d``, of the residual stream.
        dropout: probability.
        recompute: what the backward pass computes again: ``none``; ``light``, norms and the feed-forward's inner
            products (eager: the feed-forward branch); ``block``, everything but the block's input.
        backend: see ``resolve_block_backend``.
        options: what ``attention`` and ``feed_forward`` were built with.
    """

    def __init__(
        self,
        attention: SparseAttention,
        feed_forward: FeedForward,
        width: int,
        dropout: float,
        recompute: Recompute = "none",
        backend: BlockBackend = "auto",
        options: BlockOptions = PAPER,
    ) -> None:
        super().__init__()
        self.options = options
        self.attention_norm = options.norm_module(width)
        self.attention = attention
        self.feed_forward_norm = options.norm_module(width)
        self.feed_forward = feed_forward
        self.dropout = nn.Dropout(dropout)
        self.recompute = recompute
        self.backend = backend

    def init_weights(self, blocks: int, scale: float, zero_outputs: bool = False) -> None:
        """Draw the weights: biases 0, deviation ``scale`` * 0.125/sqrt(fan-in), Wp and W2 / sqrt(2 * blocks).

        With ``zero_outputs`` Wp and W2 are 0: an untrained block changes nothing.
        """
        for linear in (self.attention.project_in, self.feed_forward.expand):
            _init_linear(linear, scale)
        for linear in (self.attention.project_out, self.feed_forward.contract):
            _init_linear(linear, 0.0 if zero_outputs else scale / math.sqrt(2 * blocks))

    def forward(
        self, hidden: Tensor, seed: Tensor | None = None, table: Tensor | None = None, first: Tensor | None = None
    ) -> Tensor:
        """Add both branches to the residual stream.

        Args:
            hidden: (B, N, width), as is the result.
            seed: (1,) int64, of the fused block's dropout; without it nothing is dropped there. The eager block draws
                from PyTorch's generator.
            table: rotary positions (2, N, d_head / 2), or None.
            first: (B, N) int32, the first position that each one may see; None: any.
        """
        if resolve_block_backend(self.backend, hidden.device, hidden.dtype) == "fused":
            return self._fused(hidden, seed, table, first)
        if self.recompute == "block" and self.training:
            return checkpoint(self._eager, hidden, table, first, use_reentrant=False)
        return self._eager(hidden, table, first)

    def _eager(self, hidden: Tensor, table: Tensor | None, first: Tensor | None) -> Tensor:
        hidden = hidden + self.dropout(self.attention(self.attention_norm(hidden), table, first))
        if self.recompute == "light" and self.training:
            return hidden + checkpoint(self._second_branch, hidden, use_reentrant=False)
        return hidden + self._second_branch(hidden)

    def _second_branch(self, hidden: Tensor) -> Tensor:
        return self.dropout(self.feed_forward(self.feed_forward_norm(hidden)))

    def _fused(self, hidden: Tensor, seed: Tensor | None, table: Tensor | None, first: Tensor | None) -> Tensor:
        from src.models.fused.residual_block import Plan, fused_block

        attention, feed_forward = self.attention, self.feed_forward
        dropout = self.dropout.p if self.training else 0.0
        plan = Plan(attention.layer, attention.widths, attention.backend, dropout, self.recompute, self.options)
        parts: tuple[nn.Module, ...] = (
            self.attention_norm, attention.project_in, attention.project_out,
            self.feed_forward_norm, feed_forward.expand, feed_forward.contract,
        )  # fmt: skip
        parameters = (getattr(part, name, None) for part in parts for name in ("weight", "bias"))
        return fused_block(hidden, seed, table, first, plan, tuple(parameters))


def _init_linear(linear: nn.Linear, scale: float) -> None:
    nn.init.normal_(linear.weight, std=scale * 0.125 / math.sqrt(linear.in_features))
    if linear.bias is not None:
        nn.init.zeros_(linear.bias)
