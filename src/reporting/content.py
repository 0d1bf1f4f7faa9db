"""A report before it is written: everything that the page and the Markdown show, in their order."""

from __future__ import annotations

import datetime
import math
import shlex
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from src.reporting import draw, tables
from src.reporting.charts import Bars, Lines, Palette
from src.reporting.choices import effects_table
from src.reporting.compare import Estimate, Group, Row, best_within, common_budget, estimate, grouped, named
from src.reporting.load import Loaded
from src.reporting.paper import TABLE2
from src.reporting.pictures import RUNS, Left, Picture, left_by, patterns
from src.reporting.ranking import runs_table
from src.reporting.record import Record

GROUPS = 12  # that the tables of kinds of attention have
FAILURES = 3  # that are told at the top
COMMIT = 10  # characters of a git commit


@dataclass(frozen=True)
class Tile:
    """A figure that stands out."""

    value: str
    what: str


@dataclass(frozen=True)
class Report:
    """A report.

    Args:
        title: name of the sweep or run.
        made: when the report was made.
        states: state and number of runs.
        facts: name and value.
        warnings: what limits the figures: partial data, runs that are not finished.
        tiles: the figures to know first.
        effects: what each choice is worth.
        table2: the paper's table beside ours.
        budgets: validation at equal bytes and time.
        lines: charts of losses.
        bars: charts of speed and memory.
        palette: of all charts.
        runs: the table of runs.
        differences: how their configurations differ.
        patterns: what heads see.
        left: samples and learned attention.
        left_out: runs whose samples are not shown.
    """

    title: str
    made: str
    states: list[tuple[str, int]]
    facts: list[tuple[str, str]]
    warnings: list[str]
    tiles: list[Tile]
    effects: tables.Table
    table2: tables.Table
    budgets: tables.Table
    lines: list[Lines]
    bars: list[Bars]
    palette: Palette
    runs: tables.Table
    differences: tables.Table
    patterns: list[Picture]
    left: list[Left]
    left_out: int


def report(loaded: Loaded) -> Report:
    """Put a report together."""
    runs = loaded.runs
    groups, hidden = best_groups([group for group in grouped(runs) if group.begun])
    seen = patterns(runs)
    left = [found for run in runs[:RUNS] if (found := left_by(run)) is not None]
    return Report(
        title=loaded.title,
        made=datetime.datetime.now().astimezone().strftime("%Y-%m-%d %H:%M"),
        states=tables.counted(runs),
        facts=facts(loaded),
        warnings=warnings(runs),
        tiles=tiles(groups),
        effects=effects_table(runs),
        table2=tables.table2(groups, hidden),
        budgets=tables.budgets_table(groups, hidden),
        lines=draw.line_charts(runs),
        bars=draw.bar_charts(groups),
        palette=draw.palette(runs),
        runs=runs_table(runs),  # last: by now all that could not be read is noted
        differences=tables.differences_table(runs),
        patterns=seen,
        left=left,
        left_out=max(0, len(runs) - RUNS),
    )


def best_groups(groups: list[Group]) -> tuple[list[Group], int]:
    """Keep the groups with the best validations where there are many, as in a search; they, and how many others."""
    if len(groups) <= GROUPS:
        return groups, 0
    known = [(min((row.val.mean for row in group.rows if row.val), default=math.inf), group) for group in groups]
    return [group for _, group in sorted(known, key=lambda each: each[0])[:GROUPS]], len(groups) - GROUPS


def facts(loaded: Loaded) -> list[tuple[str, str]]:
    """Say what the runs were made of and on: data, versions, machine, command; several values where they differ."""
    runs = loaded.runs
    origins = [run.provenance for run in runs if run.provenance]
    packages = [origin.get("packages") or {} for origin in origins]
    found = [
        ("data", _all(run.label for run in runs) or _all(run.data_name for run in runs)),
        ("hardware", _all(_hardware(origin) for origin in origins)),
        ("versions", _all(f"PyTorch {each.get('torch')}, Lightning {each.get('lightning')}" for each in packages)),
        ("commit", _commits(origins)),
        ("started", (loaded.started or "")[:16].replace("T", " ")),
        ("at a time", f"{loaded.slots} of {len(runs)} jobs" if loaded.slots else ""),
        ("command", shlex.join(["python", *loaded.command]) if loaded.command else ""),
    ]
    return [(name, value) for name, value in found if value]


def warnings(runs: Sequence[Record]) -> list[str]:
    """Say what limits the figures."""
    found = []
    partial = [run for run in runs if run.partial]
    if partial:
        label = _all(run.label for run in partial if run.label) or _all(run.data_name for run in partial)
        found.append(
            f"Partial data: {label}. The figures of {_share(len(partial), len(runs))} are on a part of an official "
            "data set and are NOT comparable with published figures."
        )
    stand_in = [run for run in runs if run.config and run.data_name not in TABLE2]
    if stand_in:
        label = _all(run.label or run.data_name for run in stand_in)
        found.append(f"Other data than the paper's table: {label}. Not comparable with published figures.")
    unknown = [run for run in runs if run.config and run.partial is None and run.data_name in TABLE2]
    if unknown:
        found.append(
            f"{_share(len(unknown), len(runs))} did not reach a validation: whether the data are whole is not known."
        )
    unfinished = [(state, count) for state, count in tables.counted(runs) if state != "finished"]
    if unfinished:
        states = ", ".join(f"{count} {state}" for state, count in unfinished)
        found.append(f"Not all runs are finished ({states}): theirs are the figures so far.")
    failed = [f"{run.name}: {run.error}" for run in runs if run.state == "failed" and run.error]
    if failed:
        more = f"; and {len(failed) - FAILURES} more, see the table of runs" if len(failed) > FAILURES else ""
        found.append(f"Failed: {'; '.join(failed[:FAILURES])}{more}.")
    return found


def tiles(groups: Sequence[Group]) -> list[Tile]:
    """Choose the figures to know first: the best runs and what they cost, and how much faster than dense."""
    rows = [(group, row) for group in groups for row in group.rows]
    budget = common_budget([run for _, row in rows for run in row.runs])
    figures: list[tuple[str, Callable[[Row], Estimate | None]]] = [
        ("best bits per byte, validation", lambda row: row.val),
        ("best bits per byte, test", lambda row: row.test),
    ]
    if budget.seconds is not None and len(rows) > 1:
        when = f"best bits per byte, validation, after the {tables.duration(budget.seconds)} of the fastest run"
        figures.append((when, lambda row: estimate(best_within(run, seconds=budget.seconds) for run in row.runs)))
    found = []
    for what, of in figures:
        known = [(value.mean, group, row) for group, row in rows if (value := of(row)) is not None]
        if known:
            best, group, row = min(known, key=lambda each: each[0])
            found.append(Tile(f"{best:.3f}", f"{what}: {_which(group, row)}{_cost(row)}"))
    sparse = [(row.times_dense, group, row) for group, row in rows if row.times_dense and row.attention != "dense"]
    if sparse:
        most, group, row = max(sparse, key=lambda each: each[0])
        found.append(Tile(tables.times(most), f"of dense attention's speed: {_which(group, row)}"))
    return found


def _cost(row: Row) -> str:
    """Say what a row's figures cost: time, memory, use of the device; empty where nothing is known."""
    figures = [
        (row.step_ms, "{:,.1f} ms a step"),
        (estimate(map(tables.memory_gib, row.runs)), "{:,.1f} GiB"),
        (estimate(run.typical("train/mfu") for run in row.runs), "{:.0%} MFU"),
    ]
    words = [shape.format(value.mean) for value, shape in figures if value is not None]
    return f" ({', '.join(words)})" if words else ""


def _which(group: Group, row: Row) -> str:
    return ", ".join(filter(None, (row.attention, named(group.settings))))


def _share(some: int, all_of_them: int) -> str:
    return "all runs" if some == all_of_them else f"{some} of {all_of_them} runs"


def _hardware(origin: dict[str, Any]) -> str:
    gpus, cpus = origin.get("gpus"), origin.get("cpus")
    if isinstance(gpus, list) and gpus:
        return _all(f"{gpus.count(gpu)} × {gpu}" for gpu in gpus)
    return f"{cpus} CPU cores"


def _commits(origins: Sequence[dict[str, Any]]) -> str:
    commits = [str(origin["git_commit"])[:COMMIT] for origin in origins if origin.get("git_commit")]
    changed = any(origin.get("git_changed") for origin in origins)
    return _all(commits) + (" with changes that were not committed" if commits and changed else "")


def _all(values: Iterable[object]) -> str:
    """Name every different value once."""
    return "; ".join(dict.fromkeys(str(value) for value in values if value))
