"""The clock of a run, which only training moves: its steps times the median of the times of a step that it logged.

Start-up, compilation, validation and checkpoints are not in it, and a run that was cut into pieces has the same clock
as an unbroken one. Steps whose attention stays within pieces of the context have a median of their own.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from src.reporting.record import Record

STEP_MS = "train/step_ms"


@dataclass(frozen=True)
class Clock:
    """Seconds and steps of a run.

    Args:
        ms: milliseconds of a step.
        short_ms: the same of each of the first ``short_steps``.
        short_steps: steps with a short context.
    """

    ms: float
    short_ms: float
    short_steps: int = 0

    def seconds(self, step: float) -> float:
        """Time that the first ``step`` steps take."""
        short = min(step, self.short_steps)
        return (short * self.short_ms + (step - short) * self.ms) / 1000

    def steps(self, seconds: float) -> float:
        """Steps that fit into that time."""
        spare = seconds - self.seconds(self.short_steps)
        return self.short_steps + 1000 * spare / self.ms if spare > 0 else 1000 * seconds / self.short_ms


def clock(run: Record) -> Clock | None:
    """Read a run's clock off what it logged; the first entry, in which kernels are compiled, does not count.

    Returns:
        None where no time of a step is known.
    """
    logged = run.logged.get(STEP_MS, [])
    if not logged:
        return None if (known := run.final(STEP_MS)) is None else Clock(known, known)
    short_steps = int(run.config.get("optimizer.short_context_steps") or 0)
    timed = logged[1:] or logged
    short = [ms for step, ms in timed if step <= short_steps]
    full = [ms for step, ms in timed if step > short_steps] or short
    return Clock(statistics.median(full), statistics.median(short or full), short_steps)


def mean(clocks: Sequence[Clock]) -> Clock:
    """Average the clocks of runs that differ in their seed alone."""
    ms, short_ms = (statistics.fmean(getattr(each, name) for each in clocks) for name in ("ms", "short_ms"))
    return Clock(ms, short_ms, clocks[0].short_steps)
