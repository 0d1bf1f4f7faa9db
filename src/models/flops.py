"""How much arithmetic a training step needs, counted on paper: the measure behind model FLOP utilisation."""

from __future__ import annotations

from dataclasses import dataclass

from src.attention import Pattern


@dataclass(frozen=True)
class TrainingFlops:
    """Floating point operations of forward and backward; a multiply-add is two.

    Only what the model asks for is counted: no recomputation, no masked pairs that a kernel touches all the same, and
    nothing that is not a matrix product.

    Args:
        products: all weight matrices.
        attention: scores and weighted sums over the pairs that the pattern keeps.
        dense_attention: the same if every head saw every earlier position.
    """

    products: int
    attention: int
    dense_attention: int

    @property
    def kept(self) -> int:
        """What this model needs."""
        return self.products + self.attention

    @property
    def dense_equivalent(self) -> int:
        """What the model would need with dense attention."""
        return self.products + self.dense_attention


def training_flops(
    pattern: Pattern,
    *,
    context: int,
    depth: int,
    width: int,
    heads: int,
    half_size_qk: bool = False,
    half_size_ff: bool = False,
    vocabulary: int = 256,
    sequences: int = 1,
) -> TrainingFlops:
    """Count ``sequences`` of ``context`` bytes; the other arguments are those of ``SparseTransformer``.

    A weight of a matrix costs 2 operations a byte forward and 4 backward. A kept pair of a head costs
    ``2 * (d_qk + d_v)`` forward (a score and a weighted value) and twice that backward: gradients of q and k, and of
    the weights and v.
    """
    qk_width = width // 2 if half_size_qk else width
    inner = (2 if half_size_ff else 4) * width
    block = width * (2 * qk_width + width) + width * width + 2 * width * inner
    pair = 6 * sequences * (qk_width + width) // heads
    return TrainingFlops(
        products=6 * sequences * context * (depth * block + width * vocabulary),
        attention=pair * pattern.pairs(context, heads, depth),
        dense_attention=pair * Pattern("dense").pairs(context, heads, depth),
    )
