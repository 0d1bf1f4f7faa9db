"""The learning rate by the optimizer step: a linear warm-up, then the paper's cosine (section 6) or a linear decay."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

Shape = Literal["cosine", "linear"]


@dataclass(frozen=True)
class Schedule:
    """The share of its peak that a learning rate has in each step of a run.

    Args:
        shape: after the warm-up: ``cosine``, half a cosine down to 0 at the end (section 6), or ``linear``, constant
            and then in a straight line down to 0.
        warmup_steps: optimizer steps of the linear warm-up; None: ``warmup_share`` of the run, ``warmup_most`` at most.
        warmup_share: of the run's steps.
        warmup_most: optimizer steps.
        decay_share: of the run's steps, at its end: where ``linear`` falls.
    """

    shape: Shape = "cosine"
    warmup_steps: int | None = None
    warmup_share: float = 0.15
    warmup_most: int = 5000
    decay_share: float = 0.4

    def warmup(self, max_steps: int) -> int:
        """Give the steps of the warm-up of a run of ``max_steps`` optimizer steps."""
        if self.warmup_steps is not None:
            return self.warmup_steps
        return min(self.warmup_most, round(self.warmup_share * max_steps))

    def factor(self, step: int, max_steps: int) -> float:
        """Give the factor, from 0 to 1, of the step after ``step`` of ``max_steps`` are done.

        The warm-up goes from 1/steps up to 1. Past the end the factor is 0.
        """
        warmup = self.warmup(max_steps)
        if step < warmup:
            return (step + 1) / warmup
        if self.shape == "cosine":
            progress = (step - warmup) / max(1, max_steps - warmup)
            return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
        left = max(0, max_steps - step)
        return min(1.0, left / max(1.0, self.decay_share * max_steps))
