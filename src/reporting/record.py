"""What is known of one run: plain data, as it was read from its folder."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

STATES = ("finished", "running", "interrupted", "stopped", "pruned", "failed", "waiting")
ATTENTION = "attention"  # the setting that names the pattern, as the command line does


@dataclass(frozen=True)
class Point:
    """One logged loss.

    Args:
        step: optimizer steps done.
        bits: bits per byte.
        nbytes: bytes trained on so far; None where that is not known.
        seconds: of training so far; None for runs of versions that did not log it.
    """

    step: int
    bits: float
    nbytes: float | None = None
    seconds: float | None = None


@dataclass
class Record:
    """One run.

    Args:
        name: of its folder.
        path: its folder; it need not exist.
        state: one of ``STATES``.
        settings: what tells it from the other runs of a report, key and value as the command line has them.
        config: keys with dots and their values; empty where there is no readable config.yaml.
        summary: final figures; empty before the end.
        train: losses of training, by step.
        val: losses on the validation split, by step.
        logged: every other column of metrics.csv: step and value of each entry.
        error: the sentence with which it failed.
        provenance: of its last process.
        notes: what could not be read.
        data_of_others: the data set of the sweep's other runs, for a run that has not begun.
        stands_for: the data set of the paper that it is to stand beside, where that is not its own.
    """

    name: str
    path: Path
    state: str
    settings: dict[str, str] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    train: list[Point] = field(default_factory=list)
    val: list[Point] = field(default_factory=list)
    logged: dict[str, list[tuple[int, float]]] = field(default_factory=dict)
    error: str | None = None
    provenance: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    data_of_others: str = ""
    stands_for: str = ""

    @property
    def attention(self) -> str:
        """The pattern's name."""
        return str(self.config.get("attention.pattern") or self.settings.get(ATTENTION) or "?")

    @property
    def data_name(self) -> str:
        """The data set's name, as ``data=`` has it; empty where it is not known."""
        return str(self.config.get("data.name") or self.data_of_others)

    @property
    def label(self) -> str | None:
        """What the figures were measured on; known at the end of a run."""
        found = self.summary.get("data/label")
        return None if found is None else str(found)

    @property
    def partial(self) -> bool | None:
        """Whether that is only a part of an official data set; None before the first validation."""
        if isinstance(found := self.summary.get("data/partial"), bool):
            return found
        logged = self.logged.get("data/partial")
        return bool(logged[-1][1]) if logged else None

    @property
    def step(self) -> int:
        """Optimizer steps that are known to be done."""
        ends = [points[-1].step for points in (self.train, self.val) if points]
        return max([int(self.final("train/steps") or 0), *ends])

    @property
    def seconds(self) -> float | None:
        """Seconds of training so far; None where they were not logged."""
        ends = [point.seconds for point in (*self.train[-1:], *self.val[-1:]) if point.seconds is not None]
        return max(ends, default=None)

    @property
    def best_val(self) -> float | None:
        """The best validation so far, bits per byte."""
        return min((point.bits for point in self.val), default=self.final("val/bits_per_byte"))

    def final(self, name: str) -> float | None:
        """Give a figure of summary.json; None where it is none."""
        value = self.summary.get(name)
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            return None
        return float(value)

    def typical(self, name: str) -> float | None:
        """Give the run's own average of a speed, or the median of what it has logged so far."""
        if (found := self.final(name)) is not None:
            return found
        logged = self.logged.get(name)
        return statistics.median(value for _, value in logged) if logged else None


def flat(content: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Turn nested tables into one whose keys have dots, as the command line writes them."""
    found: dict[str, Any] = {}
    for name, value in content.items():
        if isinstance(value, dict) and value:
            found |= flat(value, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = value
    return found
