"""How much arithmetic a training step needs, counted on paper: the measure behind model FLOP utilisation."""

from __future__ import annotations

from dataclasses import dataclass

from src.attention import HeadPattern, Pattern
from src.optimizers.orthogonal import muon_flops


@dataclass(frozen=True)
class TrainingFlops:
    """Floating point operations of forward and backward; a multiply-add is two.

    Only what the model asks for is counted: no recomputation, no masked pairs that a kernel touches all the same, and
    nothing that is not a matrix product.

    Args:
        products: all weight matrices.
        attention: scores and weighted sums over the pairs that the pattern keeps.
        dense_attention: the same if every head saw every earlier position.
        muon: Muon's own products, once a step whatever the batch; in no sum below, as no optimizer's work is.
    """

    products: int
    attention: int
    dense_attention: int
    muon: int = 0

    @property
    def kept(self) -> int:
        """What this model needs."""
        return self.products + self.attention

    @property
    def dense_equivalent(self) -> int:
        """What the model would need with dense attention."""
        return self.products + self.dense_attention


@dataclass(frozen=True)
class RunFlops:
    """Floating point operations of the steps of a whole run.

    Args:
        full: of a step whose attention sees the whole context.
        short: of one whose attention stays within pieces of it.
        short_steps: how many of those come first.
    """

    full: TrainingFlops
    short: TrainingFlops | None = None
    short_steps: int = 0

    def mean(self, first: int, last: int) -> tuple[float, float]:
        """Give what a step needs, and would need with dense attention, on average over ``first <= step < last``."""
        if self.short is None:
            return self.full.kept, self.full.dense_equivalent
        share = max(0, min(last, self.short_steps) - first) / (last - first)
        kept = share * self.short.kept + (1 - share) * self.full.kept
        return kept, share * self.short.dense_equivalent + (1 - share) * self.full.dense_equivalent


def training_flops(
    pattern: HeadPattern,
    *,
    context: int,
    depth: int,
    width: int,
    heads: int,
    kv_heads: int | None = None,
    half_size_qk: bool = False,
    half_size_ff: bool = False,
    vocabulary: int = 256,
    sequences: int = 1,
    muon: bool = False,
) -> TrainingFlops:
    """Count ``sequences`` of ``context`` bytes; the other arguments but ``muon`` are those of ``SparseTransformer``.

    A weight of a matrix costs 2 operations a byte forward and 4 backward. A kept pair of a head costs
    ``2 * (d_qk + d_v)`` forward (a score and a weighted value) and twice that backward: gradients of q and k, and of
    the weights and v.
    """
    qk_width = width // 2 if half_size_qk else width
    inner = (2 if half_size_ff else 4) * width
    key_heads = heads if kv_heads is None else kv_heads
    keys_values = [(whole * key_heads // heads, width) for whole in (qk_width, width)]
    matrices = [(qk_width, width), *keys_values, (width, width), (inner, width), (width, inner)]
    block = sum(rows * columns for rows, columns in matrices)
    pair = 6 * sequences * (qk_width + width) // heads
    return TrainingFlops(
        products=6 * sequences * context * (depth * block + width * vocabulary),
        attention=pair * pattern.pairs(context, heads, depth),
        dense_attention=pair * Pattern("dense").pairs(context, heads, depth),
        muon=muon_flops(matrices * depth) if muon else 0,
    )
