"""Which bytes ``scripts.paper.table3`` scores, and from which windows: the same bytes in every row.

Blocks of ``stride`` bytes are counted from the first byte of the split, and every window begins with a block. So a byte
has one place within its block, whatever the row. With a fixed pattern that place decides how many of the bytes just
before it a query sees.

A row scores positions ``least`` to ``least + width - 1`` of its windows, whole blocks in number, and the next window
begins ``width`` bytes later. So the windows of a row tile the split: every byte has one window and at least ``least``
bytes before it there. Windows of different rows are often the same, and each is computed once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from src.errors import UserError

Ints = npt.NDArray[np.int64]
LAST_BLOCKS = 4  # that have a row of their own


class Row(NamedTuple):
    """Positions of a window that are scored: ``width`` of them from ``least`` on, a multiple of the stride."""

    least: int
    width: int


class Plan(NamedTuple):
    """What is scored.

    Attributes:
        rows: of the table, and of single blocks at the window's end.
        places: the bytes to score, by their places in the split, ascending, int64 (S * L,): S stretches of L bytes.
        stretches: S, how many there are.
        context: bytes of a window.
        stride: bytes of a block.
    """

    rows: list[Row]
    places: Ints
    stretches: int
    context: int
    stride: int

    def begins(self, row: Row) -> Ints:
        """Give the first byte of the window from which a row scores each byte, int64 (S * L,)."""
        before = -(-row.least // self.stride) * self.stride  # so that windows begin with a block
        origin = _first(self.context, self.stride)
        turn = (self.places - origin + before - row.least) // row.width
        return origin + turn * row.width - before

    def windows(self) -> Ints:
        """Give the first bytes of all windows, ascending, each once."""
        return np.unique(np.concatenate([np.unique(self.begins(row)) for row in self.rows]))


def plan(size: int, context: int, stride: int, least: Sequence[int], wanted: int) -> Plan:
    """Choose about ``wanted`` bytes of a split, in stretches as long as a window that are spread evenly over it.

    Args:
        size: bytes of the split.
        context: bytes of a window.
        stride: bytes of a block, at most ``context``.
        least: least contexts of the rows, each at most ``context - stride``.
        wanted: bytes to score; at least one stretch is.

    Raises:
        UserError: a row that cannot be, or a split that is too short.
    """
    check_rows(least, context, stride)
    length = context // stride * stride
    there = (size - _first(context, stride)) // length
    if there < 1:
        raise UserError(
            f"the split must have at least {_first(context, stride) + length:,} bytes, those of two windows, found "
            f"{size:,}"
        )
    stretches = min(there, max(1, round(wanted / length)))
    starts = _first(context, stride) + np.arange(stretches) * there // stretches * length
    blocks = context // stride
    rows = [Row(row, (context - row) // stride * stride) for row in least]
    rows += [Row(block * stride, stride) for block in range(max(0, blocks - LAST_BLOCKS), blocks)]
    places = (starts[:, None] + np.arange(length)).reshape(-1)
    return Plan(list(dict.fromkeys(rows)), places, stretches, context, stride)


def check_rows(least: Sequence[int], context: int, stride: int) -> None:
    """Refuse rows that cannot be; arguments as those of ``plan``.

    Raises:
        UserError: a least context that a byte at the beginning of a block cannot have, or no rows.
    """
    most = context - stride
    if most < 0:
        raise UserError(f"table 3 needs a data.context of at least attention.stride ({stride:,}), found {context:,}")
    if wrong := [row for row in least if not 0 <= row <= most]:
        raise UserError(
            f"--rows must be from 0 to {most:,} (data.context less attention.stride), found {wrong[0]:,}: "
            "the first byte of a block has no more before it"
        )


def _first(context: int, stride: int) -> int:
    """First byte that may be scored: a beginning of a block with a whole window before it."""
    return -(-context // stride) * stride


class Shares:
    """Which bytes of which row each window scores.

    Args:
        wanted: what is scored.
    """

    def __init__(self, wanted: Plan) -> None:
        self.plan, self.windows = wanted, wanted.windows()
        size = len(wanted.places)
        window = np.concatenate(
            [np.searchsorted(self.windows, wanted.begins(row)).astype(np.int32) for row in wanted.rows]
        )
        self._order = np.argsort(window, kind="stable")
        self._bounds = np.searchsorted(window[self._order], np.arange(len(self.windows) + 1))
        self._size = size

    def of(self, start: int, stop: int) -> tuple[Ints, Ints, Ints, Ints]:
        """Give what the windows ``start`` to ``stop - 1`` score.

        Returns:
            Row, index of the byte, window counted from ``start``, position in it; int64 (P,) each.
        """
        found = self._order[self._bounds[start] : self._bounds[stop]]
        row, byte = np.divmod(found, self._size)
        window = np.repeat(np.arange(stop - start), np.diff(self._bounds[start : stop + 1]))
        return row, byte, window, self.plan.places[byte] - self.windows[start + window]
