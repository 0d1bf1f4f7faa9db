"""Final figures as tables on the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table


def results_table(title: str, figures: Mapping[str, object]) -> None:
    """Print figures by name, numbers to four digits behind the point."""
    table = Table(title=title, title_justify="left", show_header=False)
    for name in sorted(figures):
        value = figures[name]
        table.add_row(name, f"{value:,.4f}" if isinstance(value, float) else str(value))
    Console().print(table)


def evaluation_table(title: str, unit: str, rows: Sequence[Any]) -> None:
    """Print the rows of an evaluation (``src.jobs.evaluation.Row``), a line each."""
    table = Table(title=title, title_justify="left")
    for name in ("least context", unit, "bytes scored", "windows", "seconds", "kB/s"):
        table.add_column(name, justify="right")
    for row in rows:
        speed = row.nbytes / max(row.seconds, 1e-9) / 1000
        figures = (f"{row.min_context:,}", f"{row.bits_per_byte:.4f}", f"{row.nbytes:,}", f"{row.windows:,}")
        table.add_row(*figures, f"{row.seconds:,.1f}", f"{speed:,.1f}")
    Console().print(table)
