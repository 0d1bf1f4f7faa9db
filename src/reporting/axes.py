"""Axes: round numbers for ticks, and units in which they are short."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Axis:
    """A linear axis.

    Args:
        low: value at its beginning.
        high: value at its end.
        ticks: round values within.
        digits: behind the point of a tick.
    """

    low: float
    high: float
    ticks: tuple[float, ...]
    digits: int

    def place(self, value: float) -> float:
        """Where a value lies: 0 at the beginning, 1 at the end."""
        return (value - self.low) / (self.high - self.low)

    def text(self, tick: float) -> str:
        """Write a tick."""
        return f"{tick:,.{self.digits}f}"


@dataclass(frozen=True)
class Unit:
    """A unit and how many of the plain one it is."""

    name: str
    size: float


def axis(low: float, high: float, about: int = 5) -> Axis:
    """Lay an axis over an interval, with about so many ticks at multiples of 1, 2 or 5 of a power of ten."""
    if not high > low:
        pad = abs(low) * 0.05 or 1.0
        low, high = low - pad, high + pad
    rough = (high - low) / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * (1 - 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    ticks = tuple(number * step for number in range(first, last + 1))
    return Axis(low, high, ticks, max(0, -math.floor(math.log10(step) + 1e-9)))


def unit_of_bytes(most: float) -> Unit:
    """Give the unit in which so many bytes are a short number."""
    for name, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if most >= 2 * size:
            return Unit(name, size)
    return Unit("bytes", 1.0)


def unit_of_seconds(most: float) -> Unit:
    """Give the unit in which so many seconds are a short number."""
    for name, size in (("days", 86_400.0), ("hours", 3600.0), ("minutes", 60.0)):
        if most >= 2 * size:
            return Unit(name, size)
    return Unit("seconds", 1.0)


def window(values: Sequence[Sequence[float]], skipped: float = 0.0) -> tuple[float, float]:
    """Give the interval that curves fill, with a little room; the first share of each may lie above it.

    Args:
        values: of each curve, in order; at least one value in all.
        skipped: share of each curve that does not decide, such as the first steps of a loss.
    """
    deciding = [curve[int(len(curve) * skipped) :] or curve for curve in values if curve]
    low, high = min(map(min, deciding)), max(map(max, deciding))
    room = (high - low) * 0.06 or abs(high) * 0.02 or 1.0
    return low - room, high + room
