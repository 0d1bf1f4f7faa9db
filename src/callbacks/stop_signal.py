"""Ctrl-C, SIGTERM, a closed terminal: finish the step, save, say how to go on. SIGUSR2: save, and go on training."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer

from src.system.signals import leave_terminal, stops
from src.training.lightning_internals import leave_sigterm_to_us


class Interrupted(Exception):
    """Training stopped on a signal after its state was saved; ``signum`` is the signal."""

    def __init__(self, signum: int) -> None:
        super().__init__(signal.Signals(signum).name)
        self.signum = signum


class StopSignal(Callback):
    """Turns the first SIGINT, SIGTERM or SIGHUP into a request that others see in ``requested``.

    A second one ends the process at once, as it would have without this callback; but not within ``SAME`` seconds, for
    a wrapper that forwards signals and a process group that gets them make two of one, and never of SIGHUP, which a
    closed terminal sends more than once. Of several ranks each may hear the signal in another step; they agree after
    every batch, so that all stop after the same one. The agreement goes from processor to processor and does not wait
    for a GPU. Other callbacks put ``questions`` of their own to all ranks.
    """

    SAVE = signal.SIGUSR2
    SAME = 1.0

    def __init__(self) -> None:
        self.requested: int | None = None
        self.save_asked = False
        """Whether SIGUSR2 asked this process for a checkpoint; who takes it sets this back."""
        self.questions: dict[str, Callable[[Trainer], bool]] = {}
        """Asked on every rank after every batch; ``answers`` says under the same name whether any rank said yes."""
        self.answers: dict[str, bool] = {}
        self._heard: int | None = None
        self._heard_at = 0.0
        self._before: dict[int, Any] = {}
        self._group: Any = None

    def signals(self) -> list[int]:
        """Give the signals that are taken over."""
        return stops()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the signals over, after Lightning has set its own handlers."""
        for signum in self.signals():
            self._before[signum] = signal.signal(signum, self._request)
        self._before[self.SAVE] = signal.signal(self.SAVE, self._ask_to_save)
        if trainer.world_size > 1:
            self._group = dist.new_group(backend="gloo")
            leave_sigterm_to_us(trainer)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Agree with the other ranks whether to stop, and on the questions."""
        asked = [bool(question(trainer)) for question in self.questions.values()]
        self.answers = dict(zip(self.questions, map(bool, self._agree(asked)), strict=True))

    def on_validation_batch_end(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        """Agree with the other ranks; all have the same number of batches."""
        self._agree([])

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Give the signals back, where Lightning has not done it: it sets what was before its own handlers."""
        self._group = None
        while self._before:
            signum, before = self._before.popitem()
            if signal.getsignal(signum) in (self._request, self._ask_to_save):
                signal.signal(signum, before)

    def _agree(self, asked: list[bool]) -> list[bool]:
        if self._group is None:
            return asked
        votes = torch.tensor([self._heard or 0, *asked])
        dist.all_reduce(votes, dist.ReduceOp.MAX, group=self._group)
        heard, *answers = votes.tolist()
        self.requested = heard or None
        return answers

    def _ask_to_save(self, signum: int, frame: FrameType | None) -> None:
        self.save_asked = True

    def _request(self, signum: int, frame: FrameType | None) -> None:
        leave_terminal()
        if self._heard is not None:
            if signum == signal.SIGHUP or time.monotonic() - self._heard_at < self.SAME:
                return
            signal.signal(signum, signal.SIG_DFL)
            signal.raise_signal(signum)
        self._heard, self._heard_at = signum, time.monotonic()
        if self._group is None:
            self.requested = signum
        if not dist.is_initialized() or dist.get_rank() == 0:
            print("\nstopping after this step and saving; once more stops at once, without saving", flush=True)
