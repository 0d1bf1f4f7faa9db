"""Rows of table 2 that looked for a rate: which rates the first seed tried, and which one counts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from src.reporting.compare import SEED
from src.reporting.record import ATTENTION, Record

RATE = "logger.columns.sweep/rate"  # in the configuration of a run whose rate was one of several
Place = tuple[str, tuple[tuple[str, str], ...]]
"""A row: its attention, and what else tells it from others."""


@dataclass(frozen=True)
class Tuning:
    """What a row tried.

    Args:
        seed: that tried the rates.
        tried: rate and bits per byte of the last validation; None for a run that is not finished.
    """

    seed: str
    tried: Mapping[str, float | None]

    @property
    def best(self) -> str | None:
        """The rate with the lowest validation; None while no run is finished."""
        known = {rate: bits for rate, bits in self.tried.items() if bits is not None}
        return min(known, key=lambda rate: known[rate], default=None)

    @property
    def at_the_edge(self) -> bool:
        """Whether the best of several is the lowest or the highest: a better one may lie beyond."""
        rates = sorted(self.tried, key=float)
        return len(rates) > 1 and self.best in (rates[0], rates[-1])


def place(attention: str, settings: Mapping[str, str]) -> Place:
    """Name a row."""
    return attention, tuple(sorted((key, value) for key, value in settings.items() if key not in (ATTENTION, SEED)))


def tunings(runs: Sequence[Record]) -> dict[Place, Tuning]:
    """Find what each row tried: the seed with most rates did, of several the lowest.

    Args:
        runs: planned for equally many steps; those without ``RATE`` do not matter.
    """
    rows: dict[Place, dict[str, dict[str, Record]]] = {}
    for run in runs:
        if RATE in run.config:
            seeds = rows.setdefault(place(run.attention, run.settings), {})
            seeds.setdefault(run.settings[SEED], {})[str(run.config[RATE])] = run
    found = {}
    for row, seeds in rows.items():
        first = min(seeds, key=lambda seed: (-len(seeds[seed]), int(seed)))
        rates = {rate: _last(run) for rate, run in sorted(seeds[first].items(), key=lambda each: float(each[0]))}
        found[row] = Tuning(first, rates)
    return found


def _last(run: Record) -> float | None:
    return run.val[-1].bits if run.state == "finished" and run.val else None


def counts(run: Record, found: Mapping[Place, Tuning]) -> bool:
    """Say whether a run is at its row's best rate, or its row has none."""
    tuning = found.get(place(run.attention, run.settings))
    return tuning is None or tuning.best is None or run.config.get(RATE) in (None, tuning.best)
