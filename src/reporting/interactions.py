"""Where one choice of a sweep depends on another: a difference that changes with the value of a second setting."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from src.reporting.effects import Pair, at_equal_bytes, factors, paired, setting_of
from src.reporting.record import Record

LEAST = 0.005  # bits per byte: less than that is no difference to act on
PAIRS = 2  # with each value of the second setting: a single pair could be noise


@dataclass(frozen=True)
class Interaction:
    """A difference that depends on another setting.

    Args:
        key: the setting that is compared.
        value: its value.
        against: its first value.
        other: the setting on which the difference depends.
        bits: mean difference at equal bytes for each value of ``other``, bits per byte; below 0 ``value`` is better.
    """

    key: str
    value: str
    against: str
    other: str
    bits: Mapping[str, float]

    @property
    def range(self) -> float:
        """How much the difference changes, bits per byte."""
        return max(self.bits.values()) - min(self.bits.values())


def interactions(runs: Sequence[Record]) -> list[Interaction]:
    """Find the differences at equal bytes that depend on another setting, the largest change first.

    One counts where all pairs with one value of the other setting lie on the same side of all pairs with another. Of
    two settings that depend on each other the first one is told.
    """
    found, keys = [], factors(runs)
    for place, (key, (first, *values)) in enumerate(keys.items()):
        pairs = {value: paired(runs, key, value, first) for value in values}
        for other in list(keys)[place + 1 :]:
            for value in values:
                groups = _grouped(pairs[value], other)
                if _apart(groups):
                    means = {name: statistics.fmean(groups[name]) for name in keys[other] if name in groups}
                    found.append(Interaction(key, value, first, other, means))
    return sorted(found, key=lambda each: -each.range)


def _grouped(pairs: Sequence[Pair], other: str) -> dict[str, list[float]]:
    """Give the differences of pairs at equal bytes by the value that both have of another setting."""
    groups: dict[str, list[float]] = {}
    for pair in pairs:
        difference = at_equal_bytes(pair)
        if difference is not None:
            groups.setdefault(setting_of(pair[0], other), []).append(difference)
    return {value: differences for value, differences in groups.items() if len(differences) >= PAIRS}


def _apart(groups: Mapping[str, Sequence[float]]) -> bool:
    """Whether the lowest group, by its mean, ends well before the highest one begins."""
    if len(groups) < 2:
        return False
    low, *_, high = sorted(groups.values(), key=statistics.fmean)
    return min(high) - max(low) >= LEAST
