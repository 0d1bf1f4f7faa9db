"""Where Hydra's ``-m`` meets the sweeps: grids and the launchers of their jobs, as Hydra's plugins.

Hydra expands the grid and composes each job. A launcher checks all of them before anything is written, and runs them
through ``src.sweep.runner`` (this machine) or ``src.sweep.slurm`` (a cluster).
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from types import ModuleType
from typing import Any, cast

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, open_dict

from src.config.checks import check
from src.config.command_line import typed
from src.config.hydra_internals import BasicSweeper
from src.config.schema import Config
from src.errors import UserError
from src.jobs.machine import check_machine
from src.loggers.wandb_agent import check_one_run
from src.processes.ranks import place
from src.sweep.plan import Sweep, empty_sweep, planned
from src.sweep.runner import Runner
from src.sweep.slots import slots_for
from src.sweep.view import View
from src.system.progress_bars import count_progress

MANY = 20  # jobs from which on their check is shown
HYDRA_PLUGINS = "hydra_plugins.sparse_transformer"  # Hydra takes plugins of modules with such a name alone


class Jobs(Launcher):
    """What the launchers share: jobs composed and checked, all of them before the first one starts."""

    def __init__(self, name: str | None = None) -> None:
        self.name = name
        self.config: DictConfig
        self.context: HydraContext

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Take what Hydra knows; the task of a single run is not for a sweep.

        Raises:
            UserError: an agent of wandb waits for one run.
        """
        check_one_run(config.logger.kind)
        self.config, self.context = config, hydra_context

    def composed(self, overrides: Sequence[str]) -> Config:
        """Compose and check one job.

        Raises:
            UserError: a configuration that cannot run.
        """
        cfg = self.context.config_loader.load_sweep_config(self.config, list(overrides))
        with open_dict(cfg):
            del cfg["hydra"]
        config = typed(cfg)
        if config.resume is not None:
            raise UserError(f"resume={config.resume} is for one run: a sweep that is started again goes on by itself")
        check(config)
        check_machine(config)
        return config

    def plan(self, job_overrides: Sequence[Sequence[str]]) -> Sweep:
        """Compose and check all jobs, and lay out the sweep.

        Raises:
            UserError: names the first job that cannot run, and why.
        """
        if place().world > 1:
            raise UserError(f"a sweep (-m) starts the processes of each job itself: run it without {place().launcher}")
        varied = varied_keys(job_overrides)
        jobs = []
        for overrides in shown(job_overrides):
            mine = {key: value for key, value in map(split, overrides) if key in varied}
            try:
                jobs.append((mine, self.composed(overrides)))
            except UserError as error:
                which = " ".join(f"{key}={value}" for key, value in mine.items())
                raise UserError(f"{which}: {error}" if which else str(error)) from error
        return planned(jobs, [*sys.orig_argv[1:]], self.name)


class SlotLauncher(Jobs):
    """Runs the jobs on this machine, each on a GPU of its own.

    Args:
        name: of the sweep's folder; None for one made of the jobs.
        slots: jobs at a time; None for one a GPU, or one at all.
        minutes: after which running jobs save their state and end; None for no limit.
    """

    def __init__(self, name: str | None = None, slots: int | None = None, minutes: float | None = None) -> None:
        super().__init__(name)
        if slots is not None:
            check_count("hydra.launcher.slots", slots)
        self.slots = slots
        self.seconds = None if minutes is None else 60 * checked_minutes("hydra.launcher.minutes", minutes)

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run all jobs; ends the process with the sweep's exit code if that is not 0."""
        sweep = self.plan(job_overrides)
        slots = slots_for(sweep, [job.config for job in sweep.jobs], self.slots)
        if code := Runner(sweep, slots, View(), self.seconds).run():
            sys.exit(code)
        return []


class SlurmLauncher(Jobs):
    """Hands the jobs to a SLURM cluster, see ``src.sweep.slurm``.

    Args:
        name: of the sweep's folder; None for one made of the jobs.
        settings: see ``src.sweep.slurm.Settings``.
    """

    def __init__(self, name: str | None = None, **settings: Any) -> None:
        super().__init__(name)
        self.settings = settings

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Submit the jobs and wait for them; ends the process with the sweep's exit code if that is not 0."""
        try:
            from src.sweep.slurm import Settings, SlurmRunner
        except ImportError as error:
            raise UserError("hydra/launcher=slurm needs submitit: pip install '.[slurm]'") from error
        sweep = self.plan(job_overrides)
        sweep.slots = len(sweep.jobs)
        if code := SlurmRunner(sweep, Settings(**self.settings), View()).run():
            sys.exit(code)
        return []


class GridSweeper(Sweeper):
    """Hydra's own grid, but for the multirun.yaml that it leaves before anything is checked.

    Args:
        params: keys and values of conf/, as the command line would have them.
    """

    def __init__(self, params: dict[str, str] | None = None) -> None:
        self.params = params or {}

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Take what Hydra knows."""
        self.parser = OverridesParser.create(config_loader=hydra_context.config_loader)
        self.launcher: Launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> Any:
        """Expand the grid and launch its jobs; the command line comes after conf/, and so wins."""
        words = [*(f"{key}={value}" for key, value in self.params.items()), *arguments]
        (jobs,) = BasicSweeper.split_arguments(self.parser.parse_overrides(words), max_batch_size=None)
        return self.launcher.launch(jobs, initial_job_idx=0)


class SearchSweeper(Sweeper):
    """Searches for good values with Optuna, see ``src.sweep.search``.

    Args:
        params: keys and what they may be, as the command line would have them.
        trials: in all, those of earlier starts among them.
        seed: of the sampler.
        patience: trials that run to their end before any is stopped early.
    """

    def __init__(
        self, trials: int = 20, seed: int = 1, patience: int = 5, params: dict[str, str] | None = None
    ) -> None:
        check_count("hydra.sweeper.trials", trials)
        check_count("hydra.sweeper.patience", patience)
        self.params, self.trials, self.seed, self.patience = params or {}, trials, seed, patience

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Take what Hydra knows."""
        self.parser = OverridesParser.create(config_loader=hydra_context.config_loader)
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> Any:
        """Run the trials; ends the process with the sweep's exit code if that is not 0."""
        if not isinstance(self.launcher, SlotLauncher):
            raise UserError("sweep=search runs its trials on this machine: leave hydra/launcher out")
        try:
            from src.sweep.search import Search, Settings, distribution
        except ImportError as error:
            raise UserError("sweep=search needs Optuna: pip install '.[search]'") from error
        launcher = self.launcher
        given = {override.key_or_group: override for override in self.parser.parse_overrides(
            [*(f"{key}={value}" for key, value in self.params.items()), *arguments])}  # fmt: skip
        space = {key: distribution(override) for key, override in given.items() if override.is_sweep_override()}
        if not space:
            raise UserError("sweep=search needs a key that varies, such as optimizer.learning_rate=1e-4,1e-3")
        fixed = [str(override.input_line) for override in given.values() if not override.is_sweep_override()]

        def compose(values: Mapping[str, Any]) -> Config:
            return launcher.composed([*fixed, *(f"{key}={value}" for key, value in values.items())])

        first = compose({})
        described = {key: str(values) for key, values in space.items()}
        sweep = empty_sweep(first, described, [*sys.orig_argv[1:]], launcher.name)
        settings = Settings(self.trials, self.seed, self.patience)
        slots = slots_for(sweep, [first], launcher.slots)
        if code := Search(sweep, slots, View(), space, compose, settings, launcher.seconds).run():
            sys.exit(code)
        return []


def shown(job_overrides: Sequence[Sequence[str]]) -> Iterator[Sequence[str]]:
    """Give each job's overrides, with a progress bar on a terminal if they are many: Hydra takes 0.1 s a job."""
    with count_progress(shown=len(job_overrides) >= MANY, transient=True) as bar:
        yield from bar.track(job_overrides, description="checking jobs")


def check_count(key: str, value: Any) -> None:
    """Refuse what is not a whole number from 1 on; Hydra's own keys have no schema of ours."""
    if type(value) is not int or value < 1:
        raise UserError(f"{key} must be a whole number of at least 1, found {value!r}")


def checked_minutes(key: str, value: Any) -> float:
    """Refuse what is no time; Hydra's own keys have no schema of ours."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise UserError(f"{key} must be a number of minutes above 0, found {value!r}")
    return float(value)


def varied_keys(job_overrides: Sequence[Sequence[str]]) -> list[str]:
    """Name the keys whose value is not the same in all jobs."""
    values: dict[str, set[str]] = {}
    for overrides in job_overrides:
        for key, value in map(split, overrides):
            values.setdefault(key, set()).add(value)
    return [key for key, found in values.items() if len(found) > 1]


def split(override: str) -> tuple[str, str]:
    """Split KEY=VALUE."""
    key, _, value = override.partition("=")
    return key.lstrip("+"), value


def register() -> None:
    """Make the plugins known to Hydra, under the names that conf/hydra has for them."""
    package, _, leaf = HYDRA_PLUGINS.partition(".")
    module, known = ModuleType(HYDRA_PLUGINS), Plugins.instance()
    for plugin in (SlotLauncher, SlurmLauncher, GridSweeper, SearchSweeper):
        plugin.__module__ = HYDRA_PLUGINS
        setattr(module, plugin.__name__, plugin)
        known.register(cast(Any, plugin))
    sys.modules[HYDRA_PLUGINS] = module
    parent = sys.modules.setdefault(package, ModuleType(package))
    parent.__path__ = getattr(parent, "__path__", [])  # a package, to those who look for plugins in it
    setattr(parent, leaf, module)
