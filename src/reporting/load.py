"""Read sweeps and run directories as they are: finished, running, failed, killed in the middle of a line."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from src.errors import UserError
from src.reporting.compare import SHORT, settings_of
from src.reporting.record import Point, Record, flat
from src.runs import lock
from src.sweep.view import number

LIKE_THIS = 5  # folders that a message names
TRAIN, VAL = "train/bits_per_byte", "val/bits_per_byte"


@dataclass
class Loaded:
    """What a report is made of.

    Args:
        title: name of the sweep, or of the folder that has the runs.
        runs: in the order of the sweep, or of the command line.
        command: the sweep's command line; empty for runs that were named one by one.
        started: ISO time of the sweep's first start.
        slots: jobs of the sweep at a time.
    """

    title: str
    runs: list[Record] = field(default_factory=list)
    command: list[str] = field(default_factory=list)
    started: str | None = None
    slots: int | None = None


def load(paths: Sequence[Path]) -> Loaded:
    """Read sweep folders and run directories.

    Args:
        paths: at least one; a sweep's folder stands for all its jobs.

    Raises:
        UserError: a path is neither, or its sweep.json cannot be read.
    """
    sweeps = [_sweep(path) if (path / "sweep.json").is_file() else None for path in paths]
    if len(sweeps) == 1 and sweeps[0] is not None:
        return sweeps[0]
    runs: list[Record] = []
    for path, sweep in zip(paths, sweeps, strict=True):
        runs += sweep.runs if sweep else [_single(path)]
    names = [run.name for run in runs]
    for run, settings in zip(runs, settings_of([run.config for run in runs]), strict=True):
        run.settings = settings
        if names.count(run.name) > 1:
            run.name = f"{run.path.parent.name}/{run.name}"
    return Loaded(runs[0].name if len(runs) == 1 else f"{len(runs)} runs", runs)


def _sweep(folder: Path) -> Loaded:
    """Read a sweep's folder.

    Raises:
        UserError: its sweep.json cannot be read.
    """
    file = folder / "sweep.json"
    try:
        content = json.loads(file.read_text())
        jobs = [_job(folder, entry) for entry in content["jobs"]]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = f"it has no {error}" if isinstance(error, KeyError) else str(error)
        raise UserError(
            f"{file} cannot be read as a sweep ({reason}): the sweep's own command writes it anew"
        ) from error
    alive = lock.held(folder)
    for job in jobs:
        if job.state == "running" and not (alive or lock.held(job.path)):
            job.state = "interrupted"
    if all(not job.settings for job in jobs):
        for job, settings in zip(jobs, settings_of([job.config for job in jobs]), strict=True):
            job.settings = settings
    data = {job.data_name for job in jobs if job.config}
    for job in jobs:
        job.data_of_others = next(iter(data)) if len(data) == 1 else ""
    command, started, slots = (content.get(name) for name in ("command", "started", "slots"))
    return Loaded(folder.resolve().name, jobs, [str(word) for word in command or []], started, slots)


def _job(folder: Path, entry: dict[str, Any]) -> Record:
    path = folder / str(entry["run"] or entry["name"])
    run = Record(str(entry["name"]), path, str(entry["state"]), error=entry.get("error"))
    run.settings = {SHORT.get(key, str(key)): str(value) for key, value in entry["overrides"].items()}
    return _filled(run)


def _single(path: Path) -> Record:
    """Read one run directory.

    Raises:
        UserError: it is none.
    """
    if not path.is_dir():
        raise UserError(f"{path} is neither a sweep's folder nor a run directory: there is no such folder")
    if not (path / "config.yaml").is_file():
        inside = sorted(found.parent for name in ("sweep.json", "config.yaml") for found in path.glob(f"*/{name}"))
        hint = f": did you mean {' or '.join(map(str, inside[:LIKE_THIS]))}?" if inside else ""
        raise UserError(f"{path} holds neither sweep.json (a sweep) nor config.yaml (a run){hint}")
    run = _filled(Record(path.resolve().name, path, "stopped"))
    if lock.held(path):
        run.state = "running"
    elif run.summary.get("status") == "finished":
        run.state = "finished"
    return run


def _filled(run: Record) -> Record:
    """Add what the run's folder holds; what cannot be read is noted and left out."""
    run.config = flat(_read(run, "config.yaml", yaml.safe_load))
    run.summary = _read(run, "summary.json", json.loads)
    run.provenance = _read(run, "provenance.jsonl", lambda text: json.loads(text.splitlines()[-1]))
    _read_metrics(run)
    return run


def _read(run: Record, name: str, parse: Any) -> dict[str, Any]:
    file = run.path / name
    if not file.is_file():
        return {}
    try:
        content = parse(file.read_text())
        if not isinstance(content, dict):
            raise ValueError("it is no table of values")
    except (OSError, ValueError, IndexError, yaml.YAMLError) as error:
        run.notes.append(f"{name} cannot be read ({str(error).splitlines()[0] if str(error) else 'it is empty'})")
        return {}
    return content


def _read_metrics(run: Record) -> None:
    """Read metrics.csv; a row that is just being written, and what is not finite, are left out."""
    file = run.path / "metrics.csv"
    if not file.is_file():
        return
    try:
        whole_lines, newline, _ = file.read_text(errors="replace").rpartition("\n")
        rows = list(csv.DictReader(io.StringIO(whole_lines + newline, newline="")))
    except (OSError, csv.Error) as error:
        run.notes.append(f"metrics.csv cannot be read ({error})")
        return
    not_finite = sum(_add_row(run, row) for row in rows if (row.get("step") or "").isdecimal())
    if not_finite:
        run.notes.append(f"{not_finite} logged losses are not finite and are not drawn")


def _add_row(run: Record, row: dict[str, str]) -> int:
    """Add what a row has; the number of its losses that are not finite."""
    step, step_bytes, not_finite = int(row["step"]), _step_bytes(run), 0
    read = {name: number(text) for name, text in row.items() if isinstance(name, str)}
    values = {name: value for name, value in read.items() if value is not None}
    for name, points in ((TRAIN, run.train), (VAL, run.val)):
        if (bits := values.get(name)) is None:
            continue
        if math.isfinite(bits):
            seen = values.get("train/bytes_seen", None if step_bytes is None else step * step_bytes)
            points.append(Point(step, bits, seen, values.get("train/seconds")))
        else:
            not_finite += 1
    for name, value in values.items():
        if math.isfinite(value):
            run.logged.setdefault(name, []).append((step, value))
    return not_finite


def _step_bytes(run: Record) -> int | None:
    sizes = (run.config.get("data.batch_size"), run.config.get("data.context"))
    return sizes[0] * sizes[1] if all(isinstance(size, int) for size in sizes) else None  # type: ignore[operator]
