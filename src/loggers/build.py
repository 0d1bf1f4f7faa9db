"""Builds where figures go: metrics.csv in the run directory, and the run's own wandb run."""

from __future__ import annotations

import math
from typing import Any

from lightning.pytorch.loggers import Logger, WandbLogger

from src.config.schema import Config
from src.loggers.metrics_csv import MetricsCsv
from src.loggers.wandb_login import login_known
from src.processes.ranks import first_process
from src.runs.run import Run


def loggers(config: Config, run: Run, before: dict[str, Any], facts: dict[str, Any]) -> list[Logger]:
    """Build the loggers; wandb goes offline by itself where nobody is logged in, and never asks.

    ``before`` is what of metrics.csv the checkpoint that the run goes on from has seen, see ``MetricsCsv``.
    """
    kind = config.logger.kind
    if kind == "none":
        return []
    built: list[Logger] = [MetricsCsv(run.path / "metrics.csv", **before)]
    if kind == "wandb" and first_process():
        built.append(wandb_logger(config, run, facts))
    return built


def wandb_logger(config: Config, run: Run, facts: dict[str, Any]) -> WandbLogger:
    """Build the logger of the run's own wandb run; ``facts`` identify the data and may be empty."""
    import wandb  # here: other loggers and other ranks start sooner without it

    from src.loggers import wandb_agent
    from src.loggers.wandb_run import RunLogger, started

    # wandb takes a point in a name for a level of a table, and then finds no such column; numbers it can sort
    columns = {key.replace(".", "_"): as_number(value) for key, value in config.logger.columns.items()}
    plain, resumed = run.plain_config(), run.has_wandb_id()
    logger = RunLogger(
        name=run.path.name,
        save_dir=run.path,
        project=config.logger.project,
        entity=config.logger.entity,
        group=config.logger.group,
        tags=wandb_tags(config),
        id=run.wandb_id(),
        resume="allow",
        offline=not login_known(),
        settings=wandb.Settings(silent=True, **wandb_agent.settings(resumed)),
        config={**plain, **columns, **({"data_facts": facts} if facts else {})},
    )
    began = started(logger, run.path / "wandb" / "latest-run")
    wandb_agent.keep(run, began.experiment)
    wandb_agent.add_hidden(plain, began.experiment)
    return began


def as_number(text: str) -> int | float | str:
    """Turn a value of the command line into the number that it is, if it is a finite one."""
    for kind in (int, float):
        try:
            number = kind(text)
        except ValueError:
            continue
        return number if math.isfinite(number) else text
    return text


def wandb_tags(config: Config) -> list[str]:
    """Give the tags of a run in wandb, to pick runs by: data, attention, precision, then those of ``logger.tags``."""
    return list(dict.fromkeys([config.data.name, config.attention.pattern, config.precision.name, *config.logger.tags]))
