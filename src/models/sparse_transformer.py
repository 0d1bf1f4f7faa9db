"""The Sparse Transformer (Child et al. 2019, section 5): bytes in, next-byte logits out."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from src.attention import Pattern
from src.attention.attend import Backend
from src.models.block import FeedForward, ResidualBlock, SparseAttention
from src.models.embedding import ByteEmbedding, PositionKind

Recompute = Literal["none", "block"]
VOCABULARY = 256


class SparseTransformer(nn.Module):
    """A decoder-only transformer with factorized attention.

    Args:
        pattern: what each head of each block may see.
        context: largest sequence length, in bytes.
        depth: number of residual blocks.
        width: ``d``, width of the residual stream.
        heads: attention heads in each block.
        half_size_qk: queries and keys of ``d/2`` in all (section 7.1).
        half_size_ff: feed-forward inner width ``2d`` instead of ``4d`` (section 7.1).
        dropout: probability, at the end of each residual branch.
        positions: ``text`` (row and column) or ``image`` (row, column, channel), equation 15.
        row: width of the position matrix: positions a row (text), pixels a row (image).
        recompute: ``block`` keeps only the input of each residual block and recomputes the rest in the backward
            pass (section 5.4); ``none`` keeps every activation.
        backend: attention backend, see ``src.attention.attend``.

    Raises:
        ValueError: a head count that does not divide the widths.
    """

    def __init__(
        self,
        *,
        pattern: Pattern,
        context: int,
        depth: int,
        width: int,
        heads: int,
        half_size_qk: bool = False,
        half_size_ff: bool = False,
        dropout: float = 0.0,
        positions: PositionKind = "text",
        row: int = 128,
        recompute: Recompute = "none",
        backend: Backend = "auto",
    ) -> None:
        super().__init__()
        qk_width = width // 2 if half_size_qk else width
        if qk_width % heads:
            raise ValueError(f"heads must divide the query width ({qk_width}), found {heads}")
        self.pattern = pattern
        self.context = context
        self.recompute = recompute
        self.embedding = ByteEmbedding(width, context, positions, row, VOCABULARY)
        self.blocks = nn.ModuleList(
            ResidualBlock(
                SparseAttention(width, qk_width, pattern.layer(heads, index), backend),
                FeedForward(width, 2 * width if half_size_ff else 4 * width),
                width,
                dropout,
            )
            for index in range(depth)
        )
        self.norm = nn.LayerNorm(width)
        self.output = nn.Linear(width, VOCABULARY, bias=False)
        self.init_weights()

    def init_weights(self) -> None:
        """Draw all weights as section 5 says; the output matrix is 0, so every byte costs exactly 8 bits."""
        self.embedding.init_weights()
        for block in self.blocks:
            block.init_weights(len(self.blocks))  # type: ignore[operator]
        nn.init.zeros_(self.output.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Predict every byte from the bytes before it.

        Args:
            x: (B, N) bytes of any integer dtype, N at most ``context``.

        Returns:
            (B, N, 256) logits: position t scores byte t of ``x``.
        """
        if x.shape[1] > self.context:
            raise ValueError(f"a sequence may have at most {self.context} positions, found {x.shape[1]}")
        hidden = self.embedding(x)
        for block in self.blocks:
            if self.recompute == "block" and self.training:
                hidden = checkpoint(block, hidden, use_reentrant=False)
            else:
                hidden = block(hidden)
        return self.output(self.norm(hidden))

    def parameter_count(self) -> int:
        """Number of trained parameters."""
        return sum(p.numel() for p in self.parameters() if p.requires_grad)
