"""Key sets of other papers, ready for ``attention=local``, ``longformer``, ``bigbird``, ``sinks``, ``axial`` and
``logarithmic``. The kernels over lists of tiles (``src.attention.tiled``) compute them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from src.attention.key_sets import Column, KeySet, OwnBlock, band, require, triangle


@dataclass(frozen=True)
class Local(KeySet):
    """The last ``window`` keys, the own one included, with ``dilation - 1`` left out between two (Longformer, Beltagy
    et al. 2020, section 3.1)."""

    window: int
    dilation: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        _at_least_one(self, "window", "dilation")

    def sees(self, i: Any, j: Any) -> Any:  # noqa: D102
        back = i - j
        return (back >= 0) & (back < self.window * self.dilation) & (back % self.dilation == 0)

    def pairs(self, n: int) -> int:  # noqa: D102
        rows, rest = divmod(n, self.dilation)
        return self.dilation * band(rows, self.window) + rest * min(rows + 1, self.window)

    def key_ranges(self, start: int, stop: int) -> Sequence[tuple[int, int]]:  # noqa: D102
        return [(max(0, start - (self.window - 1) * self.dilation), stop)]


@dataclass(frozen=True)
class WindowAndFirst(KeySet):
    """The last ``window`` keys and the ``first`` ones of the sequence: global tokens of a causal Longformer (Beltagy et
    al. 2020, section 3.1), or attention sinks (StreamingLLM, Xiao et al. 2023, section 3.1)."""

    window: int
    first: int

    def __post_init__(self) -> None:
        super().__post_init__()
        _at_least_one(self, "window", "first")

    def sees(self, i: Any, j: Any) -> Any:  # noqa: D102
        return (j <= i) & ((i - j < self.window) | (j < self.first))

    def pairs(self, n: int) -> int:  # noqa: D102
        return band(n, self.window) + (band(n - self.window, self.first) if n > self.window else 0)

    def key_ranges(self, start: int, stop: int) -> Sequence[tuple[int, int]]:  # noqa: D102
        near = max(0, start - self.window + 1)
        return [(0, min(self.first, near)), (near, stop)] if near else [(0, stop)]


@dataclass(frozen=True)
class BigBird(KeySet):
    """In blocks of ``block``: the own one and ``window - 1`` before it, the ``first`` ones of the sequence, and
    ``random`` of those before, drawn once for each block (BigBird, Zaheer et al. 2020, section 2; causal)."""

    block: int
    window: int
    first: int
    random: int
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        _at_least_one(self, "block", "window")
        require(
            min(self.first, self.random) >= 0, f"first and random must be at least 0, found {self.first}, {self.random}"
        )

    def sees(self, i: Any, j: Any) -> Any:  # noqa: D102
        own, other = i // self.block, j // self.block
        seen = (own - other < self.window) | (other < self.first)
        for number in range(self.random):
            seen = seen | (other == self._drawn(own, number))
        return (j <= i) & seen

    def pairs(self, n: int) -> int:  # noqa: D102
        whole, rest = divmod(n, self.block)
        found = 0
        for own in range(whole + (rest > 0)):
            rows = self.block if own < whole else rest
            before = {*range(max(0, own - self.window + 1), own), *range(min(self.first, own))}
            before |= {self._drawn(own, number) for number in range(self.random)} - {own}
            found += rows * self.block * len(before) + triangle(rows)
        return found

    def _drawn(self, own: Any, number: int) -> Any:
        """A block before ``own``, by a hash whose steps fit 32 bits; 0 for the first block, which sees itself."""
        mixed = (own * 40_503 + (self.seed * 101 + number + 1) * 7919 % 65_521) % 65_521
        return mixed * 30_011 % 65_519 % (own + (own == 0))


@dataclass(frozen=True)
class Axial(KeySet):
    """The own row of ``row`` positions up to the query, and the own column (Axial Transformers, Ho et al. 2019)."""

    row: int

    def __post_init__(self) -> None:
        super().__post_init__()
        _at_least_one(self, "row")

    def sees(self, i: Any, j: Any) -> Any:  # noqa: D102
        return (j <= i) & ((i // self.row == j // self.row) | ((i - j) % self.row == 0))

    def pairs(self, n: int) -> int:  # noqa: D102
        return OwnBlock(self.row).pairs(n) + Column(self.row).pairs(n) - n


@dataclass(frozen=True)
class Logarithmic(KeySet):
    """The last ``window`` keys and those at distances of powers of two (LogSparse, Li et al. 2019, section 4.2)."""

    window: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        _at_least_one(self, "window")

    def sees(self, i: Any, j: Any) -> Any:  # noqa: D102
        back = i - j
        return (back >= 0) & ((back < self.window) | ((back & (back - 1)) == 0))

    def pairs(self, n: int) -> int:  # noqa: D102
        powers = [1 << power for power in range(n.bit_length()) if self.window <= 1 << power < n]
        return band(n, self.window) + sum(n - back for back in powers)


READY_MADE: dict[str, type[KeySet]] = {
    "local": Local,
    "longformer": WindowAndFirst,
    "sinks": WindowAndFirst,
    "bigbird": BigBird,
    "axial": Axial,
    "logarithmic": Logarithmic,
}
"""By the names that ``attention.pattern`` takes."""


def _at_least_one(keys: KeySet, *names: str) -> None:
    for name in names:
        require(getattr(keys, name) >= 1, f"{name} must be at least 1, found {getattr(keys, name)}")
