"""Which keys one attention head lets each query see (Child et al. 2019, section 4), exactly.

Positions are 0-based and every set is causal: query ``i`` sees only keys ``j <= i``. Nothing of the paper's is larger
than O(1): counts are closed forms and membership is arithmetic.
"""

from __future__ import annotations

import importlib
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Any

_KNOWN: dict[str, KeySet] = {}
_AT_ONCE = 1 << 22  # pairs that are counted at once, where there is no closed form


@dataclass(frozen=True)
class KeySet(ABC):
    """The keys that one attention head lets each query see.

    Subclasses are frozen dataclasses, or objects that never change and compare as equal where they see the same.
    """

    _code = ""

    def __post_init__(self) -> None:
        """Subclasses with one of their own call this one."""
        _ = self.code

    @property
    def code(self) -> str:
        """The set as a text, by which operators of PyTorch take it; `KeySet.read` finds the set again."""
        if not self._code:
            object.__setattr__(self, "_code", _written(self))
        return self._code

    @staticmethod
    def read(code: str) -> KeySet:
        """Find the set of a ``code``, or make it anew where another process wrote it.

        Raises:
            ValueError: its class cannot be found by its name.
        """
        if code not in _KNOWN:
            place, fields = json.loads(code)
            module, _, name = place.partition(":")
            try:
                found = getattr(importlib.import_module(module), name)
            except (ImportError, AttributeError) as error:
                raise ValueError(f"the key set {place} of another process cannot be found: {error}") from error
            _KNOWN[code] = found(**{key: hashable(value) for key, value in fields.items()})
        return _KNOWN[code]

    @abstractmethod
    def sees(self, i: Any, j: Any) -> Any:
        """Say whether query ``i`` sees key ``j``.

        Args:
            i: query positions, an integer or an integer tensor.
            j: key positions, broadcastable with ``i``.

        Returns:
            A boolean, or a boolean tensor of the broadcast shape.
        """

    def pairs(self, n: int) -> int:
        """Count the (query, key) pairs kept in a sequence of ``n`` positions.

        The paper's sets have a closed form. This one asks ``sees`` of every pair, once, in O(n) memory.
        """
        return _counted(self, n)

    def key_ranges(self, start: int, stop: int) -> Sequence[tuple[int, int]]:
        """Give ranges ``(first, last + 1)`` of keys, apart from each other, that hold all keys which the queries
        ``start`` to ``stop - 1`` see. Narrow ones make the first use of a set fast; nothing else depends on them."""
        return ((0, stop),)

    @property
    def name(self) -> str:
        """The set's name in lower case, such as ``own block``, as pictures and errors use it."""
        return re.sub("(?<!^)([A-Z])", r" \1", type(self).__name__).lower()


@dataclass(frozen=True)
class Dense(KeySet):
    """Every key up to the query."""

    def sees(self, i: Any, j: Any) -> Any:  # noqa: D102
        return j <= i

    def pairs(self, n: int) -> int:  # noqa: D102
        return triangle(n)


@dataclass(frozen=True)
class _PerStride(KeySet):
    stride: int

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.stride >= 1, f"stride must be at least 1, found {self.stride}")


@dataclass(frozen=True)
class Window(_PerStride):
    """Strided A1 as a head of its own: the previous ``l`` positions and the query's own, ``l + 1`` in all."""

    def sees(self, i: Any, j: Any) -> Any:  # noqa: D102
        return (j <= i) & (i - j <= self.stride)

    def pairs(self, n: int) -> int:  # noqa: D102
        return band(n, self.stride + 1)


@dataclass(frozen=True)
class Column(_PerStride):
    """Strided A2: every ``l``-th position back from the query, its own included."""

    def sees(self, i: Any, j: Any) -> Any:  # noqa: D102
        return (j <= i) & ((i - j) % self.stride == 0)

    def pairs(self, n: int) -> int:  # noqa: D102
        blocks, rest = divmod(n, self.stride)
        return self.stride * triangle(blocks) + rest * (blocks + 1)


@dataclass(frozen=True)
class Strided(_PerStride):
    """Strided A1 u A2: the last ``l`` positions and every ``l``-th one before, each key once."""

    def sees(self, i: Any, j: Any) -> Any:  # noqa: D102
        return (j <= i) & ((i - j < self.stride) | ((i - j) % self.stride == 0))

    def pairs(self, n: int) -> int:  # noqa: D102
        below_diagonal = Column(self.stride).pairs(n) - n
        return band(n, self.stride) + below_diagonal


@dataclass(frozen=True)
class OwnBlock(_PerStride):
    """Fixed A1: the positions of the query's own block of ``l``, up to the query."""

    def sees(self, i: Any, j: Any) -> Any:  # noqa: D102
        return (j <= i) & (j // self.stride == i // self.stride)

    def pairs(self, n: int) -> int:  # noqa: D102
        blocks, rest = divmod(n, self.stride)
        return blocks * triangle(self.stride) + triangle(rest)


@dataclass(frozen=True)
class WithSummary(_PerStride):
    """What sets with summary cells share: ``summary`` cells a block, the ``sub_block``-th from its end."""

    summary: int
    sub_block: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            1 <= self.summary <= self.stride and self.stride % self.summary == 0,
            f"summary must divide stride ({self.stride}), found {self.summary}",
        )
        choices = self.stride // self.summary
        require(
            0 <= self.sub_block < choices,
            f"sub_block must be from 0 to {choices - 1}, found {self.sub_block}",
        )

    @property
    def first_cell(self) -> int:
        """First summary cell within a block; the cells are ``first_cell`` to ``first_cell + summary - 1``."""
        return self.stride - (self.sub_block + 1) * self.summary

    def is_cell(self, j: Any) -> Any:
        """Say whether position ``j`` is a summary cell."""
        cell = j % self.stride
        return (cell >= self.first_cell) & (cell < self.first_cell + self.summary)


@dataclass(frozen=True)
class Summary(WithSummary):
    """Fixed A2: the summary cells of every block, ``c`` in each; empty for queries before the first cell.

    ``sub_block`` counts back from the end of the block: 0 is the paper's last ``c`` positions (section 4.3).
    """

    def sees(self, i: Any, j: Any) -> Any:  # noqa: D102
        return (j <= i) & self.is_cell(j)

    def pairs(self, n: int) -> int:  # noqa: D102
        blocks, rest = divmod(n, self.stride)
        # a cell at position j is seen by the n - j queries from j on
        offsets = self.summary * self.first_cell + triangle(self.summary - 1)
        whole = self.summary * (blocks * n - self.stride * triangle(blocks - 1)) - blocks * offsets
        cells = max(0, min(self.summary, rest - self.first_cell))
        return whole + cells * (rest - self.first_cell) - triangle(cells - 1)


@dataclass(frozen=True)
class Fixed(WithSummary):
    """Fixed A1 u A2: the query's own block, and the summary cells of every earlier block."""

    def sees(self, i: Any, j: Any) -> Any:  # noqa: D102
        return (j <= i) & ((j // self.stride == i // self.stride) | self.is_cell(j))

    def pairs(self, n: int) -> int:  # noqa: D102
        blocks = n // self.stride
        earlier = self.summary * (blocks * n - self.stride * triangle(blocks))
        return OwnBlock(self.stride).pairs(n) + earlier


def _written(keys: KeySet) -> str:
    place = f"{type(keys).__module__}:{type(keys).__qualname__}"
    try:
        code = json.dumps([place, {f.name: getattr(keys, f.name) for f in fields(keys) if f.init}])
    except TypeError:  # no dataclass, or fields that are no plain values: known in this process alone
        code = f"{place} {id(keys)}"
    _KNOWN.setdefault(code, keys)
    return code


def hashable(value: Any) -> Any:
    """Give a plain value in a form that can be hashed: lists as tuples, tables as sorted pairs."""
    if isinstance(value, Mapping):
        return tuple(sorted((name, hashable(one)) for name, one in value.items()))
    return tuple(map(hashable, value)) if isinstance(value, list | tuple) else value


@lru_cache(maxsize=256)
def _counted(keys: KeySet, n: int) -> int:
    import torch  # late: a configuration is checked without it

    rows = max(1, _AT_ONCE // max(1, n))
    found = 0
    for start in range(0, n, rows):
        i = torch.arange(start, min(n, start + rows))[:, None]
        for first, last in keys.key_ranges(start, int(i[-1]) + 1):
            j = torch.arange(max(0, first), min(last, n))[None, :]
            found += int((torch.as_tensor(keys.sees(i, j)) & (j <= i)).sum())
    return found


PAPER = (Window, Column, Strided, OwnBlock, Summary, Fixed)
"""The sets of the paper beside the dense one: those that have kernels of their own."""


def triangle(n: int) -> int:
    """Pairs of ``n`` positions with every position up to their own."""
    return n * (n + 1) // 2 if n > 0 else 0


def band(n: int, width: int) -> int:
    """Pairs of a causal band that holds the query and the ``width - 1`` keys before it."""
    return triangle(min(n, width)) + max(0, n - width) * width


def require(true: bool, sentence: str) -> None:
    """Raise ValueError with ``sentence`` where something is not ``true``."""
    if not true:
        raise ValueError(sentence)
