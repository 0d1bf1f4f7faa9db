"""The paper's table 2, and what a run must be for its figures to stand beside it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from src.reporting.record import Record


@dataclass(frozen=True)
class Published:
    """A row of table 2: seconds an iteration on a V100, bits per byte."""

    seconds: float
    bits: float


TABLE2: Mapping[str, Mapping[str, Published]] = {
    "enwik8": {
        "dense": Published(1.31, 1.00),
        "fixed": Published(0.55, 0.99),
        "strided": Published(0.35, 1.13),
    },
    "cifar10": {
        "dense": Published(0.54, 2.82),
        "fixed": Published(0.47, 2.85),
        "strided": Published(0.38, 2.80),
    },
}
TITLES = {"enwik8": "enwik8, 12,288 bytes", "cifar10": "CIFAR-10, 3,072 bytes"}
THE_MODEL: Mapping[str, Mapping[str, Any]] = {
    "enwik8": {"data.context": 12_288, "model.depth": 30, "model.width": 512, "model.heads": 8},
    "cifar10": {"data.context": 3_072, "model.depth": 128, "model.width": 256, "model.heads": 2},
}
EPOCHS = {"enwik8": 80, "cifar10": 120}


def published(run: Record, attention: str | None = None) -> Published | None:
    """Give the paper's row for a run's data set and ``attention`` (its own if None); None where the paper has none."""
    return TABLE2.get(run.data_name, {}).get(attention or run.attention)


def why_not_comparable(run: Record) -> list[str]:
    """Say what keeps a run's bits per byte from standing beside the paper's; empty where nothing does.

    The time of an iteration is never comparable as such, another machine took it: only its ratio to dense is.
    """
    name = run.data_name
    if name not in TABLE2:
        return [f"the data are {run.label or name or 'not known'}, and the paper's table has enwik8 and CIFAR-10"]
    reasons = []
    if run.partial is not False:
        known = "the data are only a part" if run.partial else "nothing says yet that the data are whole"
        reasons.append(f"{known} ({run.label})" if run.label else known)
    model = {key: run.config.get(key) for key in THE_MODEL[name]}
    wrong = [
        f"{key.rpartition('.')[2]} {model[key]} instead of {wanted:,}"
        for key, wanted in THE_MODEL[name].items()
        if model[key] != wanted
    ]
    if wrong:
        reasons.append(f"another model ({', '.join(wrong)})")
    steps, epochs = run.config.get("trainer.max_steps"), run.config.get("trainer.epochs")
    if steps is not None or epochs != EPOCHS[name]:
        length = f"{epochs} epochs" if steps is None else f"{steps:,} steps"
        reasons.append(f"trained for {length} instead of {EPOCHS[name]} epochs")
    if run.state != "finished":
        reasons.append("the run is not finished")
    return reasons
