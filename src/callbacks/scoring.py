"""What goes along with an evaluation: its progress bar, and ending it by a signal."""

from __future__ import annotations

import signal
from types import FrameType
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from src.callbacks.progress import Progress


class ScoreProgress(Progress):
    """The bar of a pass over a split, with the time left."""

    title = "Scoring"
    """What the bar says of the pass."""

    @property
    def test_description(self) -> str:
        """The title."""
        return self.title

    validation_description = test_description


class StopBetweenBatches(Callback):
    """Ends an evaluation before the next batch after Ctrl-C or SIGTERM; a second signal ends it wherever it is.

    An exception out of a signal handler may come at a moment that swallows it, and Lightning looks for SIGTERM in
    training alone.
    """

    def __init__(self) -> None:
        self.heard = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Take the signals over, after Lightning has set its own handlers."""
        for signum in (signal.SIGINT, signal.SIGTERM):
            signal.signal(signum, self._hear)

    def on_test_batch_start(self, *_: Any) -> None:
        """Stop if a signal came."""
        if self.heard:
            raise KeyboardInterrupt

    def on_validation_batch_start(self, *_: Any) -> None:
        """Stop if a signal came."""
        self.on_test_batch_start()

    def _hear(self, signum: int, frame: FrameType | None) -> None:
        if self.heard:
            raise KeyboardInterrupt
        self.heard = True
