"""Train: ``python -m src.train experiment=enwik8``, or ``resume=RUN_DIR`` to go on with a run.

Composes and checks a configuration, writes it to a run directory, and hands over to ``src.job``, which knows nothing
but that directory. A sweep (``-m``) does so for each of its jobs, see src/sweep.
"""

from __future__ import annotations

if __name__ == "__main__":
    from src.system.signals import stop_quietly

    stop_quietly()

import os
import sys
from pathlib import Path

from omegaconf import DictConfig

from src.config.checks import check
from src.config.command_line import command, overridden_keys, typed
from src.config.restore import restore
from src.config.schema import Config
from src.jobs.machine import check_machine
from src.processes.ranks import place
from src.processes.rendezvous import publish, receive
from src.runs import lock
from src.runs.run import Run
from src.system import gpus, signals


def train(cfg: DictConfig) -> None:
    """Start the job that a composed configuration describes."""
    config = typed(cfg)
    run = _agreed(config) if place().world > 1 else _prepared(config)
    job = [sys.executable, "-m", "src.job", str(run.path)]
    sys.stdout.flush()
    signals.hold()
    os.execv(sys.executable, job)  # the job takes this process over: signals and exit code are its own


def _prepared(config: Config) -> Run:
    return _resumed(config) if config.resume else _created(config)


def _agreed(config: Config) -> Run:
    """Under torchrun or srun: one run directory for all ranks, made by the first."""
    here, folder = place(), Path(config.paths.output_dir)
    if here.rank > 0:
        path = receive(here, folder)
        return Run.find(path) if path else sys.exit(2)  # the first rank has said what is wrong
    try:
        run = _prepared(config)
    except BaseException:
        publish(here, None, folder)
        raise
    publish(here, run.path, folder)
    return run


def _created(config: Config) -> Run:
    check(config)
    check_machine(config)
    return Run.create(config)


def _resumed(command_line: Config) -> Run:
    assert command_line.resume is not None
    run = Run.find(command_line.resume)
    lock.take(run.path)
    before = run.config()
    changed = [key for key in overridden_keys() if key != "resume"]
    config = restore(before, command_line, changed)
    check(config)
    check_machine(config)
    most, planned = config.trainer.max_steps, before.trainer.max_steps
    if most is not None and most != planned:
        from src.jobs.training import check_steps, newest_checkpoint  # late: torch takes seconds to import

        check_steps(run, newest_checkpoint(run)[1], most)
    if most != planned:
        print(f"trainer.max_steps is now {config.trainer.max_steps}: the cosine is planned anew over all of it")
    run.write_config(config)
    return run


def main() -> None:
    """Read the command line; Hydra must know our sweeps before it does."""
    if {"-m", "--multirun"} & set(sys.argv):
        from src.sweep.launcher import register

        gpus.ask()
        register()
    command("config", train)


if __name__ == "__main__":
    main()
