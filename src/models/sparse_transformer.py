"""The Sparse Transformer (Child et al. 2019, section 5): bytes in, next-byte logits out."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from src.attention import HeadPattern
from src.attention.backends import Backend
from src.attention.patterns import shared_layer
from src.models.embedding import ByteEmbedding, PositionKind
from src.models.options import PAPER, BlockBackend, BlockOptions, Recompute
from src.models.residual_block import (
    FeedForward,
    ResidualBlock,
    SparseAttention,
    resolve_block_backend,
)
from src.models.rotary import Rotary

VOCABULARY = 256


class SparseTransformer(nn.Module):
    """A decoder-only transformer with factorized attention.

    Args:
        pattern: what each head of each block may see.
        context: largest sequence length, in bytes.
        depth: number of residual blocks.
        width: ``d``, width of the residual stream.
        heads: attention heads in each block.
        kv_heads: heads of keys and values in each block, a divisor of ``heads``: so many neighbouring heads of queries
            as the ratio says share one (grouped-query attention, Ainslie et al. 2023). Heads with equal key sets are
            put side by side first, see ``src.attention.patterns.shared_layer``. None: as many as ``heads``.
        half_size_qk: queries and keys of ``d/2`` in all (section 7.1).
        half_size_ff: feed-forward inner width ``2d`` instead of ``4d`` (section 7.1).
        dropout: probability, at the end of each residual branch.
        positions: ``text`` (row and column) or ``image`` (row, column, channel), equation 15.
        row: width of the position matrix: positions a row (text), pixels a row (image).
        position_embeddings: whether there are learned position embeddings.
        rotary: base of rotary positions in attention; None: there are none.
        options: what residual blocks compute beside their sizes.
        init_scale: factor of every initial weight's standard deviation; 1 is the paper's 0.125/sqrt(fan-in), 8 is
            1/sqrt(fan-in).
        zero_outputs: both branches of every block begin at 0.
        embedding_std: standard deviation of the token embedding; None: the paper's 0.125/sqrt(d) times ``init_scale``.
        recompute: ``block`` keeps only the input of each residual block and recomputes the rest in the backward
            pass (section 5.4); ``light`` recomputes what is cheap; ``none`` keeps every activation.
        backend: attention backend, see ``src.attention.backends``.
        block_backend: of the residual blocks, see ``src.models.residual_block.resolve_block_backend``.

    Raises:
        ValueError: a head count that does not divide the widths, or heads of keys that do not divide those of queries;
            rotary positions for heads of odd width.
    """

    def __init__(
        self,
        *,
        pattern: HeadPattern,
        context: int,
        depth: int,
        width: int,
        heads: int,
        kv_heads: int | None = None,
        half_size_qk: bool = False,
        half_size_ff: bool = False,
        dropout: float = 0.0,
        positions: PositionKind = "text",
        row: int = 128,
        position_embeddings: bool = True,
        rotary: float | None = None,
        options: BlockOptions = PAPER,
        init_scale: float = 1.0,
        zero_outputs: bool = False,
        embedding_std: float | None = None,
        recompute: Recompute = "none",
        backend: Backend = "auto",
        block_backend: BlockBackend = "auto",
    ) -> None:
        super().__init__()
        qk_width = width // 2 if half_size_qk else width
        if qk_width % heads:
            raise ValueError(f"heads must divide the query width ({qk_width}), found {heads}")
        if kv_heads is not None and (kv_heads < 1 or heads % kv_heads):
            raise ValueError(f"kv_heads must divide heads ({heads}), found {kv_heads}")
        self.pattern = pattern
        self.context = context
        self.block_backend: BlockBackend = block_backend
        self.piece: int | None = None
        """In training attention stays within consecutive pieces of so many positions; None: it sees the sequence."""
        self.options = options
        self.embedding = ByteEmbedding(width, context, positions, row, VOCABULARY, position_embeddings)
        self.rotary = None if rotary is None else Rotary(rotary, context, qk_width // heads)
        self.blocks = nn.ModuleList(
            ResidualBlock(
                SparseAttention(width, qk_width, layer, backend, options.bias, options.qk_norm, kv_heads),
                FeedForward(width, (2 if half_size_ff else 4) * width, options.bias, options.activation),
                width,
                dropout,
                recompute,
                block_backend,
                options,
            )
            for layer in (shared_layer(pattern, heads, kv_heads, block) for block in range(depth))
        )
        self.norm = options.norm_module(width)
        self.output = nn.Linear(width, VOCABULARY, bias=False)
        self.init_weights(init_scale, zero_outputs, embedding_std)

    def init_weights(self, scale: float, zero_outputs: bool = False, embedding_std: float | None = None) -> None:
        """Draw all weights, see above; the output matrix is 0, so every byte costs 8 bits (section 5)."""
        paper = scale * 0.125 / math.sqrt(self.output.in_features)
        self.embedding.init_weights(paper if embedding_std is None else embedding_std)
        for block in self.blocks:
            block.init_weights(len(self.blocks), scale, zero_outputs)  # type: ignore[operator]
        nn.init.zeros_(self.output.weight)

    def forward(self, x: Tensor, seed: Tensor | None = None, documents: Tensor | None = None) -> Tensor:
        """Predict every byte from the bytes before it in its document.

        The first byte of a document is predicted from the start symbol alone, as that of a sequence is. Learned
        position embeddings count from the beginning of the row all the same; rotary positions are distances.

        Args:
            x: (B, N) bytes of any integer dtype, N at most ``context``, in training a multiple of ``piece``.
            seed: (1,) int64 below 2**62 on the device of ``x``, of the fused blocks' dropout; in training drawn from
                PyTorch's generator if it is not given.
            documents: (B, N) int32, the position at which the document of each position begins; None: a row is one.

        Returns:
            (B, N, 256) logits: position t scores byte t of ``x``.
        """
        if x.shape[1] > self.context:
            raise ValueError(f"a sequence may have at most {self.context} positions, found {x.shape[1]}")
        hidden, first = self.embedding(x, documents), documents
        if self.training and self.piece is not None:
            hidden = hidden.reshape(-1, self.piece, hidden.shape[-1])  # positions keep their embeddings
            first = None if documents is None else _in_pieces(documents, self.piece)
        table = None if self.rotary is None else self.rotary(0, hidden.shape[1])  # a piece has its own positions
        for block, own in zip(self.blocks, self._block_seeds(seed, x.device), strict=True):
            hidden = block(hidden, own, table, first)
        return self.output(self.norm(hidden.reshape(*x.shape, hidden.shape[-1])))

    def _block_seeds(self, seed: Tensor | None, device: torch.device) -> Sequence[Tensor | None]:
        if not self.training or resolve_block_backend(self.block_backend, device, torch.float32) == "eager":
            return [None] * len(self.blocks)
        if seed is None:
            seed = torch.full((1,), int(torch.randint(2**62, ())), device=device)
        return (seed + 2 * torch.arange(len(self.blocks), device=device)).split(1)  # a block has two branches

    def parameter_count(self) -> int:
        """Number of trained parameters."""
        return sum(p.numel() for p in self.parameters() if p.requires_grad)


def _in_pieces(first: Tensor, piece: int) -> Tensor:
    """Turn first positions (B, N) into those of pieces of rows, (B * N / piece, piece), counted in the piece."""
    begins = torch.arange(first.shape[1] // piece, device=first.device, dtype=first.dtype) * piece
    return (first.unflatten(1, (-1, piece)) - begins[:, None]).clamp(min=0).flatten(0, 1)
