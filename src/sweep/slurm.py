"""A sweep on a SLURM cluster, through submitit: each job one SLURM job that runs ``python -m src.job RUN_DIR``.

submitit alone is in charge of requeueing. Before the time limit, and where a partition preempts by signal, SLURM sends
USR2; submitit then calls ``checkpoint``, which lets the job save and end, and puts the SLURM job back into the queue.
Where SLURM itself requeues (``PreemptMode=REQUEUE``, ``scontrol requeue``) the job saves on SIGTERM and nothing more is
done. Either way it goes on in the same run directory, as the same wandb run.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import submitit

from src.errors import UserError
from src.processes.ranks import STOPPED
from src.runs.run import write_atomically
from src.sweep.plan import Job, Sweep, now
from src.sweep.runner import exit_code, last_words, made, take_folder
from src.sweep.view import View
from src.sweep.wandb_folder import gather

ASK = 5.0  # seconds between two questions to squeue
SAVE = 100.0  # seconds that a job has to save; SLURM's warning comes some more before the end
TIMES = 10**6  # that a job may meet its time limit
TICKET = "slurm.json"  # in a run directory: the number of its SLURM job, its time, its exit code
ALIVE = {"PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD", "RUNNING", "COMPLETING", "SUSPENDED", "STOPPED"}


@dataclass(frozen=True)
class Settings:
    """What is asked of SLURM for each job.

    Args:
        partition: None for the cluster's own choice.
        minutes: time limit of one start; the job goes on in the next.
        cpus: processors of a job.
        memory_gb: None for the cluster's own choice.
        gpus: of a job; None for ``trainer.devices`` of jobs that are not for the processor.
        more: further options of sbatch, such as ``{account: lab}``.
        setup: shell lines before the job, such as ``module load cuda``.
    """

    partition: str | None
    minutes: int
    cpus: int
    memory_gb: float | None
    gpus: int | None
    more: dict[str, Any]
    setup: list[str]


class JobProcess:
    """What submitit runs on the cluster: one job, as a process of its own."""

    def __init__(self, run: str, console: str) -> None:
        self.run = run
        self.console = console
        self.process: subprocess.Popen[bytes] | None = None
        self.began = 0.0

    def __call__(self) -> int:
        """Run the job to its end; the exit code."""
        run, self.began = Path(self.run), time.monotonic()
        with Path(self.console).open("ab") as console:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "src.job", self.run], stdout=console, stderr=subprocess.STDOUT
            )
            while (code := self.process.poll()) is None:
                time.sleep(0.2)
        code = code if code >= 0 else STOPPED - code
        self.count_time()
        if code == STOPPED + signal.SIGTERM:  # SLURM is taking the machine back, and kills us next
            time.sleep(SAVE)
        write_ticket(run, {"exit_code": code})
        return code

    def count_time(self) -> None:
        """Add the time of this start to that of the job."""
        seconds = json.loads((Path(self.run) / TICKET).read_text()).get("seconds", 0)
        write_ticket(Path(self.run), {"seconds": round(seconds + time.monotonic() - self.began, 1)})

    def checkpoint(self) -> submitit.helpers.DelayedSubmission:
        """Let the job save and end; submitit then queues what this gives back."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            deadline = time.monotonic() + SAVE
            # not Popen.wait: submitit calls this from a signal handler, which may have interrupted that very method
            while time.monotonic() < deadline and not ended(self.process.pid):
                time.sleep(0.2)
        self.count_time()
        return submitit.helpers.DelayedSubmission(JobProcess(self.run, self.console))


def ended(pid: int) -> bool:
    """Say whether a child process has ended, without taking its exit code from who waits for it."""
    try:
        return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    except ChildProcessError:
        return True


class SlurmRunner:
    """Submits the jobs of a sweep and shows how they get on. Ctrl-C ends the showing alone: the jobs go on.

    Args:
        sweep: the jobs.
        settings: what is asked for each.
        view: what the terminal shows.

    Raises:
        UserError: this machine has no sbatch, or a job spans several machines.
    """

    def __init__(self, sweep: Sweep, settings: Settings, view: View) -> None:
        if shutil.which("sbatch") is None:
            raise UserError("hydra/launcher=slurm needs sbatch: run it on a login node of a SLURM cluster")
        for job in sweep.jobs:
            if job.config.trainer.num_nodes > 1:
                raise UserError(f"trainer.num_nodes must be 1 in a sweep, found {job.config.trainer.num_nodes}")
        self.sweep, self.settings, self.view = sweep, settings, view

    def run(self) -> int:
        """Submit the jobs that are neither finished nor on the cluster, and wait for all; the sweep's exit code."""
        take_folder(self.sweep.folder)
        with self.view.shown(self.sweep):
            on_cluster = squeue()
            for job in self.sweep.jobs:
                if job.state != "finished" and ticket(self.sweep, job).get("job") not in on_cluster:
                    self.submit(job)
            try:
                while self.look():
                    time.sleep(ASK)
            except KeyboardInterrupt:
                print("the jobs go on; the same command shows them again, scancel stops one", file=sys.stderr)
                return STOPPED + signal.SIGINT
        return exit_code(self.sweep.jobs, None)

    def submit(self, job: Job) -> None:
        """Hand one job to SLURM."""
        run, settings = made(self.sweep, job), self.settings
        executor = submitit.SlurmExecutor(folder=run.path / "slurm", max_num_timeout=TIMES)
        gpus = settings.gpus if settings.gpus is not None else job.config.trainer.devices
        asked: dict[str, Any] = {
            "job_name": job.name,
            "partition": settings.partition,
            "time": settings.minutes,
            "cpus_per_task": settings.cpus,
            "mem": f"{settings.memory_gb}GB" if settings.memory_gb else None,
            "gpus_per_node": gpus if gpus and job.config.trainer.accelerator != "cpu" else None,
            "signal_delay_s": int(SAVE) + 30,
            "additional_parameters": {"requeue": True, "chdir": str(Path.cwd()), **settings.more},
            "setup": settings.setup,
        }
        executor.update_parameters(**{key: value for key, value in asked.items() if value is not None})
        console = self.sweep.console(job).resolve()
        number = executor.submit(JobProcess(str(run.path.resolve()), str(console))).job_id
        write_ticket(run.path, {"job": number})
        job.run, job.started, job.error, job.exit_code, job.state = run.path.name, now(), None, None, "waiting"
        self.sweep.write()

    def look(self) -> bool:
        """Bring the states up to date; say whether any job is still on the cluster."""
        on_cluster = squeue()
        for job in self.sweep.jobs:
            if job.state not in ("finished", "failed"):
                self.settle(job, on_cluster.get(ticket(self.sweep, job).get("job", "")))
        self.sweep.write()
        gather(self.sweep.folder)
        self.view.update(self.sweep)
        return any(job.state in ("waiting", "running") for job in self.sweep.jobs)

    def settle(self, job: Job, state: str | None) -> None:
        """Take over the state that squeue gives a job; None of one that has left the queue."""
        run = self.sweep.run_of(job)
        if state is not None:
            job.state = "running" if state in ("RUNNING", "COMPLETING") else "waiting"
            return
        told = ticket(self.sweep, job)
        job.exit_code, job.seconds, job.ended = told.get("exit_code"), told.get("seconds", 0.0), now()
        if run.summary().get("status") == "finished" and job.exit_code == 0:
            job.state = "finished"
        elif job.exit_code is None:
            job.state, job.error = "failed", f"it left the queue before its end: see {run.path / 'slurm'}"
        else:
            job.state, job.error = "failed", last_words(self.sweep.console(job), job.exit_code)
        self.view.ended(job)


def squeue() -> dict[str, str]:
    """Ask SLURM for the states of this user's jobs, by their numbers.

    Raises:
        UserError: SLURM does not answer.
    """
    line: Sequence[str] = ("squeue", "--noheader", "--me", "--format=%i %T")
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(f"squeue does not answer ({done.stderr.strip().splitlines()[-1:]}): is the cluster up?")
    pairs = (words.split() for words in done.stdout.splitlines())
    return {number: state for number, state in pairs if state in ALIVE}


def ticket(sweep: Sweep, job: Job) -> dict[str, Any]:
    """Read what is known of a job's SLURM job; empty before it was submitted."""
    file = sweep.run_of(job).path / TICKET
    return json.loads(file.read_text()) if file.is_file() else {}


def write_ticket(run: Path, content: dict[str, Any]) -> None:
    """Add to what is known of a job's SLURM job; a new number makes the rest void."""
    file = run / TICKET
    before = json.loads(file.read_text()) if file.is_file() and "job" not in content else {}
    write_atomically(file, json.dumps({**before, **content}) + "\n")
