"""Metrics as a CSV file that survives: appended, never rewritten but for a new column, continued on resume."""

from __future__ import annotations

import contextlib
import csv
import errno
import io
import logging
import os
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from src.errors import UserError
from src.system.atomic_files import written_whole

Row = dict[str, str]
"""Figures by column, as the file has them."""
log = logging.getLogger(__name__)


class MetricsCsv(Logger):
    """One row for each call of ``log_metrics``; the first column is the optimizer step.

    Args:
        file: where the rows go.
        after_step: rows of later steps are dropped: a resumed run writes them anew.
        count: the rows that the checkpoint has seen, where it says so: the others are dropped, also those of a
            validation whose end is not in the checkpoint, and which the resumed run makes up for.
        waiting: rows that the disk had not taken when the checkpoint was written.

    Raises:
        UserError: there is a file that holds something else.
    """

    def __init__(self, file: Path, after_step: int = 0, count: int | None = None, waiting: Sequence[Row] = ()) -> None:
        super().__init__()
        self.file = file
        self.after_step = after_step
        self.kept = count
        self.columns: list[str] | None = None
        """None before the first row of this process: until then the file stays as it is."""
        self._earlier = self._rows_kept()
        self.count = len(self._earlier)
        """Rows in the file that count, of earlier processes and this one."""
        self.waiting: list[Row] = list(waiting)
        """Rows that the disk has not taken yet."""
        self.problem = ""
        """Why it did not."""

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
        """Append one row; where the disk does not take it, it waits in memory for the next one."""
        row = {"step": step, **metrics}
        self.waiting.append({name: "" if value is None else str(value) for name, value in row.items()})
        self._flush()

    @rank_zero_only
    def save(self) -> None:
        """Put the rows on the disk: called before a checkpoint, which must not outlive them in a power cut."""
        self._flush()
        with contextlib.suppress(OSError), self.file.open("rb") as file:
            os.fsync(file.fileno())

    def _flush(self) -> None:
        """Write the rows that wait."""
        try:
            while self.waiting:
                self._append(self.waiting[0])
                self.count += 1
                del self.waiting[0]
            self.problem = ""
        except OSError as error:
            if not self.problem:
                log.warning("%s takes no rows (%s): they wait in memory", self.file, error.strerror or error)
            self.problem = error.strerror or str(error)

    def _append(self, row: Row) -> None:
        if self.columns is None:
            self.columns = self._continue()
        new = [name for name in row if name not in self.columns]
        if new or not self.file.is_file():
            rows = self._rows()
            if self.count and not rows:
                log.warning("%s is gone: a new one begins at step %s", self.file, row["step"])
                self.count = 0
            self._write(rows, [*self.columns, *new])
            self.columns += new
        line = io.StringIO(newline="")
        csv.DictWriter(line, self.columns).writerow(row)
        _append_whole(self.file, line.getvalue().encode())

    def _continue(self) -> list[str]:
        """Drop the rows that come anew, and give the columns."""
        if not self._earlier:
            self.file.unlink(missing_ok=True)
            return ["step"]
        self._write(self._earlier, columns := list(self._earlier[0]))
        self._earlier = []
        return columns

    def _rows_kept(self) -> list[Row]:
        rows = self._rows()
        if self.kept is not None:
            return rows[: self.kept]
        return [row for row in rows if row["step"].isdecimal() and int(row["step"]) <= self.after_step]

    def _rows(self) -> list[Row]:
        if not self.file.is_file():
            return []
        try:
            with self.file.open(newline="") as file:
                rows = list(csv.DictReader(file))
            if any(None in (*row, row.get("step")) for row in rows):
                raise ValueError("a row has no step, or more values than there are columns")
        except (csv.Error, ValueError) as error:
            raise UserError(f"{self.file} cannot be read ({error}): move it away to begin a new one") from error
        return rows

    def _write(self, rows: list[Row], columns: list[str]) -> None:
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, columns)
        writer.writeheader()
        writer.writerows(rows)
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with written_whole(self.file) as file:
            file.write(text.getvalue().encode())


def _append_whole(path: Path, content: bytes) -> None:
    """Append to a file, or leave it as it is: a full disk takes a part of a line and refuses the rest."""
    with path.open("r+b", buffering=0) as file:
        end = file.seek(0, os.SEEK_END)
        try:
            if file.write(content) != len(content):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError:
            file.truncate(end)
            raise
