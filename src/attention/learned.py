"""What a trained network attends to, for one query: plain arrays, which ``draw_learned`` makes a picture of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Learned:
    """The attention weights of one query.

    Args:
        query: the position whose attention is shown: it predicts byte ``query``.
        weights: float32 (blocks, heads, query + 1): the weight on each key position; a row sums to 1, or is 0 where
            the head sees nothing.
        blocks: number of each residual block shown.
        heads: number of each head shown.
        names: key set of each block and head shown, ``names[block][head]``.
    """

    query: int
    weights: Floats
    blocks: Sequence[int]
    heads: Sequence[int]
    names: Sequence[Sequence[str]]

    def on_bytes(self) -> Floats:
        """Give the weight on each byte before the query, (blocks, heads, query).

        Key position j holds byte j - 1; position 0 holds the start symbol, which is left out.
        """
        return self.weights[..., 1:]


def spread(count: int, most: int) -> list[int]:
    """Choose at most ``most`` of ``count`` things evenly, the first and the last among them."""
    kept = min(count, most)
    return [round(i * (count - 1) / max(1, kept - 1)) for i in range(kept)]
