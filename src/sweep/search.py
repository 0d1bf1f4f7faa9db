"""A search for good values with Optuna: trials are jobs in slots, bad ones stop early, the study lies on the disk.

Optuna is used as a library. Its plugin for Hydra (hydra-optuna-sweeper 1.3) needs Optuna below 3, runs trials in
batches that wait for their slowest, and ends the sweep when a trial fails.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, Trial, TrialState

from src.config.schema import Config
from src.errors import UserError
from src.processes.ranks import STOPPED
from src.sweep.plan import Job, Sweep, adapted
from src.sweep.runner import TIME_UP, Runner
from src.sweep.slots import Slots
from src.sweep.view import View

METRIC = "val/bits_per_byte"
Compose = Callable[[Mapping[str, Any]], Config]


@dataclass(frozen=True)
class Settings:
    """How a search goes.

    Args:
        trials: in all, those of earlier starts among them.
        seed: of the sampler.
        patience: trials that run to their end before any is stopped early.
    """

    trials: int
    seed: int
    patience: int


class Search(Runner):
    """Asks the study for trials, runs them as jobs, and tells it what came out.

    Args:
        sweep: its folder holds the study; its jobs are the trials.
        slots: what they run on.
        view: what the terminal shows.
        space: the keys that vary, each with its distribution.
        compose: makes a trial's configuration from its values.
        settings: how the search goes.
        seconds: as ``Runner`` takes them.
    """

    def __init__(
        self,
        sweep: Sweep,
        slots: Slots,
        view: View,
        space: Mapping[str, BaseDistribution],
        compose: Compose,
        settings: Settings,
        seconds: float | None = None,
    ) -> None:
        super().__init__(sweep, slots, view, seconds)
        self.space = dict(space)
        self.compose = compose
        self.settings = settings
        self.trials: dict[str, Trial] = {}
        self.reported: dict[str, int] = {}
        self.study: optuna.Study

    def run(self) -> int:
        """Run trials until there are as many as asked for; the exit code of the sweep."""
        with self.watching():
            self.study = opened_study(self.sweep.folder / "study.db", self.settings)
            waiting = [job for job in map(self.known, self.study.get_trials(deepcopy=False)) if job.state == "waiting"]
            while True:
                while len(self.running) < self.sweep.slots and (job := self.next(waiting)):
                    if job.state == "waiting" and not self.start(job):
                        waiting.insert(0, job)
                        break
                if not self.running:
                    break
                for job in self.look():
                    self.tell(job)
                self.prune_bad()
        return self.conclude()

    def next(self, waiting: list[Job]) -> Job | None:
        """Give the job to start next: one that was interrupted, or a new trial; None if there are no more."""
        if self.stopped_by is not None:
            return None
        if waiting:
            return waiting.pop(0)
        if len(self.study.get_trials(deepcopy=False)) >= self.settings.trials:
            return None
        trial = self.study.ask(self.space)
        return self.job(trial.number, trial.params, trial)

    def known(self, past: FrozenTrial) -> Job:
        """Take over a trial of an earlier start; one that was interrupted waits to go on."""
        trial = Trial(self.study, past._trial_id) if past.state == TrialState.RUNNING else None
        job = self.job(past.number, past.params, trial)
        if trial is None:
            states = {TrialState.COMPLETE: "finished", TrialState.PRUNED: "pruned"}
            job.state = states.get(past.state, "failed")
            job.error = past.user_attrs.get("error")
        if self.sweep.run_of(job).config_file.is_file():
            job.run = job.name
        return job

    def job(self, number: int, values: Mapping[str, Any], trial: Trial | None) -> Job:
        """Make the job of a trial. Values that make no configuration are a failed trial, with the sentence."""
        overrides = {key: str(value) for key, value in values.items()}
        error = None
        try:
            config = self.compose(values)
        except UserError as refused:
            config, error = self.compose({}), str(refused)
        job = Job(number, f"{config.name}-t{number:03d}", overrides, adapted(config, self.sweep.folder, overrides))
        self.sweep.jobs.append(job)
        if trial is not None:
            self.trials[job.name] = trial
            if error is not None:
                job.state, job.error = "failed", error
                self.tell(job)
        return job

    def tell(self, job: Job) -> None:
        """Tell the study how a trial ended. One that was stopped with the sweep stays open, and goes on next time."""
        trial = self.trials[job.name]
        if job.state == "stopped":
            return
        if job.state == "pruned":
            self.study.tell(trial, state=TrialState.PRUNED)
            return
        figure = self.sweep.run_of(job).summary().get(METRIC) if job.state == "finished" else None
        if figure is not None and math.isfinite(figure):
            self.study.tell(trial, figure)
            return
        if job.state == "finished":
            job.state, job.error = "failed", f"{METRIC} is {figure}"
        trial.set_user_attr("error", job.error)
        self.study.tell(trial, state=TrialState.FAIL)
        self.write()

    def prune_bad(self) -> None:
        """Report new validations of running trials, and stop those that Optuna's pruner gives up."""
        for process in self.running:
            job = process.job
            for step, figure in validations(self.sweep.folder / job.name / "metrics.csv"):
                if step <= self.reported.get(job.name, -1):
                    continue
                self.reported[job.name] = step
                trial = self.trials[job.name]
                if math.isfinite(figure):
                    trial.report(figure, step)
                if not math.isfinite(figure) or trial.should_prune():
                    self.prune(job)

    def conclude(self) -> int:
        """Name the best trial; the exit code."""
        if self.stopped_by is not None:
            return TIME_UP if self.time_up else STOPPED + self.stopped_by
        if not any(job.state == "finished" for job in self.sweep.jobs):
            return 1
        best = self.study.best_trial
        values = " ".join(f"{key}={value}" for key, value in best.params.items())
        self.view.console.print(f"best: {METRIC} {best.value:.4f}, trial {best.number}: {values}", soft_wrap=True)
        return 0


def opened_study(file: Path, settings: Settings) -> optuna.Study:
    """Open the study of a sweep, or begin it."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna.create_study(
        study_name="search",
        storage=f"sqlite:///{file.resolve()}",
        load_if_exists=True,
        direction="minimize",
        sampler=optuna.samplers.TPESampler(seed=settings.seed),
        pruner=optuna.pruners.MedianPruner(n_startup_trials=settings.patience),
    )


def validations(file: Path) -> list[tuple[int, float]]:
    """Read the steps and figures of a run's validations so far."""
    if not file.is_file():
        return []
    with file.open(newline="") as source:
        rows = [(row.get("step"), row.get(METRIC)) for row in csv.DictReader(source)]
    return [(int(step), float(figure)) for step, figure in rows if step and figure]


def distribution(override: Override) -> BaseDistribution:
    """Read the values of a key: ``A,B,C``, ``interval(0.1,1)``, ``tag(log,interval(1e-4,1e-2))``, ``range(1,5)``.

    Raises:
        UserError: a kind of sweep that makes no distribution.
    """
    value = override.value()
    if isinstance(value, IntervalSweep) and value.start is not None and value.end is not None:
        log = "log" in value.tags
        if isinstance(value.start, int) and isinstance(value.end, int):
            return IntDistribution(value.start, value.end, log=log)
        return FloatDistribution(float(value.start), float(value.end), log=log)
    if isinstance(value, RangeSweep) or override.is_discrete_sweep():
        return CategoricalDistribution(list(override.sweep_string_iterator()))
    raise UserError(
        f"{override.key_or_group} must be values, an interval or a range, such as tag(log,interval(1e-4,1e-2)), "
        f"found {override.input_line}"
    )
