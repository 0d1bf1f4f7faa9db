"""What the terminal shows of a running sweep: each job with its state, its figures and the time left."""

from __future__ import annotations

import contextlib
import csv
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from rich.console import Console
from rich.live import Live
from rich.table import Table

from src.sweep.plan import Job, Sweep
from src.sweep.wandb_folder import gather

STYLES = {"running": "cyan", "finished": "green", "failed": "red", "stopped": "yellow", "pruned": "magenta"}
TAIL = 16_384  # bytes read from the end of a metrics.csv
REFRESH = 1.0  # seconds


@dataclass(frozen=True)
class Where:
    """How far a run is: None for what it has not logged."""

    step: int | None = None
    train: float | None = None
    val: float | None = None
    speed: float | None = None


class View:
    """A table that is drawn anew every second; a line for each job that ends where the output is no terminal."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console()
        self._live: Live | None = None
        self._drawn = 0.0
        self._began: dict[str, tuple[float, int]] = {}

    @contextlib.contextmanager
    def shown(self, sweep: Sweep) -> Iterator[None]:
        """Show the sweep for the time of the context, and its end."""
        to_run = sum(job.state != "finished" for job in sweep.jobs)
        jobs = f"{to_run} of {len(sweep.jobs)} jobs to run, " if sweep.jobs else ""
        self.console.print(f"sweep {sweep.folder}: {jobs}{sweep.slots} at a time", soft_wrap=True)
        if self.console.is_terminal:
            with Live(self.table(sweep), console=self.console, auto_refresh=False) as self._live:
                yield
                self._live.update(self.table(sweep), refresh=True)
            self._live = None
        else:
            yield
            self.console.print(self.table(sweep))
        for job in sweep.jobs:
            if job.error:
                self.console.print(f"{job.name}: {job.error}", style="red", soft_wrap=True, markup=False)
        self.console.print(f"everything is in {sweep.folder}", soft_wrap=True)
        if (links := gather(sweep.folder)) is not None:
            self.console.print(f"look at its runs in the terminal with:  wandb leet {links}", soft_wrap=True)

    def update(self, sweep: Sweep) -> None:
        """Draw the table anew if it is time."""
        if self._live is not None and time.monotonic() - self._drawn > REFRESH:
            self._live.update(self.table(sweep), refresh=True)
            self._drawn = time.monotonic()

    def ended(self, job: Job) -> None:
        """Say that a job has ended, where no table does."""
        if self._live is None:
            reason = f": {job.error}" if job.error else ""
            self.console.print(
                f"{job.name} {job.state} after {clock(job.seconds)}{reason}", soft_wrap=True, markup=False
            )

    def table(self, sweep: Sweep) -> Table:
        """The sweep as it is now."""
        table = Table(title=self.title(sweep), title_justify="left", title_style="")
        table.add_column("job", no_wrap=True, overflow="ellipsis")
        for name in ("state", "step", "train", "val", "kB/s", "left"):
            table.add_column(name, justify="right", no_wrap=True)
        for job in sweep.jobs:
            style = STYLES.get(job.state, "dim")
            table.add_row(job.name, f"[{style}]{job.state}[/]", *self.figures(sweep, job))
        return table

    def figures(self, sweep: Sweep, job: Job) -> list[str]:
        """Steps, bits per byte of training and validation, speed, time left of a job."""
        if job.run is None:
            return [""] * 5
        at, total = where(sweep.folder / job.run / "metrics.csv"), job.config.trainer.max_steps
        step = "" if at.step is None else f"{at.step:,}" + (f"/{total:,}" if total else "")
        left = self.left(job, at.step or 0, total) if job.state == "running" else None
        speed = "" if at.speed is None or job.state != "running" else f"{at.speed / 1000:,.1f}"
        return [step, bits(at.train), bits(at.val), speed, "" if left is None else clock(left)]

    def left(self, job: Job, step: int, total: int | None) -> float | None:
        """Seconds that a running job still takes, by its pace since the sweep first saw a step of it."""
        seen, first = self._began.setdefault(f"{job.name} {job.started}", (time.monotonic(), step))
        if total is None or step <= first:
            return None
        return (total - step) * (time.monotonic() - seen) / (step - first)

    def title(self, sweep: Sweep) -> str:
        """How many jobs are in which state."""
        states = [job.state for job in sweep.jobs]
        counts = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
        return f"{sweep.folder.name}: {counts}"


def where(file: Path) -> Where:
    """Read how far a run is from the end of its metrics.csv."""
    try:
        with file.open("rb") as source:
            header = source.readline().decode()
            source.seek(max(len(header), file.stat().st_size - TAIL))
            lines = source.read().decode(errors="replace").splitlines()
    except OSError:
        return Where()
    latest: dict[str, str] = {}
    for row in csv.DictReader([header, *lines[1 if len(lines) > 1 and file.stat().st_size > TAIL else 0 :]]):
        latest |= {key: value for key, value in row.items() if isinstance(key, str) and value}
    step, train = latest.get("step"), number(latest.get("train/bits_per_byte"))
    speed, val = number(latest.get("train/tokens_per_second")), number(latest.get("val/bits_per_byte"))
    return Where(int(step) if step and step.isdecimal() else None, train, val, speed)


def number(text: str | None) -> float | None:
    """A float, or None of what is none (a row that is just being written)."""
    try:
        return float(text) if text else None
    except ValueError:
        return None


def bits(value: float | None) -> str:
    """Bits per byte to three digits."""
    return "" if value is None else f"{value:.3f}"


def clock(seconds: float) -> str:
    """Seconds as hours, minutes and seconds."""
    return str(timedelta(seconds=int(seconds)))
