"""Runs the jobs of a sweep on this machine: as many at a time as there are slots, each a process of its own.

A job that fails is reported and the others go on. Ctrl-C, SIGTERM or the end of the time that was given stops the
running ones, which save their state; the same command goes on with them. If the sweep itself is killed, its jobs end
with it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from src.errors import UserError
from src.processes.ranks import PARENT, STOPPED, TOLD
from src.runs import lock
from src.runs.run import Run
from src.sweep.plan import Job, Sweep, now
from src.sweep.slots import Slots
from src.sweep.view import View
from src.sweep.wandb_folder import gather
from src.system.signals import leave_terminal, stops

POLL = 0.2  # seconds between two looks at the jobs
GATHER = 2.0  # seconds between two looks for what wandb has begun to write
TIME_UP = 75  # exit code of a sweep whose time is up while something is left to do (EX_TEMPFAIL: try again)


@dataclass
class Process:
    """A running job."""

    job: Job
    popen: subprocess.Popen[bytes]
    taken: list[str]
    began: float = field(default_factory=time.monotonic)
    pruned: bool = False


class Runner:
    """Runs jobs in slots.

    Args:
        sweep: where they belong.
        slots: what they run on.
        view: what the terminal shows.
        seconds: after which running jobs save their state and end, and no further one begins; None: no limit.
    """

    def __init__(self, sweep: Sweep, slots: Slots, view: View, seconds: float | None = None) -> None:
        self.sweep = sweep
        self.slots = slots
        self.view = view
        self.running: list[Process] = []
        self.stopped_by: int | None = None
        self.time_up = False
        self._ends = None if seconds is None else time.monotonic() + seconds
        self._gathered = 0.0
        self._behind = False
        self._said: set[str] = set()

    def run(self) -> int:
        """Run all jobs that are not finished; the exit code of the sweep."""
        waiting = [job for job in self.sweep.jobs if job.state != "finished"]
        with self.watching():
            while waiting or self.running:
                while waiting and self.start(waiting[0]):
                    waiting.pop(0)
                self.look()
                if self.stopped_by is not None:
                    waiting.clear()
        return exit_code(self.sweep.jobs, self.stopped_by, self.time_up)

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Take the sweep's folder, the signals and the terminal for the time of the context.

        Raises:
            UserError: another process has the folder.
        """
        before = {signum: signal.signal(signum, self._stop) for signum in stops()}
        try:
            take_folder(self.sweep.folder)
            with self.view.shown(self.sweep):
                self.sweep.write()
                yield
        finally:
            for process in self.running:
                process.popen.kill()
            for signum, handler in before.items():
                signal.signal(signum, handler)

    def start(self, job: Job) -> bool:
        """Start a job if there is room for it, there is time left and nobody asked to stop; say whether."""
        if self.stopped_by is not None or self.out_of_time() or (room := self.slots.take(job.config)) is None:
            return False
        taken, environment = room
        try:
            popen = self.launch(job, environment)
        except OSError as error:
            self.slots.give_back(taken)
            self.put_off(job, error)
            return False
        job.state, job.run, job.started, job.ended, job.error, job.exit_code = (
            "running", job.name, now(), None, None, None,
        )  # fmt: skip
        self.running.append(Process(job, popen, taken))
        self.write()
        return True

    def launch(self, job: Job, environment: dict[str, str]) -> subprocess.Popen[bytes]:
        """Start the process of a job.

        Raises:
            OSError: the disk or the machine has no room for it.
        """
        run = made(self.sweep, job)
        with self.sweep.console(job).open("ab") as console:
            return subprocess.Popen(
                [sys.executable, "-m", self.program(job), str(run.path)],
                env={**os.environ, **environment, PARENT: str(os.getpid())},
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C reaches it once, through us
            )

    def program(self, job: Job) -> str:
        """Name the module that does a job: it is given the run directory, and ends as ``src.job`` does."""
        return "src.job"

    def put_off(self, job: Job, error: OSError) -> None:
        """Let a job wait that cannot be started now: it is tried again for as long as others run.

        Raises:
            UserError: none does.
        """
        reason = f"{job.name} cannot be started ({error.strerror or error})"
        if not self.running:
            raise UserError(f"{reason}: mend that, then run the same command again") from error
        self.warn(f"{reason}: it is tried again while others run")

    def write(self) -> None:
        """Bring sweep.json up to date; where the disk does not take it jobs run on, and it is written later."""
        try:
            self.sweep.write()
            self._behind = False
        except OSError as error:
            self._behind = True
            self.warn(f"{self.sweep.file} cannot be written ({error.strerror or error}): jobs run on")

    def warn(self, sentence: str) -> None:
        """Say a sentence, once."""
        if sentence not in self._said:
            self._said.add(sentence)
            self.view.say(sentence, "yellow")

    def look(self) -> list[Job]:
        """Wait a moment, and settle the jobs that have ended; these are given back."""
        time.sleep(POLL)
        if self.stopped_by is None and self.out_of_time():
            self.time_up = True
            self._stop(signal.SIGTERM, None)
        ended = [process for process in self.running if process.popen.poll() is not None]
        for process in ended:
            self.running.remove(process)
            self.slots.give_back(process.taken)
            self.settle(process)
        if self._behind:
            self.write()
        if time.monotonic() - self._gathered > GATHER or not self.running:
            gather(self.sweep.folder)
            self._gathered = time.monotonic()
        self.view.update(self.sweep)
        return [process.job for process in ended]

    def out_of_time(self) -> bool:
        """Say whether the time that was given is over."""
        return self._ends is not None and time.monotonic() >= self._ends

    def settle(self, process: Process) -> None:
        """Write down how a job ended."""
        job, code = process.job, process.popen.returncode
        job.exit_code = code if code >= 0 else STOPPED - code
        job.ended, job.seconds = now(), round(job.seconds + time.monotonic() - process.began, 1)
        if job.exit_code == 0:
            job.state = "finished"
        elif process.pruned:
            job.state = "pruned"
        elif self.stopped_by is not None and job.exit_code >= STOPPED:
            job.state = "stopped"
        else:
            job.state, job.error = "failed", last_words(self.sweep.console(job), job.exit_code)
            if not (self.sweep.folder / job.name).is_dir():
                job.run = None  # a job that never began takes its folder away again
        self.write()
        self.view.ended(job)

    def prune(self, job: Job) -> None:
        """Stop a running job for good; its state is saved."""
        for process in self.running:
            if process.job is job and not process.pruned:
                process.pruned = True
                process.popen.send_signal(signal.SIGTERM)

    def _stop(self, signum: int, frame: FrameType | None) -> None:
        leave_terminal()
        if self.stopped_by is not None and signum == signal.SIGHUP:
            return  # a terminal that is closed says so more than once
        again, self.stopped_by = self.stopped_by is not None, signum
        for process in self.running:
            process.popen.send_signal(signal.SIGKILL if again else signal.SIGTERM)


def made(sweep: Sweep, job: Job) -> Run:
    """Make the run directory of a job, or bring the configuration of the one it has up to date."""
    run = sweep.run_of(job)
    run.checkpoints.mkdir(parents=True, exist_ok=True)
    run.write_config(job.config)
    return run


def last_words(console: Path, code: int) -> str:
    """Find the sentence with which a job failed in what it said."""
    lines = console.read_text(errors="replace").splitlines()[-200:] if console.is_file() else []
    told = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    if told and code in (TOLD, 1):
        return told[-1]
    if code == STOPPED + signal.SIGKILL:
        return "it was killed (exit code 137), as the system does when memory is full"
    said = [line.strip() for line in lines if line.strip()]
    return f"exit code {code}: {said[-1]}" if said else f"exit code {code}"


def exit_code(jobs: list[Job], stopped_by: int | None, time_up: bool = False) -> int:
    """Give the exit code of a sweep.

    0: all finished; 2: all failures are a user's mistakes; 1: other failures; 75: the time is up and something is left
    to do; 128 + signal: it was stopped.
    """
    if stopped_by is not None and not time_up:
        return STOPPED + stopped_by
    failed = [job for job in jobs if job.state == "failed"]
    if not failed:
        return TIME_UP if time_up and any(job.state != "finished" for job in jobs) else 0
    return TOLD if all(job.exit_code == TOLD for job in failed) else 1


def take_folder(folder: Path) -> None:
    """Make the folder of a sweep and keep a second sweep out of it, until this process ends.

    Raises:
        UserError: another sweep is at work there, or the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder} cannot be made: {error.strerror}") from error
    lock.take(folder)
