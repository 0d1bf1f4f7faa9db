"""What the terminal shows of a running sweep: each job with its state, its figures and the time left."""

from __future__ import annotations

import contextlib
import csv
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from src.sweep.plan import Job, Sweep
from src.sweep.wandb_folder import gather

STYLES = {"running": "cyan", "finished": "green", "failed": "red", "stopped": "yellow", "pruned": "magenta"}
TAIL = 16_384  # bytes read from the end of a metrics.csv
REFRESH = 1.0  # seconds
GAP = 3  # columns between two columns of the table
WIDE = 100  # columns from which on steps are shown in full
AROUND = 7  # lines of a terminal beside the jobs: the line above, title, heads, caption


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
        self._told: set[str] = set()

    @contextlib.contextmanager
    def shown(self, sweep: Sweep) -> Iterator[None]:
        """Show the sweep for the time of the context, and its end."""
        to_run = sum(job.state != "finished" for job in sweep.jobs)
        jobs = f"{to_run} of {len(sweep.jobs)} jobs to run, " if sweep.jobs else ""
        self.console.print(f"sweep {sweep.folder}: {jobs}{sweep.slots} at a time", soft_wrap=True)
        if self.console.is_terminal:
            with Live(self.table(sweep), console=self.console, auto_refresh=False, transient=True) as self._live:
                yield
            self._live = None
        else:
            yield
        self.console.print(self.table(sweep))
        for job in sweep.jobs:
            if job.error and job.name not in self._told:
                self.say(f"{job.name}: {job.error}", "red")
        self.console.print(f"everything is in {sweep.folder}", soft_wrap=True)
        if (links := gather(sweep.folder)) is not None:
            self.console.print(f"look at its runs in the terminal with:  wandb leet {links}", soft_wrap=True)

    def update(self, sweep: Sweep) -> None:
        """Draw the table anew if it is time."""
        if self._live is not None and time.monotonic() - self._drawn > REFRESH:
            self._live.update(self.table(sweep, self.console.height - AROUND), refresh=True)
            self._drawn = time.monotonic()

    def ended(self, job: Job) -> None:
        """Say that a job has ended, where no table does, or why it failed."""
        reason = f": {job.error}" if job.error else ""
        if self._live is None or reason:
            self.say(f"{job.name} {job.state} after {clock(job.seconds)}{reason}", "red" if reason else "")
        if self._live is not None and reason:
            self._told.add(job.name)

    def say(self, sentence: str, style: str = "") -> None:
        """Print a sentence, above the table where there is one; a terminal breaks it between words."""
        self.console.print(sentence, style=style, soft_wrap=not self.console.is_terminal, markup=False, highlight=False)

    def table(self, sweep: Sweep, rows: int | None = None) -> Table:
        """The sweep as it is now, with at most so many jobs: those that run or failed before the others."""
        places = {job.name: where(sweep.folder / job.run / "metrics.csv") for job in sweep.jobs if job.run}
        left = {job.name: self.left(job, places[job.name]) for job in sweep.jobs if job.state == "running"}
        shown = most_telling(sweep.jobs, rows)
        table = Table(title=title(sweep, left), title_justify="left", title_style="", box=SIMPLE_HEAD, pad_edge=False)
        if hidden := [job.state for job in sweep.jobs if job not in shown]:
            table.caption, table.caption_justify = f"and {counted(hidden)}", "left"
        narrow = self.console.width < WIDE
        lines = [figures(job, places.get(job.name, Where()), left.get(job.name), narrow) for job in shown]
        names = [job.name for job in shown]
        heads = ("state", "done" if narrow else "step", "train", "val", "kB/s", "left")
        taken = sum(max(len(head), *(len(line[at]) for line in lines), 0) + GAP for at, head in enumerate(heads))
        table.add_column("job", no_wrap=True)
        for head in heads:
            table.add_column(head, justify="right", no_wrap=True)
        for job, name, line in zip(shown, shortened(names, self.console.width - taken - 2), lines, strict=True):
            table.add_row(Text(name), Text(line[0], STYLES.get(job.state, "dim")), *line[1:])
        return table

    def left(self, job: Job, at: Where) -> float | None:
        """Seconds that a running job still takes, by its pace since the sweep first saw a step of it."""
        total = job.config.trainer.max_steps
        if total is None or at.step is None:
            return None
        seen, first = self._began.setdefault(f"{job.name} {job.started}", (time.monotonic(), at.step))
        return (total - at.step) * (time.monotonic() - seen) / (at.step - first) if at.step > first else None


def figures(job: Job, at: Where, left: float | None, narrow: bool) -> list[str]:
    """State, steps, bits per byte of training and validation, speed, time left of a job."""
    total, running = job.config.trainer.max_steps, job.state == "running"
    step = "" if at.step is None else f"{at.step:,}"
    if step and total and at.step is not None:
        step = f"{at.step / total:.0%}" if narrow else f"{step}/{total:,}"
    speed = f"{at.speed / 1000:,.1f}" if running and at.speed is not None else ""
    return [job.state, step, bits(at.train), bits(at.val), speed, "" if left is None else clock(left)]


def title(sweep: Sweep, left: dict[str, float | None]) -> str:
    """How many jobs are in which state, and about how long all of them still take."""
    said = f"{sweep.folder.name}: {counted([job.state for job in sweep.jobs]) or 'no jobs yet'}"
    running = [seconds for seconds in left.values() if seconds is not None]
    if not running or len(running) < len(left):
        return said
    past = [job.seconds for job in sweep.jobs if job.state == "finished" and job.seconds]
    whole = [seconds_since(job.started) + (left[job.name] or 0.0) for job in sweep.jobs if job.state == "running"]
    each = sum(past + whole) / len(past + whole)
    waiting = sum(job.state == "waiting" for job in sweep.jobs)
    return f"{said}, about {clock(max(*running, (sum(running) + waiting * each) / max(1, sweep.slots)))} left"


def most_telling(jobs: list[Job], rows: int | None) -> list[Job]:
    """Pick the jobs to show where there is no room for all, in their order: running, failed, waiting, the others."""
    if rows is None or len(jobs) <= rows:
        return jobs
    order = ["running", "failed", "waiting"]
    ranked = sorted(jobs, key=lambda job: order.index(job.state) if job.state in order else len(order))
    kept = {job.name for job in ranked[: max(1, rows)]}
    return [job for job in jobs if job.name in kept]


def shortened(names: list[str], width: int) -> list[str]:
    """Bring names down to a width: first without the parts that all share, then cut from the left."""
    if all(len(name) <= width for name in names):
        return names
    parts = [name.split("-") for name in names]
    if len({len(those) for those in parts}) == 1:
        differs = [len(set(column)) > 1 for column in zip(*parts, strict=True)]
        names = [_telling(those, differs) for those in parts] if any(differs) else names
    return [name if len(name) <= width else f"…{name[len(name) - max(1, width - 1) :]}" for name in names]


def _telling(parts: list[str], differs: list[bool]) -> str:
    """Join the parts that differ, with an ellipsis for each stretch of those that do not."""
    kept = "-".join(part if tells else "…" for part, tells in zip(parts, differs, strict=True))
    return re.sub("-?…(-…)*-?", "…", kept)


def counted(states: list[str]) -> str:
    """``3 finished, 2 running``: states in the order in which they first come."""
    return ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))


def seconds_since(moment: str | None) -> float:
    """Seconds since an ISO time; 0 without one."""
    if moment is None:
        return 0.0
    return (datetime.now().astimezone() - datetime.fromisoformat(moment)).total_seconds()


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
