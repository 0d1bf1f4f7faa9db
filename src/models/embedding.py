"""Bytes and their positions as vectors (section 5, equation 15)."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

PositionKind = Literal["text", "image"]


CHANNELS = 3


def grid_coordinates(kind: PositionKind, context: int, row: int) -> Tensor:
    """Give each position its coordinates, one for each learned position embedding.

    Args:
        kind: ``text`` for (row, column) in a matrix that is ``row`` positions wide; ``image`` for (row, column,
            channel) of the byte in a picture that is ``row`` pixels wide, three bytes a pixel.
        context: number of positions.
        row: width of the matrix in positions (text), or of the picture in pixels (image).

    Returns:
        int64 tensor of shape (coordinates, context).
    """
    position = torch.arange(context)
    if kind == "text":
        return torch.stack([position // row, position % row])
    pixel = position // CHANNELS
    return torch.stack([pixel // row, pixel % row, position % CHANNELS])


def grid_sizes(kind: PositionKind, context: int, row: int) -> tuple[int, ...]:
    """Give the number of values that each coordinate of ``grid_coordinates`` takes."""
    if kind == "text":
        return math.ceil(context / row), row
    return math.ceil(context / (row * CHANNELS)), row, CHANNELS


class ByteEmbedding(nn.Module):
    """Embed the sequence shifted right by one, with a start symbol, and add the positions of the predicted bytes.

    Args:
        width: ``d``, width of the residual stream.
        context: largest number of positions.
        positions: which position embeddings are summed: 2 for ``text``, 3 for ``image`` (equation 15).
        row: width of the position matrix, see ``grid_coordinates``.
        vocabulary: number of symbols; the start symbol is one row more.
        learned: whether there are position embeddings at all; attention may have rotary positions instead.
    """

    def __init__(
        self,
        width: int,
        context: int,
        positions: PositionKind,
        row: int,
        vocabulary: int = 256,
        learned: bool = True,
    ) -> None:
        super().__init__()
        self.start = vocabulary
        self.token = nn.Embedding(vocabulary + 1, width)
        self.coordinates: Tensor
        """int64 (tables, context): the row of each position table that a position takes."""
        coordinates = grid_coordinates(positions, context, row)
        self.register_buffer("coordinates", coordinates if learned else coordinates[:0], persistent=False)
        sizes = grid_sizes(positions, context, row) if learned else ()
        self.position = nn.ModuleList(nn.Embedding(size, width) for size in sizes)

    def init_weights(self, std: float) -> None:
        """Draw the weights with deviation ``std``, those of positions with ``std``/sqrt(n_emb).

        The paper's ``std`` is 0.125/sqrt(d) (section 5).
        """
        nn.init.normal_(self.token.weight, std=std)
        for table in self.position:
            nn.init.normal_(table.weight, std=std / math.sqrt(len(self.position)))  # type: ignore[arg-type]

    def forward(self, x: Tensor, documents: Tensor | None = None) -> Tensor:
        """Embed ``x``.

        Args:
            x: (B, N) symbols of any integer dtype, N at most ``context``.
            documents: (B, N), the position at which the document of each position begins; None: a row is one.

        Returns:
            (B, N, width): position t holds symbol t - 1 (the start symbol where a document begins) and the place of
            symbol t in the row.
        """
        shifted = torch.cat([x.new_full((x.shape[0], 1), 0, dtype=torch.int64), x[:, :-1].long()], dim=1)
        shifted[:, 0] = self.start
        shifted = shifted[:, : x.shape[1]]  # of nothing, nothing
        if documents is not None:
            begins = documents == torch.arange(x.shape[1], device=x.device)
            shifted = shifted.masked_fill(begins, self.start)
        hidden: Tensor = self.token(shifted)
        for table, coordinate in zip(self.position, self.coordinates, strict=True):
            hidden = hidden + table(coordinate[: x.shape[1]])
        return hidden
