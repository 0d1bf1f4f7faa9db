"""Ctrl-C and SIGTERM: finish the step, save, say how to go on."""

from __future__ import annotations

import signal
from types import FrameType
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer


class Interrupted(Exception):
    """Training stopped on a signal after its state was saved; ``signum`` is the signal."""

    def __init__(self, signum: int) -> None:
        super().__init__(signal.Signals(signum).name)
        self.signum = signum


class StopSignal(Callback):
    """Turns the first SIGINT or SIGTERM into a request that others see in ``requested``.

    A second one ends the process at once, as it would have without this callback.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self) -> None:
        self.requested: int | None = None
        self._before: dict[int, Any] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the signals over, after Lightning has set its own handlers."""
        for signum in self.SIGNALS:
            self._before[signum] = signal.signal(signum, self._request)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Give the signals back."""
        while self._before:
            signal.signal(*self._before.popitem())

    def _request(self, signum: int, frame: FrameType | None) -> None:
        if self.requested is not None:
            signal.signal(signum, signal.SIG_DFL)
            signal.raise_signal(signum)
        self.requested = signum
        print("\nstopping after this step and saving; once more stops at once, without saving", flush=True)
