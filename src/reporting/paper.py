"""The paper's table 2, and what a run must be for its figures to stand beside it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
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
    "enwik8": {"data.context": 12_288, "model.depth": 30, "model.width": 512, "model.heads": 8, "model.kv_heads": None},
    "cifar10": {
        "data.context": 3_072,
        "model.depth": 128,
        "model.width": 256,
        "model.heads": 2,
        "model.kv_heads": None,
    },
}
EPOCHS = {"enwik8": 80, "cifar10": 120}


def published(run: Record, attention: str | None = None) -> Published | None:
    """Give the paper's row for a run's data set and ``attention`` (its own if None); None where the paper has none."""
    return TABLE2.get(run.stands_for or run.data_name, {}).get(attention or run.attention)


def why_not_comparable(name: str, runs: Sequence[Record]) -> list[str]:
    """Say what keeps the bits per byte of runs from standing beside the paper's; empty where nothing does.

    The time of a step is never comparable as such, another machine took it: only its ratio to dense is.

    Args:
        name: of the data set that they were trained on.
        runs: at least one.
    """
    labels = _all(run.label for run in runs)
    reasons = []
    if name not in TABLE2:
        reasons.append(f"the data are {labels or name or 'not known'}, and the paper's table has enwik8 and CIFAR-10")
        name = runs[0].stands_for if runs else ""
        if name not in TABLE2:
            return reasons
    elif any(run.partial for run in runs):
        reasons.append(f"partial data ({labels})" if labels else "partial data")
    elif any(run.partial is None for run in runs):
        reasons.append("nothing says yet that the data are whole")
    wrong = [
        f"{key.rpartition('.')[2]} {values} instead of {'null' if wanted is None else f'{wanted:,}'}"
        for key, wanted in THE_MODEL[name].items()
        if (values := _all(run.config.get(key) for run in runs if run.config.get(key) != wanted))
    ]
    if wrong:
        reasons.append(f"another model ({', '.join(wrong)})")
    if lengths := _all(_length(run) for run in runs if _length(run) != f"{EPOCHS[name]} epochs"):
        reasons.append(f"trained for {lengths} instead of {EPOCHS[name]} epochs")
    if any(run.state != "finished" for run in runs):
        reasons.append("not all runs are finished")
    return reasons


def _length(run: Record) -> str:
    steps, epochs = run.config.get("trainer.max_steps"), run.config.get("trainer.epochs")
    return f"{epochs} epochs" if steps is None else f"{steps:,} steps"


def _all(values: Iterable[Any]) -> str:
    """Name every different value once."""
    known = dict.fromkeys(value for value in values if value is not None)
    return ", ".join(f"{value:,}" if isinstance(value, int) else str(value) for value in known)
