"""The table of runs: the best validation first, what tells each run from the others, and what it cost."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from src.reporting.compare import best_within, common_budget, setting_name, varied
from src.reporting.record import STATES, Record
from src.reporting.tables import NONE, Table, duration, memory_gib, percent, plain, volume, without_empty

MOST_SETTINGS = 6  # that have columns; with more the names of the runs have to do
Column = tuple[str, list[str], "list[float | None] | None"]  # head, cells, and the figures whose least stands out


def runs_table(runs: Sequence[Record]) -> Table:
    """Rank the runs by their best validation; those without one come last, failed ones first of them."""
    ranked = sorted(runs, key=lambda run: (math.inf if run.best_val is None else run.best_val, _state_order(run)))
    columns = [*_setting_columns(ranked), *_figure_columns(ranked)]
    table = Table(["rank", *(head for head, _, _ in columns)])
    ranks = [NONE if run.best_val is None else str(number) for number, run in enumerate(ranked, start=1)]
    table.rows = [[rank, *(cells[i] for _, cells, _ in columns)] for i, rank in enumerate(ranks)]
    for number, (_, _, figures) in enumerate(columns, start=1):
        if figures is None:
            table.words.add(number)
        elif len(known := [value for value in figures if value is not None]) > 1 and max(known) > min(known):
            table.best |= {(i, number) for i, value in enumerate(figures) if value == min(known)}
    table.notes = _notes(ranked)
    return without_empty(table)


def _state_order(run: Record) -> int:
    order = ("failed", *STATES)
    return order.index(run.state) if run.state in order else len(order)


def _setting_columns(runs: Sequence[Record]) -> list[Column]:
    keys = varied(runs)
    found: list[Column] = []
    if not keys or len({run.attention for run in runs}) > 1:
        found.append(("attention", [run.attention for run in runs], None))
    if len(keys) <= MOST_SETTINGS:
        found += [(setting_name(key), [run.settings.get(key, NONE) for run in runs], None) for key in keys]
    return found


def _figure_columns(runs: Sequence[Record]) -> list[Column]:
    return [*_loss_columns(runs), *_cost_columns(runs), ("state", [run.state for run in runs], None),
            ("run", [run.name for run in runs], None)]  # fmt: skip


def _loss_columns(runs: Sequence[Record]) -> list[Column]:
    """Give the best validation, what it was at equal bytes where runs had not the same, at equal time, and the test."""
    budget = common_budget(runs)
    columns = [_column(runs, "val", lambda run: run.best_val, 3)]
    ends = {run.val[-1].nbytes for run in runs if run.val and run.state == "finished"}
    if budget.nbytes is not None and len(ends) > 1:
        at_bytes = f"val at {volume(budget.nbytes)}"
        columns.append(_column(runs, at_bytes, lambda run: best_within(run, nbytes=budget.nbytes), 3))
    if budget.seconds is not None:
        at_time = f"val at {duration(budget.seconds)}"
        columns.append(_column(runs, at_time, lambda run: best_within(run, seconds=budget.seconds), 3))
    return [*columns, _column(runs, "test", lambda run: run.final("test/bits_per_byte"), 3)]


def _cost_columns(runs: Sequence[Record]) -> list[Column]:
    """Give time, speed, memory and use of the device; bytes a second and steps where a step's time does not tell."""
    mfu = [run.typical("train/mfu") for run in runs]
    columns: list[Column] = [
        ("trained for", [NONE if run.seconds is None else duration(run.seconds) for run in runs],
         [run.seconds if run.state == "finished" else None for run in runs]),
        _column(runs, "ms a step", lambda run: run.typical("train/step_ms"), 1),
    ]  # fmt: skip
    if len({(run.config.get("data.batch_size"), run.config.get("data.context")) for run in runs if run.config}) > 1:
        speed = _column(runs, "kB/s", lambda run: _thousandth(run.typical("train/tokens_per_second")), 1, least=False)
        columns.append(speed)
    columns += [
        _column(runs, "GiB", memory_gib, 2),
        ("MFU", [percent(value) for value in mfu], [None if value is None else -value for value in mfu]),
    ]
    if len({run.step for run in runs}) > 1:
        columns.append(("steps", [f"{run.step:,}" if run.step else NONE for run in runs], [None] * len(runs)))
    return columns


def _column(
    runs: Sequence[Record], head: str, figure: Callable[[Record], float | None], digits: int, least: bool = True
) -> Column:
    values = [figure(run) for run in runs]
    better = [None if value is None else value if least else -value for value in values]
    return head, [plain(value, digits) for value in values], better


def _thousandth(value: float | None) -> float | None:
    return None if value is None else value / 1000


def _notes(runs: Sequence[Record]) -> list[str]:
    notes = []
    if any(run.val for run in runs):
        notes.append(
            "Bits per byte; val: the best validation, and the best one until the fastest run had ended (none where the "
            "first validation came later). The best of each column is marked."
        )
    return notes + [f"{run.name}: {told}" for run in runs for told in filter(None, (run.error, *run.notes))]
