"""What table2 and search_lr share: jobs composed from conf/, run in slots, packed.

A study is a sweep whose jobs do not form one grid: each has a data set, an experiment and a length of its own. Its
folder is OUTPUT_DIR/sweeps/NAME, as of any sweep.
"""

from __future__ import annotations

import argparse
import math
import tarfile
from collections.abc import Sequence
from pathlib import Path

from src.config.composing import composed, raw
from src.config.schema import Config
from src.errors import UserError
from src.jobs.machine import check_machine
from src.sweep.launcher import check_count, checked_minutes
from src.sweep.plan import Job, planned
from src.sweep.runner import Runner
from src.sweep.slots import slots_for
from src.sweep.view import View, where
from src.system.atomic_files import written_whole

SMALL_FILES = ("config.yaml", "metrics.csv", "summary.json", "provenance.jsonl", "train.log", "pattern.png")
"""Of a run directory: the first three are all that a report needs."""
NEWEST_OF = ("samples", "attention")
MOST_BYTES = 32 << 20  # of one file of an archive
PEER = "model"  # tells a job that trains another library's model, whose name it holds


class Studied(Runner):
    """Runs the jobs of a study: models of ours, and others beside them."""

    def program(self, job: Job) -> str:
        """Name the module that does a job."""
        return "scripts.paper.peer_run" if PEER in job.overrides else super().program(job)


def runnable(words: Sequence[str]) -> Config:
    """Compose one job from the words of a command line.

    Raises:
        UserError: a configuration that cannot run, or not on this machine.
    """
    config = composed(words)
    check_machine(config)
    return config


def grid(sweep: str, overrides: Sequence[str] = ()) -> dict[str, list[str]]:
    """Read the keys that conf/sweep/SWEEP.yaml varies, with their values; ``overrides`` may name other values."""
    params = raw("config", [f"sweep={sweep}"], return_hydra_config=True).hydra.sweeper.params
    given = dict(word.split("=", 1) for word in overrides if "=" in word)
    return {str(key): [value.strip() for value in str(given.get(key, params[key])).split(",")] for key in params}


def rates_of(option: str, text: str) -> list[float]:
    """Read learning rates from an option.

    Raises:
        UserError: they are no positive numbers, or one comes twice.
    """
    try:
        found = [float(word) for word in text.split(",")]
    except ValueError:
        found = []
    good = found and all(math.isfinite(rate) and rate > 0 for rate in found) and len(set(found)) == len(found)
    if not good:
        raise UserError(f"{option} must be different numbers above 0 such as 0.0005,0.001, found {text!r}")
    return found


def run(
    jobs: Sequence[tuple[dict[str, str], Config]],
    command: list[str],
    name: str,
    seconds: float | None,
    most: int | None,
) -> int:
    """Run what is left of a study's jobs, in their order; the exit code of the sweep (docs/sweeps.md).

    Args:
        jobs: what tells each from the others, and its configuration; their ``paths.output_dir`` is the same.
        command: the command line.
        name: of the study's folder.
        seconds: after which running jobs save their state and end; None: no limit.
        most: jobs at a time; None: one a GPU, or one at all.

    Raises:
        UserError: the folder holds something else, or the machine is too small.
    """
    try:
        sweep = planned(jobs, command, name)
    except UserError as error:
        raise UserError(
            str(error).replace("give the sweep another hydra.launcher.name", "give another --name")
        ) from error
    slots = slots_for(sweep, [config for _, config in jobs], most)
    code = Studied(sweep, slots, View(), seconds).run()
    print(progress(sweep.jobs, sweep.folder), flush=True)
    return code


def progress(jobs: Sequence[Job], folder: Path) -> str:
    """Say what is done and what is left, in a line."""
    left = [job for job in jobs if job.state != "finished"]
    done = f"{len(jobs) - len(left)} of {len(jobs)} runs are done"
    if not left:
        return done
    steps = {job.name: where(folder / job.name / "metrics.csv").step or 0 for job in left}
    named = ", ".join(
        f"{job.name} ({job.state}, step {steps[job.name]:,} of {job.config.trainer.max_steps or 0:,})"
        if steps[job.name] and job.config.trainer.max_steps
        else f"{job.name} ({job.state})"
        for job in left
    )
    return f"{done}; left: {named}; the same command goes on"


def add_limits(parser: argparse.ArgumentParser) -> None:
    """Add the options that ``limits`` reads, and where runs go."""
    parser.add_argument("--minutes", type=float, help="after which running jobs save and end; the same command goes on")
    parser.add_argument("--slots", type=int, metavar="N", help="jobs at a time (default: one a GPU, or one)")
    parser.add_argument("--runs", default="runs", metavar="FOLDER", help="paths.output_dir (default: runs)")


def limits(wanted: argparse.Namespace) -> float | None:
    """Check the options of ``add_limits``; the seconds that ``--minutes`` gives, None for no limit.

    Raises:
        UserError: a number that is none of jobs, or of minutes.
    """
    if wanted.slots is not None:
        check_count("--slots", wanted.slots)
    return None if wanted.minutes is None else 60 * checked_minutes("--minutes", wanted.minutes)


def run_folders(folder: Path) -> list[Path]:
    """Find the run directories of a study, by name."""
    return sorted(file.parent for file in folder.glob("*/config.yaml"))


def pack(folders: Sequence[Path], archive: Path) -> int:
    """Write the results of studies, without checkpoints, into one small archive, which takes its name when it is whole.

    Returns:
        Its size in bytes.

    Raises:
        UserError: the archive cannot be written, or there are no runs.
    """
    files = [file for folder in folders for file in small_files(folder)]
    if not files:
        raise UserError(f"there is nothing to pack: {', '.join(map(str, folders))} holds no runs")
    try:
        archive.parent.mkdir(parents=True, exist_ok=True)
        with written_whole(archive) as target, tarfile.open(fileobj=target, mode="w:gz") as packed:
            for folder, file in files:
                packed.add(file, Path(folder.name) / file.relative_to(folder), recursive=False)
    except OSError as error:
        raise UserError(f"{archive} cannot be written: {error.strerror}") from error
    return archive.stat().st_size


def small_files(folder: Path) -> list[tuple[Path, Path]]:
    """List what an archive holds of a study: its folder with each file."""
    found = [folder / "sweep.json"]
    for run_folder in run_folders(folder):
        found += [run_folder / name for name in SMALL_FILES]
        for group in NEWEST_OF:
            found += sorted((run_folder / group).glob("step-*"))[-1:]
    return [(folder, file) for file in found if file.is_file()]


def unpack(archive: Path, into: Path) -> list[Path]:
    """Read an archive back: its studies' folders, below ``into``; runs that are there already stay as they are.

    Raises:
        UserError: it is damaged, or holds what no archive of ours does.
    """
    studies: dict[str, None] = {}
    try:
        with tarfile.open(archive) as packed:
            members = [member for member in packed if _expected(member)]
            studies |= dict.fromkeys(member.name.split("/")[0] for member in members)
            there = {run for name in studies for run in run_folders(into / name)}
            there |= {into / name / "sweep.json" for name in studies if (into / name / "sweep.json").is_file()}
            for member in members:
                if into.joinpath(*Path(member.name).parts[:2]) not in there:
                    file = into / member.name
                    file.parent.mkdir(parents=True, exist_ok=True)
                    with packed.extractfile(member) as content:  # type: ignore[union-attr]  # a file, as expected
                        file.write_bytes(content.read())
    except (tarfile.TarError, EOFError) as error:
        raise UserError(f"{archive} cannot be read ({error}): it is damaged or no archive of --pack") from error
    except OSError as error:
        raise UserError(f"{archive} cannot be read: {error.strerror or error}") from error
    if not studies:
        raise UserError(f"{archive} holds no runs: it is no archive of --pack")
    return [into / name for name in studies]


def _expected(member: tarfile.TarInfo) -> bool:
    """Say whether a member is one that ``pack`` writes; others are left alone."""
    parts = Path(member.name).parts
    if not member.isreg() or member.size > MOST_BYTES or {"..", "/"} & set(parts):
        return False
    if len(parts) == 2:
        return parts[1] == "sweep.json"
    return (len(parts) == 3 and parts[2] in SMALL_FILES) or (len(parts) == 4 and parts[2] in NEWEST_OF)
