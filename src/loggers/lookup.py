"""The loggers of a trainer by their kind."""

from __future__ import annotations

from lightning.pytorch import Trainer
from lightning.pytorch.loggers import WandbLogger

from src.loggers.metrics_csv import MetricsCsv


def wandb_loggers(trainer: Trainer) -> list[WandbLogger]:
    """Give those that log to wandb: one or none."""
    return [logger for logger in trainer.loggers if isinstance(logger, WandbLogger)]


def metrics_files(trainer: Trainer) -> list[MetricsCsv]:
    """Give those that write metrics.csv: one, or none on other ranks and with ``logger=none``."""
    return [logger for logger in trainer.loggers if isinstance(logger, MetricsCsv)]
