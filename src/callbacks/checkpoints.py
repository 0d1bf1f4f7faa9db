"""Checkpoints from which a run goes on exactly where it was: the best by validation, and the last."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, EarlyStopping

from src.atomic import written_whole
from src.callbacks.stop_signal import Interrupted, StopSignal


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes beside the target, syncs, renames: a reader or a crash sees the old file or the new one, whole."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write ``checkpoint`` (plain tensors and containers) to ``path``."""
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        with written_whole(target) as file:
            torch.save(checkpoint, file)


class Checkpoints(Checkpoint):
    """Saves ``best.ckpt``, and ``last.ckpt`` every so many optimizer steps, after validations and on a stop signal.

    A checkpoint taken when a validation was due but not done says so, and the resumed run validates first: it logs,
    keeps as best and stops early exactly as the unbroken run would. The last step is always validated.

    Args:
        folder: where the files go.
        every: optimizer steps between two saves of ``last.ckpt``.
        stop: where a stop signal is seen.
        config: the run's resolved configuration, stored with each checkpoint.
    """

    MONITOR = "val/bits_per_byte"

    def __init__(self, folder: Path, every: int, stop: StopSignal, config: dict[str, Any]) -> None:
        self.folder = folder
        self.every = every
        self.stop = stop
        self.config = config
        self.best: float | None = None
        self.best_step = -1
        self.validated_step = -1
        self._step = -1

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Make up for a validation that the checkpoint still owed; an early stop stays one."""
        self._step = trainer.global_step
        if trainer.global_step > 0 and self._validation_due(trainer):
            self._validate(trainer)
        if any(isinstance(c, EarlyStopping) and c.wait_count >= c.patience for c in trainer.early_stopping_callbacks):
            trainer.should_stop = True

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save when it is time, or when a signal asked to stop."""
        step = trainer.global_step
        if step == self._step:
            return  # between the micro-batches of one step nothing is whole
        self._step = step
        if step == trainer.max_steps:
            # saved after its validation alone: Lightning does nothing more for a run that is at its last step
            if step % self._interval(trainer) != 0:
                self._validate(trainer)
        elif self.stop.requested is not None:
            self._save(trainer, "last")
            raise Interrupted(self.stop.requested)
        elif step % self.every == 0:
            self._save(trainer, "last")

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save before a validation, which may take long."""
        step = trainer.global_step
        if step < trainer.max_steps and step % self.every != 0:
            self._save(trainer, "last")

    def on_validation_batch_end(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        """Leave a validation on a stop signal; the state saved before it still owes it."""
        if self.stop.requested is not None:
            raise Interrupted(self.stop.requested)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the best model, and the state after this validation."""
        self.validated_step = trainer.global_step
        figure = float(trainer.callback_metrics[self.MONITOR])
        if self.best is None or figure < self.best:
            self.best, self.best_step = figure, trainer.global_step
            self._save(trainer, "best")
        self._save(trainer, "last")

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs of this callback."""
        return {"best": self.best, "best_step": self.best_step, "validated_step": self.validated_step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take it back."""
        self.best = state_dict["best"]
        self.best_step = state_dict["best_step"]
        self.validated_step = state_dict["validated_step"]

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Store the configuration, so that a checkpoint says what it is."""
        checkpoint["config"] = self.config

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Count Lightning's batches in today's micro-batches: the split of a step may have changed since."""
        done = checkpoint["global_step"] * trainer.accumulate_grad_batches
        progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
        for counts in (progress["total"], progress["current"]):
            counts.update(dict.fromkeys(("ready", "started", "processed", "completed"), done))

    def _validation_due(self, trainer: Trainer) -> bool:
        step = trainer.global_step
        return step % self._interval(trainer) == 0 and self.validated_step != step

    def _interval(self, trainer: Trainer) -> int:
        return int(trainer.val_check_interval) // trainer.accumulate_grad_batches

    def _save(self, trainer: Trainer, name: str) -> None:
        trainer.save_checkpoint(self.folder / f"{name}.ckpt")

    @staticmethod
    def _validate(trainer: Trainer) -> None:
        """Validate out of turn, as Lightning's training loop does it in turn."""
        loop = trainer.fit_loop.epoch_loop.val_loop
        loop.restarting = False
        first_iteration = trainer._logger_connector._first_loop_iter
        trainer.validating = True
        loop.run()
        trainer.training = True
        trainer._logger_connector._first_loop_iter = first_iteration
