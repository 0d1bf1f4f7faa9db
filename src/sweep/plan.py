"""What a sweep is to do: its jobs, the folder they belong to, and what an earlier start has already done of them.

The same jobs always find the same folder, OUTPUT_DIR/sweeps/NAME. A job is told from others by the keys that vary and
by its configuration apart from what a run may change (``CHANGEABLE``): a sweep started again with more steps knows its
runs.
"""

from __future__ import annotations

import copy
import dataclasses
import datetime
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from src.config.restore import CHANGEABLE
from src.config.schema import Config
from src.errors import UserError
from src.runs.run import Run, write_atomically

SAME_FOLDER = 8  # characters of the hash in a sweep's name
IN_THE_NAME = ("experiment", "data", "attention", "model.depth", "precision")  # what ``name`` of conf/config.yaml holds


@dataclass
class Job:
    """One run of a sweep.

    Args:
        number: from 0, in the order of the grid.
        name: of the run directory, and of the run in wandb.
        overrides: the varied keys with their values, as text.
        config: the whole configuration.
        state: ``waiting``, ``running``, ``finished``, ``failed``, ``stopped`` or ``pruned``.
        run: name of the folder in the sweep's folder; None before the job first began.
        exit_code: of its last process.
        error: one sentence, of a job that failed.
        started: ISO time of its last start.
        ended: ISO time of its last end.
        seconds: running, all starts together.
    """

    number: int
    name: str
    overrides: dict[str, str]
    config: Config
    state: str = "waiting"
    run: str | None = None
    exit_code: int | None = None
    error: str | None = None
    started: str | None = None
    ended: str | None = None
    seconds: float = 0.0

    def entry(self) -> dict[str, Any]:
        """What sweep.json says of the job."""
        return {name.name: getattr(self, name.name) for name in dataclasses.fields(self) if name.name != "config"}


@dataclass
class Sweep:
    """Jobs that belong together, and their folder.

    Args:
        folder: OUTPUT_DIR/sweeps/NAME; it is made when the first job begins.
        command: the command line.
        varied: the keys that differ between the jobs.
        jobs: in the order of the grid.
        slots: jobs at a time.
        started: ISO time of the first start.
    """

    folder: Path
    command: list[str]
    varied: list[str]
    jobs: list[Job]
    slots: int = 1
    started: str = ""

    @property
    def file(self) -> Path:  # noqa: D102
        return self.folder / "sweep.json"

    def write(self) -> None:
        """Bring sweep.json up to date, atomically."""
        content = {
            "name": self.folder.name,
            "command": self.command,
            "started": self.started,
            "varied": self.varied,
            "slots": self.slots,
            "jobs": [job.entry() for job in self.jobs],
        }
        write_atomically(self.file, json.dumps(content, indent=2) + "\n")

    def console(self, job: Job) -> Path:
        """What the processes of a job said on the terminal."""
        return self.folder / f"{job.name}.log"

    def run_of(self, job: Job) -> Run:
        """The run directory of a job."""
        return Run(self.folder / job.name)


def planned(jobs: Sequence[tuple[dict[str, str], Config]], command: list[str], name: str | None) -> Sweep:
    """Lay out a sweep, and take over what an earlier start of the same sweep has done.

    Args:
        jobs: the varied keys and the configuration of each.
        command: the command line.
        name: of the sweep; None for one that is made of the jobs.

    Raises:
        UserError: two jobs are the same, or the folder holds something else.
    """
    varied = list(dict.fromkeys(key for overrides, _ in jobs for key in overrides))
    configs = [config for _, config in jobs]
    for number, config in enumerate(configs):
        if config in configs[:number]:
            same = ", ".join(f"{key}={value}" for key, value in jobs[number][0].items())
            raise UserError(f"jobs {configs.index(config)} and {number} of the sweep are the same run ({same})")
    prints = [fingerprint(config) + json.dumps(overrides, sort_keys=True) for overrides, config in jobs]
    first = jobs[0][1]
    size = "x".join(str(len({o.get(key) for o, _ in jobs})) for key in varied) or "1"
    digest = hashlib.sha256("".join(sorted(prints)).encode()).hexdigest()[:SAME_FOLDER]
    folder = Path(first.paths.output_dir) / "sweeps" / (name or f"{first.data.name}_{size}_{digest}")
    sweep = Sweep(folder, command, varied, [], started=now())
    names = job_names(jobs)
    for number, (overrides, config) in enumerate(jobs):
        sweep.jobs.append(Job(number, names[number], overrides, adapted(config, folder, overrides)))
    if folder.exists():
        take_over(sweep)
    return sweep


def empty_sweep(config: Config, space: dict[str, str], command: list[str], name: str | None) -> Sweep:
    """Lay out a search, whose jobs come one by one; the same search finds the same folder.

    Args:
        config: what all its jobs share.
        space: the keys that vary, and what they may be.
        command: the command line.
        name: of the sweep; None for one that is made of the rest.
    """
    digest = hashlib.sha256(json.dumps([fingerprint(config), space], sort_keys=True).encode()).hexdigest()[:SAME_FOLDER]
    folder = Path(config.paths.output_dir) / "sweeps" / (name or f"{config.data.name}_search_{digest}")
    sweep = Sweep(folder, command, list(space), [], started=now())
    if sweep.file.is_file():
        sweep.started = json.loads(sweep.file.read_text())["started"]
    return sweep


def fingerprint(config: Config) -> str:
    """Tell a run by what it computes: the configuration without what a run may change, and without where it is kept."""
    content = dataclasses.asdict(config)
    for key in (*CHANGEABLE, "resume", "name", "paths.output_dir"):
        *path, leaf = key.split(".")
        node: Any = content
        for part in path:
            node = node.get(part, {})
        if not isinstance(node.get(leaf), dict):
            node.pop(leaf, None)
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def job_names(jobs: Sequence[tuple[dict[str, str], Config]]) -> list[str]:
    """Name each job by its configuration's ``name``; varied keys that it does not show are added where names clash."""
    names = [config.name for _, config in jobs]
    if len(set(names)) == len(names):
        return names
    for key in dict.fromkeys(key for overrides, _ in jobs for key in overrides):
        if key not in IN_THE_NAME:
            short = key.rpartition(".")[2].replace("_", "-")
            names = [
                f"{name}-{short}{plain(o.get(key, '').rpartition('/')[2])}"
                for name, (o, _) in zip(names, jobs, strict=True)
            ]
    return [f"{name}-{number}" if names.count(name) > 1 else name for number, name in enumerate(names)]


def plain(value: str) -> str:
    """Leave of a value what may stand in a folder's name."""
    return "".join(c if c.isalnum() or c in ".-" else "_" for c in value.replace("+", "")).strip("_")


def adapted(config: Config, folder: Path, overrides: dict[str, str]) -> Config:
    """Give a job what belongs to the sweep: its folder, its group in wandb, the varied keys as columns."""
    config = copy.deepcopy(config)
    config.paths.output_dir = str(folder)
    config.logger.group = config.logger.group or folder.name
    config.logger.columns = {**config.logger.columns, **{f"sweep/{key}": value for key, value in overrides.items()}}
    config.trainer.progress = False  # many bars would write over each other; the sweep shows where each job is
    return config


def take_over(sweep: Sweep) -> None:
    """Find the runs of an earlier start.

    Raises:
        UserError: a run in the folder is not the one of this sweep.
    """
    known = json.loads(sweep.file.read_text()) if sweep.file.is_file() else {"jobs": []}
    sweep.started = known.get("started", sweep.started)
    entries = {entry["name"]: entry for entry in known["jobs"]}
    for job in sweep.jobs:
        run = sweep.run_of(job)
        if not run.config_file.is_file():
            continue
        before = run.config()
        if (fingerprint(before), before.logger.columns) != (fingerprint(job.config), job.config.logger.columns):
            raise UserError(
                f"{run.path} holds a run with another configuration: give the sweep another hydra.launcher.name"
            )
        job.run = run.path.name
        for item in ("seconds", "started", "ended", "exit_code"):
            setattr(job, item, entries.get(job.name, {}).get(item) or getattr(job, item))
        summary = run.summary()
        if summary.get("status") == "finished" and summary.get("train/steps", 0) >= (job.config.trainer.max_steps or 0):
            job.state = "finished"


def now() -> str:
    """The time, to the second, in ISO format with the zone."""
    return datetime.datetime.now().astimezone().isoformat(timespec="seconds")
