"""Metrics as a CSV file that survives: appended, never rewritten but for a new column, continued on resume."""

from __future__ import annotations

import csv
import io
import os
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
        count: the rows that the checkpoint has seen, where it says so: the others are dropped, also those of a
            validation whose end is not in the checkpoint, and which the resumed run makes up for.
    """

    def __init__(self, file: Path, after_step: int = 0, count: int | None = None) -> None:
        super().__init__()
        self.file = file
        self.columns = ["step"]
        self.count = 0
        """Rows in the file."""
        self._continue(after_step, count)

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
        self.count += 1

    @rank_zero_only
    def save(self) -> None:
        """Put the rows on the disk: called before a checkpoint, which must not outlive them in a power cut."""
        if self.file.is_file():
            with self.file.open("rb") as file:
                os.fsync(file.fileno())

    @rank_zero_only
    def _continue(self, after_step: int, count: int | None) -> None:
        rows = self._rows()[:count]
        if count is None:
            rows = [row for row in rows if row["step"].isdecimal() and int(row["step"]) <= after_step]
        self.count = len(rows)
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
