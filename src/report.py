"""Final figures as a table on the terminal."""

from __future__ import annotations

from collections.abc import Mapping

from rich.console import Console
from rich.table import Table


def results_table(title: str, figures: Mapping[str, object]) -> None:
    """Print figures by name, numbers to four digits behind the point."""
    table = Table(title=title, title_justify="left", show_header=False)
    for name in sorted(figures):
        value = figures[name]
        table.add_row(name, f"{value:,.4f}" if isinstance(value, float) else str(value))
    Console().print(table)
