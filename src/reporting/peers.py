"""Runs of another library's model: how they stand beside ours in the figures of table 2."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from src.reporting.compare import SEED
from src.reporting.recipe import schedule
from src.reporting.record import ATTENTION, Record

MODEL = "logger.columns.sweep/model"  # in the configuration of such a run: its name in tables
VERSION = "peer/version"  # in its summary.json


def is_peer(run: Record) -> bool:
    """Say whether a run is of another library's model."""
    return MODEL in run.config


def named(run: Record) -> Record:
    """Give a run of another library's model its name where ours have their kind of attention."""
    if not is_peer(run):
        return run
    return dataclasses.replace(run, config={**run.config, "attention.pattern": str(run.config[MODEL])})


def described(name: str, run: Record) -> str:
    """Say what another library's model is, and how it was trained and scored."""
    get = run.config.get
    library = f"{name.partition(',')[0]} {run.summary.get(VERSION) or ''}".strip()
    parameters = run.final("model/parameters")
    size = "" if parameters is None else f", {parameters:,.0f} parameters"
    return (
        f"{name}: {library}, a Decoder of the same depth, width and heads with rotary positions and flash attention, "
        f"compiled whole{size}; {get('data.batch_size')} × {get('data.context'):,} bytes a step; AdamW, "
        f"{schedule(run)}; scored by the best weights in windows of its context, each byte once, as ours are."
    )


def stand_beside(peers: Sequence[Record], ours: Sequence[Record]) -> None:
    """Let each run of another library's model stand in the group of those of ours whose configuration is most alike.

    Args:
        peers: their settings are replaced.
        ours: with their settings; where there are none, all peers are in one group.
    """
    for run in peers:
        near = max(ours, key=lambda other: _alike(run, other), default=None)
        settings = {} if near is None else {k: v for k, v in near.settings.items() if k not in (ATTENTION, SEED)}
        run.settings = {ATTENTION: run.attention, SEED: str(run.config.get(SEED)), **settings}


def _alike(run: Record, other: Record) -> int:
    return sum(other.config.get(key) == value for key, value in run.config.items())
