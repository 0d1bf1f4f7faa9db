"""Evaluate: ``python -m src.eval run=RUN_DIR`` scores every byte of a split with a run's best checkpoint."""

from __future__ import annotations

from typing import cast

from omegaconf import DictConfig

from src.cli import command, overridden_keys, typed
from src.config import EvalConfig
from src.config_check import check
from src.config_restore import restore
from src.run import Run


def evaluate(cfg: DictConfig) -> None:
    """Score the run that the command line names, with its own configuration."""
    command_line = cast(EvalConfig, typed(cfg, EvalConfig))
    check(command_line)
    run = Run.find(command_line.run)
    changed = [key for key in overridden_keys() if key not in ("run", "checkpoint", "split")]
    config = restore(run.config(), command_line, changed)
    check(config)
    checkpoint = run.checkpoint(command_line.checkpoint)

    from src.job import evaluate_run  # late: torch takes seconds to import, a mistake should not

    evaluate_run(run, config, checkpoint, command_line.split)


if __name__ == "__main__":
    command("eval", evaluate)
