"""Figures against the optimizer step: to the loggers, the screen and the log."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from src.models.language_model import LanguageModel

log = logging.getLogger(__name__)


class Figures(Callback):
    """Logs loss, learning rate and speed every so many steps, and each validation.

    All are logged against our own step, the number of optimizer steps done. Speed leaves validation and saving of
    samples out.

    Args:
        every: optimizer steps between two log entries.
        step_bytes: bytes that one optimizer step trains on, over all devices.
        label: what the figures were measured on; logged beside every validation.
        partial: whether that is only a part of an official data set.
    """

    def __init__(self, every: int, step_bytes: int, label: str, partial: bool) -> None:
        self.every = every
        self.step_bytes = step_bytes
        self.label = label
        self.partial = partial
        self.seconds = 0.0
        self.steps = 0
        self._mark = 0.0
        self._logged = (0, 0.0)
        self._step = -1

    @property
    def tokens_per_second(self) -> float:
        """Bytes a second over all that this process trained so far."""
        return self.steps * self.step_bytes / self.seconds if self.seconds else 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._step = trainer.global_step
        self._mark = time.monotonic()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log after every so many steps."""
        step = trainer.global_step
        if step == self._step:
            return
        self._step = step
        now = time.monotonic()
        self.seconds += now - self._mark
        self.steps += 1
        self._mark = now
        if step % self.every == 0:
            self._log_training(trainer, step)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the validation, and start the clock again: the time since the last step was not training."""
        self._mark = time.monotonic()
        figure = float(trainer.callback_metrics["val/bits_per_byte"])
        log.info(
            "step %d of %d: val/bits_per_byte %.4f (%s)",
            trainer.global_step,
            trainer.max_steps,
            figure,
            self.label,
        )
        self._send(trainer, {"val/bits_per_byte": figure, "data/partial": float(self.partial)}, trainer.global_step)

    def _log_training(self, trainer: Trainer, step: int) -> None:
        assert isinstance(trainer.lightning_module, LanguageModel)
        bits = trainer.strategy.reduce(trainer.lightning_module.step_bits_per_byte(), reduce_op="mean")
        steps, seconds = self._logged
        speed = (self.steps - steps) * self.step_bytes / max(self.seconds - seconds, 1e-9)
        self._logged = (self.steps, self.seconds)
        figures = {
            "train/bits_per_byte": float(bits),
            "train/learning_rate": trainer.optimizers[0].param_groups[0]["lr"],
            "train/tokens_per_second": speed,
            "train/bytes_seen": float(step * self.step_bytes),
        }
        self._send(trainer, figures, step)
        for name in ("train/bits_per_byte", "train/tokens_per_second"):
            trainer.lightning_module.log(name, figures[name], prog_bar=True, logger=False)

    @staticmethod
    def _send(trainer: Trainer, figures: Mapping[str, float], step: int) -> None:
        for logger in trainer.loggers:
            logger.log_metrics(dict(figures), step=step)
