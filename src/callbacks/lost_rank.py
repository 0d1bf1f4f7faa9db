"""A rank whose process is gone: the others end with a sentence, even where they wait for it inside the GPU's driver."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer

from src.callbacks.stop_signal import Interrupted

PATIENCE = 5.0  # seconds in which the training thread may end the run in order
WRITING = 60.0  # seconds that a checkpoint may still be written after them
FOR_EVER = timedelta(days=3650)


class LostRank(Callback):
    """A thread that hears at once when the process of another rank ends, by their connection that breaks.

    Every rank listens to the next one, in a ring, for a word that is sent when the work is done. Where the training
    thread hears of the loss as well, since an exchange of its own fails, it has some seconds to end the run in order.
    But where it waits for the GPU, which waits for a process that is gone, it waits for ever.

    Args:
        say: tells the user that another rank is gone, and what to do.
        writing: says whether a checkpoint is being written, which shall come to its end.
        patience: seconds that the training thread may take.
    """

    def __init__(
        self, say: Callable[[], None], writing: Callable[[], bool] = lambda: False, patience: float = PATIENCE
    ) -> None:
        self.say = say
        self.writing = writing
        self.patience = patience
        self._group: Any = None
        self._left = threading.Event()
        self._thread: threading.Thread | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Begin to listen; every rank comes here."""
        if trainer.world_size == 1:
            return
        self._left.clear()
        if self._group is None:  # made once: while it is made, a rank that goes keeps the others waiting
            self._group = dist.new_group(backend="gloo", timeout=FOR_EVER)
        self._thread = threading.Thread(target=self._listen, args=(self._group,), name="lost rank", daemon=True)
        self._thread.start()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Tell the rank before that the work is done, and wait for the next one: its word, or its end.

        A thread that still listens when Python ends would take the process down with a signal.
        """
        self._leave()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Tell it too where all ranks stop, each in its own time: Lightning calls no teardown then."""
        if isinstance(exception, Interrupted | KeyboardInterrupt | SystemExit):
            self._leave(self.patience)

    def _leave(self, seconds: float | None = None) -> None:
        if self._thread is None:
            return
        self._left.set()
        with contextlib.suppress(RuntimeError):  # it has gone already
            dist.send(torch.ones(1), (dist.get_rank() - 1) % dist.get_world_size(), self._group)
        self._thread.join(seconds)
        self._thread = None

    def _listen(self, group: Any) -> None:
        try:
            dist.recv(torch.zeros(1), (dist.get_rank() + 1) % dist.get_world_size(), group)
        except RuntimeError:
            if self._left.wait(self.patience):
                return
            deadline = time.monotonic() + WRITING
            while self.writing() and time.monotonic() < deadline:
                time.sleep(0.1)
            self.say()
            os._exit(1)
