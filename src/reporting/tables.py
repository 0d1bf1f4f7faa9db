"""The tables of a report as plain text cells; the page and the Markdown show the same ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta

from src.reporting.compare import Estimate, Group, Row, differing, named
from src.reporting.paper import TITLES, why_not_comparable
from src.reporting.recipe_names import RECIPE, by_recipe, explained
from src.reporting.record import STATES, Record

NONE = "–"


@dataclass
class Table:
    """A table.

    Args:
        columns: their heads; the first is on the left, the others are numbers unless they are in ``words``.
        rows: cells of each row; a row of a single cell is a heading of the rows that follow.
        words: columns that hold text.
        best: (row, column) of cells that stand out.
        notes: sentences below it.
    """

    columns: list[str]
    rows: list[list[str]] = field(default_factory=list)
    words: set[int] = field(default_factory=set)
    best: set[tuple[int, int]] = field(default_factory=set)
    notes: list[str] = field(default_factory=list)


def table2(groups: Sequence[Group], hidden: int = 0) -> Table:
    """The paper's table 2 beside ours: bits per byte of the test split, time of a step, times faster than dense.

    Args:
        groups: those to show.
        hidden: groups that are not shown.
    """
    published = any(row.paper for group in groups for row in group.rows)
    ours = ["test bits per byte", "ms a step", "times dense"]
    theirs = ["paper: bits per byte", "paper: ms a step (V100)", "paper: times dense"]
    table = Table(["attention", *ours, *(theirs if published else [])])
    for group in groups:
        _heading(table, group, groups)
        first = len(table.rows)
        for row in group.rows:
            cells = [row.attention, number(row.test, 3), number(row.step_ms, 0), times(row.times_dense)]
            table.rows.append(cells + (_paper(row) if published else []))
        _mark_least(table, first, [[row.test.mean if row.test else None for row in group.rows]])
    table.notes += comparable_notes([run for group in groups for row in group.rows for run in row.runs])
    if any(row.test and row.test.spread is not None for group in groups for row in group.rows):
        table.notes.append("Mean ± standard deviation over seeds.")
    table.notes += _hidden(groups, hidden)
    return table


def budgets_table(groups: Sequence[Group], hidden: int = 0) -> Table:
    """Validation figures at the end, after equally many bytes, and after equally much time; arguments as ``table2``."""
    table = Table(["attention", "best", "at equal bytes", "at equal time", "steps", "trained for"])
    for group in groups:
        _heading(table, group, groups, budget=True)
        first = len(table.rows)
        for row in group.rows:
            spent = [run.seconds for run in row.runs if run.seconds is not None]
            cells = [number(row.val, 3), number(row.at_bytes, 3), number(row.at_seconds, 3)]
            table.rows.append([row.attention, *cells, _steps(*row.runs), duration(max(spent)) if spent else NONE])
        figures = [[row.val, row.at_bytes, row.at_seconds] for row in group.rows]
        columns = [[each.mean if each else None for each in column] for column in zip(*figures, strict=True)]
        _mark_least(table, first, columns)
    table.notes.append(
        "Bits per byte of the validation split. Equal bytes: the most that every finished run of the group was trained "
        "on. Equal time: the seconds of training after which the fastest of them had ended. The best validation until "
        "then counts."
    )
    table.notes += _hidden(groups, hidden)
    return table


def differences_table(runs: Sequence[Record]) -> Table:
    """The keys of the configuration that are not the same in all runs; runs that have none are left out.

    The name of a recipe stands for its keys, which a note lists.
    """
    runs = [run for run in runs if run.config]
    configs = [run.config for run in runs]
    every = differing(configs)
    found = by_recipe(configs, every)
    table = Table(["run", *found], words=set(range(1, len(found) + 1)))
    table.rows = [[run.name, *(values[i] for values in found.values())] for i, run in enumerate(runs)]
    if RECIPE in found:
        keys = explained(found[RECIPE], every)
        for name in dict.fromkeys(found[RECIPE]):
            words = (f"{key} {values[name]}" for key, values in keys.items())
            table.notes.append(f"{RECIPE} {name}: {', '.join(words)}.")
    return table


def without_empty(table: Table) -> Table:
    """Leave out the columns in which no row has a figure."""
    wide = [row for row in table.rows if len(row) > 1]
    kept = [i for i in range(len(table.columns)) if i == 0 or any(row[i] not in ("", NONE) for row in wide)]
    place = {old: new for new, old in enumerate(kept)}
    return Table(
        [table.columns[i] for i in kept],
        [row if len(row) == 1 else [row[i] for i in kept] for row in table.rows],
        {place[i] for i in table.words if i in place},
        {(row, place[i]) for row, i in table.best if i in place},
        table.notes,
    )


def comparable_notes(runs: Sequence[Record]) -> list[str]:
    """State for each data set whether its figures may stand beside the paper's, and why not."""
    notes = []
    for name in dict.fromkeys(run.data_name for run in runs if run.config):
        of_it = [run for run in runs if run.data_name == name]
        reasons = why_not_comparable(name, of_it)
        what = TITLES.get(name, name)
        if reasons:
            notes.append(f"NOT comparable with published figures ({what}): {'; '.join(reasons)}.")
        else:
            notes.append(f"Bits per byte on {what} are of the paper's data, model and length of training.")
    if runs:
        notes.append(
            "Milliseconds are of other machines than the paper's; the ratios to dense attention can be compared."
        )
    return notes


def memory_gib(run: Record) -> float | None:
    """Peak memory: of a GPU, or else of the process."""
    gpu = run.typical("train/peak_memory_gib")
    return run.typical("train/peak_rss_gib") if gpu is None else gpu


def counted(runs: Sequence[Record]) -> list[tuple[str, int]]:
    """How many runs are in which state, the good ones first."""
    states = [run.state for run in runs]
    order = [*STATES, *sorted(set(states) - set(STATES))]
    return [(state, states.count(state)) for state in order if state in states]


def number(value: Estimate | None, digits: int) -> str:
    """Write a mean and its spread."""
    if value is None:
        return NONE
    spread = "" if value.spread is None else f" ± {value.spread:,.{digits}f}"
    return f"{value.mean:,.{digits}f}{spread}"


def plain(value: float | None, digits: int) -> str:
    """Write a figure."""
    return NONE if value is None else f"{value:,.{digits}f}"


def percent(value: float | None) -> str:
    """Write a share."""
    return NONE if value is None else f"{100 * value:.1f}%"


def times(value: float | None) -> str:
    """Write a ratio."""
    return NONE if value is None else f"{value:.2f}×"


def duration(seconds: float) -> str:
    """Write seconds as a clock does."""
    return f"{seconds:.0f} s" if seconds < 100 else str(timedelta(seconds=round(seconds)))


def volume(nbytes: float) -> str:
    """Write bytes."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if nbytes >= size:
            return f"{nbytes / size:.3g} {unit}"
    return f"{nbytes:.0f} bytes"


def _steps(*runs: Record) -> str:
    return f"{most:,}" if (most := max(run.step for run in runs)) else NONE


def _hidden(groups: Sequence[Group], hidden: int) -> list[str]:
    shown = f"The {len(groups)} best by validation of {len(groups) + hidden}; all are in the table of runs."
    return [shown] if hidden else []


def _paper(row: Row) -> list[str]:
    if row.paper is None:
        return [NONE, NONE, NONE]
    return [f"{row.paper.bits:.2f}", f"{1000 * row.paper.seconds:,.0f}", times(row.paper_times_dense)]


def _heading(table: Table, group: Group, groups: Sequence[Group], budget: bool = False) -> None:
    """Begin the rows of a group; a report of a single group without a name needs no heading."""
    words = [named(group.settings)] if group.settings else []
    if budget and group.budget.nbytes is not None:
        words.append(f"equal bytes {volume(group.budget.nbytes)}")
    if budget and group.budget.seconds is not None:
        words.append(f"equal time {duration(group.budget.seconds)}")
    if words and (budget or len(groups) > 1 or group.settings):
        table.rows.append([" · ".join(words)])


def _mark_least(table: Table, first: int, columns: Sequence[Sequence[float | None]]) -> None:
    """Let the least figure of each column stand out, where there are several; column 1 is the first of ``columns``."""
    for number_, values in enumerate(columns, start=1):
        known = [value for value in values if value is not None]
        if len(known) > 1:
            table.best |= {(first + i, number_) for i, value in enumerate(values) if value == min(known)}
