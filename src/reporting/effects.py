"""What each choice of a sweep is worth: the mean difference of runs that differ in one setting and in nothing else."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from src.reporting.compare import SEED, Estimate, best_within, common_budget, estimate, in_order
from src.reporting.recipe_names import RECIPE, STANDARD
from src.reporting.record import ATTENTION, Record
from src.reporting.tables import memory_gib

MOST_VALUES = 8  # of a setting: more of them are a search, and have no pairs
Figure = Callable[[Record], float | None]
Pair = tuple[Record, Record]


@dataclass(frozen=True)
class Difference:
    """Bits per byte of one value less those of another, over pairs of runs.

    Args:
        bits: mean over the pairs and its spread, bits per byte; below 0 the value is the better one.
        better: pairs in which it is the better one.
    """

    bits: Estimate
    better: int

    @property
    def clear(self) -> bool:
        """Whether all pairs, at least two, agree."""
        return self.bits.count > 1 and self.better in (0, self.bits.count)


@dataclass(frozen=True)
class Effect:
    """One value of a setting against the first one.

    Args:
        value: of the setting.
        against: the first value.
        pairs: a run with ``value`` and one with ``against``, alike in all other settings and the seed.
        at_bytes: after the bytes that both of a pair were trained on.
        at_seconds: when the faster one of a pair had ended.
        step_ms: how many times as long a step takes, geometric mean.
        memory: how many times the peak memory, geometric mean.
    """

    value: str
    against: str
    pairs: tuple[Pair, ...]
    at_bytes: Difference | None
    at_seconds: Difference | None
    step_ms: float | None
    memory: float | None


def setting_of(run: Record, key: str) -> str:
    """Give a run's value of a setting; a sweep that does not vary the attention has no setting of it."""
    return run.attention if key == ATTENTION else run.settings.get(key, "")


def factors(runs: Sequence[Record]) -> dict[str, list[str]]:
    """Name the settings that differ between runs, without the seed: each with its values.

    First of them is what the others are compared with: dense attention, the paper's recipe, the least number, or what
    the command line has first.
    """
    keys = dict.fromkeys([ATTENTION, *(key for run in runs for key in run.settings)])
    found = {key: list(dict.fromkeys(setting_of(run, key) for run in runs)) for key in keys if key != SEED}
    return {key: _sorted(key, values) for key, values in found.items() if 1 < len(values) <= MOST_VALUES}


def _sorted(key: str, values: list[str]) -> list[str]:
    if key == ATTENTION:
        return sorted(values, key=in_order)
    if key == RECIPE:
        return sorted(values, key=lambda value: value != STANDARD)
    try:
        return sorted(values, key=float)
    except ValueError:
        return values


def effects(runs: Sequence[Record]) -> dict[str, list[Effect]]:
    """Compare the values of each setting with its first; settings and values without a pair are left out."""
    found = {}
    for key, (first, *others) in factors(runs).items():
        compared = [effect for value in others if (effect := _effect(runs, key, value, first)) is not None]
        if compared:
            found[key] = compared
    return found


def _effect(runs: Sequence[Record], key: str, value: str, against: str) -> Effect | None:
    pairs = paired(runs, key, value, against)
    of_bytes, of_time = _difference(map(at_equal_bytes, pairs)), _difference(map(at_equal_time, pairs))
    if of_bytes is None and of_time is None:
        return None
    step_ms = _ratio(pairs, lambda run: run.typical("train/step_ms"))
    return Effect(value, against, tuple(pairs), of_bytes, of_time, step_ms, _ratio(pairs, memory_gib))


def paired(runs: Sequence[Record], key: str, value: str, against: str) -> list[Pair]:
    """Find the runs that differ in nothing but a setting."""

    def rest(run: Record) -> tuple[tuple[str, str], ...]:
        return tuple(sorted((name, run.settings[name]) for name in run.settings if name != key)) + (
            () if key == ATTENTION else ((ATTENTION, run.attention),)
        )

    others = {rest(run): run for run in runs if setting_of(run, key) == against and run.val}
    mine = [run for run in runs if setting_of(run, key) == value and run.val]
    return [(run, others[rest(run)]) for run in mine if rest(run) in others]


def at_equal_bytes(pair: Pair) -> float | None:
    """Bits per byte of the first less those of the second, after the bytes that both were trained on."""
    nbytes = common_budget(pair).nbytes
    return _less(best_within(run, nbytes=nbytes) for run in pair)


def at_equal_time(pair: Pair) -> float | None:
    """The same when the faster one had ended."""
    seconds = common_budget(pair).seconds
    return _less(best_within(run, seconds=seconds) for run in pair)


def _less(figures: Iterable[float | None]) -> float | None:
    mine, other = figures
    return None if mine is None or other is None else mine - other


def _difference(differences: Iterable[float | None]) -> Difference | None:
    known = [each for each in differences if each is not None]
    found = estimate(known)
    return None if found is None else Difference(found, sum(each < 0 for each in known))


def _ratio(pairs: Sequence[Pair], figure: Figure) -> float | None:
    known = [(mine, other) for a, b in pairs if (mine := figure(a)) and (other := figure(b))]
    return math.exp(statistics.fmean(math.log(mine / other) for mine, other in known)) if known else None
