"""The figures of a report, from plain records: what differs, what is best at equal bytes and time, means over seeds."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from src.reporting.paper import Published, published
from src.reporting.recipe_names import RECIPE, by_recipe
from src.reporting.record import ATTENTION, Point, Record

SEED = "seed"
SHORT = {"attention.pattern": ATTENTION, "precision.name": "precision", "data.name": "data"}
# Where a run is kept and shown, which is not what it is
BOOKKEEPING = ("name", "resume", "paths.", "logger.", "watch.", "debug.", "data.workers", "trainer.progress",
               "trainer.keep", "trainer.checkpoint_", "trainer.log_every")  # fmt: skip
ORDER = ("dense", "fixed", "strided")
ABSENT = "(not set)"


@dataclass(frozen=True)
class Estimate:
    """A figure over several seeds.

    Args:
        mean: of the runs.
        spread: sample standard deviation (n - 1); None for a single run.
        count: runs.
    """

    mean: float
    spread: float | None
    count: int


@dataclass(frozen=True)
class Budget:
    """What every run of a group had: bytes trained on, and seconds of training. None where nothing can be said."""

    nbytes: float | None
    seconds: float | None


@dataclass(frozen=True)
class Row:
    """One kind of attention in a group.

    Args:
        attention: the pattern.
        runs: those with this pattern, one for each seed.
        test: bits per byte of the test split.
        val: best bits per byte of the validation split.
        at_bytes: best validation at the group's bytes.
        at_seconds: best validation at the group's seconds.
        step_ms: milliseconds an optimizer step.
        times_dense: how many times faster than dense attention of the same group.
        paper: the paper's row; None where it has none.
        paper_times_dense: the paper's ratio.
    """

    attention: str
    runs: tuple[Record, ...]
    test: Estimate | None
    val: Estimate | None
    at_bytes: Estimate | None
    at_seconds: Estimate | None
    step_ms: Estimate | None
    times_dense: float | None
    paper: Published | None
    paper_times_dense: float | None


@dataclass(frozen=True)
class Group:
    """Runs that differ in attention and seed alone.

    Args:
        settings: what they have in common and other groups have not.
        budget: what all of them had.
        rows: in the order dense, fixed, strided, others.
    """

    settings: Mapping[str, str]
    budget: Budget
    rows: tuple[Row, ...]

    @property
    def begun(self) -> bool:
        """Whether any of its runs has a figure."""
        return any(row.test or row.val or row.step_ms for row in self.rows)


def differing(configs: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    """Find the keys that are not the same in all configurations: each with its value in every one, as text.

    Keys that say where a run is kept or shown are left out, and so are runs without a configuration (their values are
    empty).
    """
    known = [config for config in configs if config]
    found: dict[str, list[str]] = {}
    for key in dict.fromkeys(key for config in known for key in config):
        if not key.startswith(BOOKKEEPING) and len({shown(config.get(key, ABSENT)) for config in known}) > 1:
            found[key] = [shown(config.get(key, ABSENT)) if config else "" for config in configs]
    return found


def shown(value: Any) -> str:
    """Write a value as YAML does."""
    words = {"None": "null", "True": "true", "False": "false"}
    return words.get(str(value), str(value))


def settings_of(configs: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """Tell runs that no sweep describes from each other by their configurations: a table of key and value for each.

    A recipe stands for the keys that it explains. The width of the position matrix is left out where it is just the
    stride.
    """
    found = by_recipe(configs, differing(configs))
    rows, strides = found.get("model.row"), found.get("attention.stride")
    if rows is not None and rows == strides:
        del found["model.row"]
    first = [key for key in (*SHORT, RECIPE) if key in found]
    keys = [*first, *(key for key in found if key not in first)]
    return [{SHORT.get(key, key): found[key][i] for key in keys if found[key][i]} for i in range(len(configs))]


def varied(runs: Sequence[Record]) -> dict[str, int]:
    """Count the values of each setting that is not the same in all runs, the attention left out."""
    keys = dict.fromkeys(key for run in runs for key in run.settings if key != ATTENTION)
    counts = {key: len({run.settings.get(key) for run in runs}) for key in keys}
    return {key: count for key, count in counts.items() if count > 1}


def setting_name(key: str) -> str:
    """Write a setting's key in words, such as learning rate."""
    return key.rpartition(".")[2].replace("_", " ")


def named(settings: Mapping[str, str], without: Sequence[str] = ()) -> str:
    """Write settings as a short label, such as ``depth 2, bf16``."""
    bare = (ATTENTION, "precision", "experiment", "data")
    words = [
        value if key in bare else f"{setting_name(key)} {value}"
        for key, value in settings.items()
        if key not in without
    ]
    return ", ".join(words)


def grouped(runs: Sequence[Record]) -> list[Group]:
    """Put runs together that differ in attention and seed alone, and compare them with each other."""
    groups: dict[tuple[tuple[str, str], ...], list[Record]] = {}
    for run in runs:
        rest = tuple((key, value) for key, value in run.settings.items() if key not in (ATTENTION, SEED))
        groups.setdefault(rest, []).append(run)
    return [compared(dict(rest), members) for rest, members in groups.items()]


def compared(settings: Mapping[str, str], runs: Sequence[Record]) -> Group:
    """Compare the runs of one group."""
    budget = common_budget(runs)
    kinds: dict[str, list[Record]] = {}
    for run in runs:
        kinds.setdefault(run.attention, []).append(run)
    dense = estimate(run.typical("train/step_ms") for run in kinds.get("dense", []))
    rows = [_row(kind, kinds[kind], budget, dense) for kind in sorted(kinds, key=in_order)]
    return Group(settings, budget, tuple(rows))


def _row(attention: str, runs: Sequence[Record], budget: Budget, dense: Estimate | None) -> Row:
    step_ms = estimate(run.typical("train/step_ms") for run in runs)
    paper, paper_dense = published(runs[0]), published(runs[0], "dense")
    return Row(
        attention,
        tuple(runs),
        test=estimate(run.final("test/bits_per_byte") for run in runs),
        val=estimate(run.best_val for run in runs),
        at_bytes=estimate(best_within(run, nbytes=budget.nbytes) for run in runs),
        at_seconds=estimate(best_within(run, seconds=budget.seconds) for run in runs),
        step_ms=step_ms,
        times_dense=dense.mean / step_ms.mean if dense and step_ms else None,
        paper=paper,
        paper_times_dense=paper_dense.seconds / paper.seconds if paper and paper_dense else None,
    )


def in_order(attention: str) -> tuple[int, str]:
    """Sort kinds of attention as the paper's table does."""
    return (ORDER.index(attention) if attention in ORDER else len(ORDER), attention)


def common_budget(runs: Sequence[Record]) -> Budget:
    """Find what all runs had: the bytes at which the shortest was last validated, the time when the fastest had ended.

    Finished runs decide, where there are any; otherwise those with a validation.
    """
    validated = [run for run in runs if run.val]
    deciding = [run for run in validated if run.state == "finished"] or validated
    nbytes = [ends for run in deciding if (ends := run.val[-1].nbytes) is not None]
    seconds = [spent for run in deciding if (spent := run.seconds) is not None]
    return Budget(min(nbytes, default=None), min(seconds, default=None))


def best_within(run: Record, nbytes: float | None = None, seconds: float | None = None) -> float | None:
    """Give the best validation that a run had reached with so many bytes, or so many seconds of training.

    None where it has no validation until then, or is not there yet: it would be compared with less than its due.
    """
    if nbytes is not None:
        within = [p for p in run.val if p.nbytes is not None and p.nbytes <= nbytes]
        reached = bool(run.val) and (run.val[-1].nbytes or 0) >= nbytes
    elif seconds is not None:
        within = [p for p in run.val if p.seconds is not None and p.seconds <= seconds]
        reached = (run.seconds or 0) >= seconds
    else:
        return None
    return min((p.bits for p in within), default=None) if reached else None


def estimate(values: Any) -> Estimate | None:
    """Mean and sample standard deviation of the values that are not None; None where there is none."""
    known = [value for value in values if value is not None]
    if not known:
        return None
    spread = statistics.stdev(known) if len(known) > 1 else None
    return Estimate(statistics.fmean(known), spread, len(known))


def thinned(points: Sequence[Point], most: int) -> list[Point]:
    """Average neighbouring points, so that at most ``most`` are left; the last one stays where the curve ended."""
    if len(points) <= most:
        return list(points)
    per = -(-len(points) // most)
    found = []
    for start in range(0, len(points), per):
        some = points[start : start + per]
        last = some[-1]
        found.append(Point(last.step, statistics.fmean(p.bits for p in some), last.nbytes, last.seconds))
    return found
