"""Train: ``python -m src.train experiment=enwik8``, or ``resume=RUN_DIR`` to go on with a run.

Composes and checks a configuration, writes it to a run directory, and hands over to ``src.job``, which knows nothing
but that directory. ``-m`` does so once for each job of a sweep.
"""

from __future__ import annotations

import os
import subprocess
import sys

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from src.cli import command, overridden_keys, typed
from src.config import Config, check, restore
from src.errors import UserError
from src.machine import check_machine
from src.run import Run


def train(cfg: DictConfig) -> None:
    """Start the job that a composed configuration describes."""
    config = typed(cfg)
    run = _resumed(config) if config.resume else _created(config)
    job = [sys.executable, "-m", "src.job", str(run.path)]
    if HydraConfig.get().mode == RunMode.MULTIRUN:
        if code := subprocess.run(job, check=False).returncode:
            raise UserError(f"{run.path} failed with exit code {code}: see its train.log")
    else:
        sys.stdout.flush()
        os.execv(sys.executable, job)  # the job takes this process over: signals and exit code are its own


def _created(config: Config) -> Run:
    check(config)
    check_machine(config)
    return Run.create(config)


def _resumed(command_line: Config) -> Run:
    assert command_line.resume is not None
    run = Run.find(command_line.resume)
    before = run.config()
    changed = [key for key in overridden_keys() if key != "resume"]
    config = restore(before, command_line, changed)
    check(config)
    check_machine(config)
    if config.trainer.max_steps != before.trainer.max_steps:
        print(f"trainer.max_steps is now {config.trainer.max_steps}: the cosine is planned anew over all of it")
    run.write_config(config)
    return run


if __name__ == "__main__":
    command("config", train)
