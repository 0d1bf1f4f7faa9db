"""What a query may see: the attention patterns of Child et al. 2019, section 4, exactly.

Positions are 0-based and every set is causal: query ``i`` sees only keys ``j <= i``. A *key set* says what one
head sees; a *pattern* says which key set each head of each residual block uses.

    pattern            first set A1          second set A2           merged A1 u A2
    dense              Dense                 none                    Dense
    strided (l)        Window(l)             Column(l)               Strided(l)
    fixed (l, c)       OwnBlock(l)           Summary(l, c)           Fixed(l, c)

The three ways to use the two sets are those of section 5.1: *merged* (equation 7), *interleaved* (equation 6) and
*multihead* (equation 8). Nothing here is larger than O(1): counts are closed forms and membership is arithmetic.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Literal, get_args

from src.attention.key_sets import (
    Column,
    Dense,
    Fixed,
    KeySet,
    OwnBlock,
    Strided,
    Summary,
    Window,
    WithSummary,
    require,
)  # fmt: skip

PatternName = Literal["dense", "strided", "fixed"]
Mode = Literal["merged", "interleaved", "multihead"]


class HeadPattern(ABC):
    """Which key set each head of each residual block uses."""

    name: Any

    @abstractmethod
    def layer(self, heads: int, block: int = 0) -> tuple[KeySet, ...]:
        """Give the key set of every head of one residual block.

        Args:
            heads: number of attention heads.
            block: index of the residual block, from 0.

        Returns:
            One key set a head, in the order of the heads.

        Raises:
            ValueError: no such layer can be; the sentence says why.
        """

    @property
    def turns(self) -> int:
        """After so many residual blocks the layers begin anew."""
        return 1

    def pairs(self, n: int, heads: int, blocks: int) -> int:
        """Count the pairs kept by a whole network: every head of every residual block, for ``n`` positions."""
        return sum(keys.pairs(n) for block in range(blocks) for keys in self.layer(heads, block))


@dataclass(frozen=True)
class Pattern(HeadPattern):
    """An attention pattern of the paper, and how its two sets are shared out over blocks and heads.

    Args:
        name: ``dense``, ``strided`` or ``fixed`` (section 4.3).
        stride: ``l``, in positions; near sqrt(n).
        summary: ``c``, summary cells a block (fixed only); divides ``stride``.
        mode: ``merged``, ``interleaved`` or ``multihead`` (section 5.1). Dense has one set, so every mode is the same.
        distinct: each head its own sub-block of summary cells (section 4.3, last paragraph), else all the last one.
        interleave: for ``interleaved``, how many residual blocks in a row use A1 and how many then use A2.

    Raises:
        ValueError: a value that no pattern has; the sentence names the argument and what is allowed.
    """

    name: PatternName
    stride: int = 128
    summary: int = 32
    mode: Mode = "merged"
    distinct: bool = True
    interleave: tuple[int, int] = (1, 1)

    def __post_init__(self) -> None:
        require(self.name in get_args(PatternName), _choice("name", self.name, get_args(PatternName)))
        require(self.mode in get_args(Mode), _choice("mode", self.mode, get_args(Mode)))
        require(
            len(self.interleave) == 2 and min(self.interleave) >= 1,
            f"interleave must be two counts of at least 1, found {self.interleave}",
        )
        if self.name == "fixed":
            Fixed(self.stride, self.summary)
        elif self.name == "strided":
            Strided(self.stride)

    @property
    def turns(self) -> int:  # noqa: D102
        return sum(self.interleave) if self.mode == "interleaved" else 1

    def layer(self, heads: int, block: int = 0) -> tuple[KeySet, ...]:  # noqa: D102
        require(heads >= 1, f"heads must be at least 1, found {heads}")
        if self.name == "dense":
            return (Dense(),) * heads
        if self.mode == "multihead":
            require(heads >= 2, f"mode multihead splits the heads, so heads must be at least 2, found {heads}")
            first = (heads + 1) // 2
            return tuple(self._first() if h < first else self._second(h) for h in range(heads))
        if self.mode == "interleaved":
            first_in_turn = block % sum(self.interleave) < self.interleave[0]
            return tuple(self._first() if first_in_turn else self._second(h) for h in range(heads))
        return tuple(self._merged(h) for h in range(heads))

    def _first(self) -> KeySet:
        return Window(self.stride) if self.name == "strided" else OwnBlock(self.stride)

    def _second(self, head: int) -> KeySet:
        if self.name == "strided":
            return Column(self.stride)
        return Summary(self.stride, self.summary, self._sub_block(head))

    def _merged(self, head: int) -> KeySet:
        if self.name == "strided":
            return Strided(self.stride)
        return Fixed(self.stride, self.summary, self._sub_block(head))

    def _sub_block(self, head: int) -> int:
        return head % (self.stride // self.summary) if self.distinct else 0


@dataclass(frozen=True)
class HeadGroup:
    """Neighbouring heads whose key sets differ at most in their summary sub-block: one call of a backend.

    Args:
        start: first head of the group.
        stop: one past its last head.
        keys: the key set of each head of the group.
    """

    start: int
    stop: int
    keys: tuple[KeySet, ...]

    @property
    def first(self) -> KeySet:
        """The key set of the group's first head; kind, stride and summary are those of the whole group."""
        return self.keys[0]

    @property
    def first_cells(self) -> tuple[int, ...]:
        """First summary cell within a block, for each head; empty where the kind has no summary cells."""
        return tuple(keys.first_cell for keys in self.keys if isinstance(keys, WithSummary))


def head_groups(layer: tuple[KeySet, ...]) -> tuple[HeadGroup, ...]:
    """Split the heads of one layer into runs that one backend call can serve."""

    def kind(head: int) -> tuple[Any, ...]:
        keys = layer[head]
        return type(keys), getattr(keys, "stride", 0), getattr(keys, "summary", 0)

    runs = [list(run) for _, run in groupby(range(len(layer)), key=kind)]
    return tuple(HeadGroup(run[0], run[-1] + 1, layer[run[0] : run[-1] + 1]) for run in runs)


def shared_layer(pattern: HeadPattern, heads: int, kv_heads: int | None, block: int = 0) -> tuple[KeySet, ...]:
    """Give the key set of every head of a residual block where neighbouring heads share keys and values.

    Heads with equal key sets come side by side then, in the order of their first: so the fewest keys have to be kept
    for later queries in generation.

    Args:
        pattern: whose key sets they are.
        heads: attention heads of queries.
        kv_heads: of keys and values; None, or as many as ``heads``: the pattern's own order.
        block: index of the residual block, from 0.
    """
    layer = pattern.layer(heads, block)
    if kv_heads in (None, heads):
        return layer
    return tuple(keys for kind in dict.fromkeys(layer) for keys in layer if keys == kind)


def _choice(key: str, found: object, allowed: tuple[str, ...]) -> str:
    return f"{key} must be one of {', '.join(allowed)}, found {found!r}"
