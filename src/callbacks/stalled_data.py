"""A loader that gives nothing for a long time: the run ends with a sentence instead of waiting for ever."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from types import FrameType
from typing import Any, NoReturn

from lightning.pytorch import Callback, LightningModule, Trainer

from src.data.base import ByteDataModule
from src.data.waiting import Wait, Waits
from src.errors import UserError

GRACE = 30.0  # seconds in which the training thread may end the run in order; one that the kernel holds never does


class StalledData(Callback):
    """A thread that looks how long the process has waited for its next batch.

    After too long it wakes the training thread with a signal, which raises the error there.

    Args:
        seconds: that a batch may take.
    """

    SIGNAL = "SIGALRM"

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._waits = Waits()
        self._stalled: Wait | None = None
        self._end = threading.Event()
        self._thread: threading.Thread | None = None
        self._before: Any = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin to watch the loaders of the data module, after Lightning has set its own signal handlers."""
        data = trainer.datamodule  # type: ignore[attr-defined]
        if self._thread is not None or not isinstance(data, ByteDataModule) or not hasattr(signal, self.SIGNAL):
            return
        self._waits = data.waits
        self._before = signal.signal(getattr(signal, self.SIGNAL), self._raise)
        self._end.clear()
        self._thread = threading.Thread(target=self._watch, name="stalled data", daemon=True)
        self._thread.start()

    on_test_start = on_train_start

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Watch no longer."""
        if self._thread is not None:
            self._end.set()
            self._thread.join()
            self._thread = None
            signal.signal(getattr(signal, self.SIGNAL), self._before)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Watch no longer: Lightning calls no teardown then."""
        self.teardown(trainer, pl_module, "")

    def _watch(self) -> None:
        while not self._end.wait(min(1.0, self.seconds / 4)):
            wait = self._waits.now
            if wait is None or time.monotonic() - wait.since < self.seconds:
                continue
            self._stalled = wait
            sentence = self._sentence(wait)
            signal.pthread_kill(threading.main_thread().ident or 0, getattr(signal, self.SIGNAL))
            if not self._end.wait(GRACE):
                print(f"error: {sentence}", file=sys.stderr, flush=True)
                os._exit(2)
            return

    def _raise(self, signum: int, frame: FrameType | None) -> NoReturn:
        assert self._stalled is not None
        sentence = self._sentence(self._stalled)  # before its processes are ended
        self._stalled.end_workers()
        raise UserError(sentence)

    def _sentence(self, wait: Wait) -> str:
        return (
            f"no batch came from the {wait.loader} loader for watch.stall_seconds={self.seconds:g}: {wait.whom()}; "
            "see that the disk of the data answers, then go on with resume=RUN_DIR"
        )
