"""Metrics as a CSV file that survives: appended, never rewritten but for a new column, continued on resume."""

from __future__ import annotations

import csv
import io
from argparse import Namespace
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from src.atomic import written_whole


class MetricsCsv(Logger):
    """One row for each call of ``log_metrics``; the first column is the optimizer step.

    Args:
        file: where the rows go.
        after_step: rows of later steps are dropped: a resumed run writes them anew.
    """

    def __init__(self, file: Path, after_step: int = 0) -> None:
        super().__init__()
        self.file = file
        self.columns = ["step"]
        self._continue(after_step)

    @property
    def name(self) -> str:  # noqa: D102
        return "metrics"

    @property
    def version(self) -> str:  # noqa: D102
        return ""

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Nothing to do: the configuration has a file of its own."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Append one row."""
        row = {"step": step, **metrics}
        if new := [name for name in row if name not in self.columns]:
            rows = self._rows()
            self.columns += new
            self._write(rows)
        with self.file.open("a", newline="") as file:
            csv.DictWriter(file, self.columns).writerow(row)

    @rank_zero_only
    def _continue(self, after_step: int) -> None:
        rows = [row for row in self._rows() if row["step"].isdecimal() and int(row["step"]) <= after_step]
        if rows:
            self.columns = list(rows[0])
            self._write(rows)
        elif self.file.is_file():
            self.file.unlink()

    def _rows(self) -> list[dict[str, str]]:
        if not self.file.is_file():
            return []
        with self.file.open(newline="") as file:
            return list(csv.DictReader(file))

    def _write(self, rows: list[dict[str, str]]) -> None:
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, self.columns)
        writer.writeheader()
        writer.writerows(rows)
        with written_whole(self.file) as file:
            file.write(text.getvalue().encode())
