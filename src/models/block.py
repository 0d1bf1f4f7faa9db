"""The residual block of the Sparse Transformer (section 5.2, equations 9 to 14)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from src.attention import KeySet
from src.attention.attend import Backend, attend


class SparseAttention(nn.Module):
    """Multi-head attention whose heads see the key sets of one layer of a pattern.

    Args:
        width: ``d``, of the residual stream and of all values together.
        qk_width: of all queries together, and of all keys: ``d``, or ``d/2`` for half-size projections (section 7.1).
        layer: the key set of each head.
        backend: see ``src.attention.attend``.
    """

    def __init__(self, width: int, qk_width: int, layer: tuple[KeySet, ...], backend: Backend) -> None:
        super().__init__()
        self.layer = layer
        self.backend = backend
        self.widths = (qk_width, qk_width, width)
        self.project_in = nn.Linear(width, sum(self.widths))
        self.project_out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Attend. ``x`` and the result are (B, N, width)."""
        batch, length, _ = x.shape
        q, k, v = (
            part.view(batch, length, len(self.layer), -1).transpose(1, 2)
            for part in self.project_in(x).split(self.widths, dim=-1)
        )
        out = attend(q, k, v, self.layer, self.backend)
        return self.project_out(out.transpose(1, 2).reshape(batch, length, -1))


class FeedForward(nn.Module):
    """W2 f(W1 x + b1) + b2 with f(x) = x * sigmoid(1.702 x), the approximate GELU of section 5.2."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.expand = nn.Linear(width, inner)
        self.contract = nn.Linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        """Transform each position by itself. ``x`` and the result are (B, N, width)."""
        inner = self.expand(x)
        return self.contract(inner * torch.sigmoid(1.702 * inner))


class ResidualBlock(nn.Module):
    """H + a + b, where a = dropout(attention(norm(H))) and b = dropout(ff(norm(H + a))).

    Dropout acts only at the end of each branch, so that recomputing attention in the backward pass is exact
    (section 5.4).
    """

    def __init__(self, attention: SparseAttention, feed_forward: FeedForward, width: int, dropout: float) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(width)
        self.attention = attention
        self.feed_forward_norm = nn.LayerNorm(width)
        self.feed_forward = feed_forward
        self.dropout = nn.Dropout(dropout)

    def init_weights(self, blocks: int) -> None:
        """Draw the weights: biases 0, normal of std 0.125/sqrt(fan-in), Wp and W2 times 1/sqrt(2 * blocks)."""
        for linear in (self.attention.project_in, self.feed_forward.expand):
            _init_linear(linear, 1.0)
        for linear in (self.attention.project_out, self.feed_forward.contract):
            _init_linear(linear, 1 / math.sqrt(2 * blocks))

    def forward(self, hidden: Tensor) -> Tensor:
        """Add both branches to the residual stream. ``hidden`` and the result are (B, N, width)."""
        hidden = hidden + self.dropout(self.attention(self.attention_norm(hidden)))
        return hidden + self.dropout(self.feed_forward(self.feed_forward_norm(hidden)))


def _init_linear(linear: nn.Linear, scale: float) -> None:
    nn.init.normal_(linear.weight, std=scale * 0.125 / math.sqrt(linear.in_features))
    nn.init.zeros_(linear.bias)
