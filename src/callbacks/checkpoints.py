"""Checkpoints from which a run goes on exactly where it was: the best by validation, and the last."""

from __future__ import annotations

import logging
import math
import time
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, EarlyStopping

from src.callbacks.stop_signal import Interrupted, StopSignal
from src.checkpoint.background import BackgroundWriter, Failure
from src.checkpoint.file import METRICS_ROWS, METRICS_WAITING
from src.checkpoint.shelf import sealed_step
from src.errors import UserError
from src.loggers.lookup import metrics_files
from src.training.lightning_internals import validate_out_of_turn, whole_checkpoint

log = logging.getLogger(__name__)


class Checkpoints(Checkpoint):
    """Saves ``best.ckpt``, and ``last.ckpt`` every so often, around validations, on signals and at the end.

    Files are written by another thread while training goes on; only the state at a stop signal and at the end is waited
    for. A regular save that is due while the one before is still being written is made as soon as that one is done. A
    disk that does not take a checkpoint does not end training: the last good file stays, and the next one tries again.

    A checkpoint taken when a validation was due but not done says so, and the resumed run validates first: it logs,
    keeps as best and stops early exactly as the unbroken run would. The last step is always validated.

    Args:
        folder: where the files go.
        every: optimizer steps between two saves of ``last.ckpt``; None: by time alone.
        minutes: most minutes between two saves; None: by steps alone.
        keep: newest files to keep of ``last`` and of ``best``.
        stop: where signals are seen, and where ranks agree.
        about: what each checkpoint says of itself, such as the resolved configuration and versions; plain values.
    """

    MONITOR = "val/bits_per_byte"

    def __init__(
        self, folder: Path, every: int | None, minutes: float | None, keep: int, stop: StopSignal, about: dict[str, Any]
    ) -> None:
        self.folder = folder
        self.every = every
        self.minutes = minutes
        self.stop = stop
        self.about = about
        self.writer = BackgroundWriter(keep)
        self.best: float | None = None
        self.best_step = -1
        self.validated_step = -1
        self.seconds = 0.0
        """Time that training stood still for checkpoints in this process."""
        self._best_before: tuple[float | None, int] = (None, -1)
        self._step = -1
        self._saved_step = -1
        self._saved_time = 0.0
        stop.questions["save"] = self._wanted

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Make up for a validation that the checkpoint still owed; an early stop stays one."""
        self._step = self._saved_step = trainer.global_step
        self._saved_time = time.monotonic()
        if trainer.global_step > 0 and self._validation_due(trainer):
            validate_out_of_turn(trainer)
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
        self._hear_of_failures()
        if step == trainer.max_steps:
            # saved after its validation alone: Lightning does nothing more for a run that is at its last step
            if step % self._interval(trainer) != 0:
                validate_out_of_turn(trainer)
        elif self.stop.requested is not None:
            self._save(trainer, "last")
            self._finish_writing()
            raise Interrupted(self.stop.requested)
        elif self.stop.answers.get("save"):
            self._save(trainer, "last")

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save before a validation, which may take long."""
        step = trainer.global_step
        if step < trainer.max_steps and step != self._saved_step:
            self._save(trainer, "last")

    def on_validation_batch_end(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        """Leave a validation on a stop signal; the state saved before it still owes it."""
        if self.stop.requested is not None:
            self._finish_writing()
            raise Interrupted(self.stop.requested)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the best model, and the state after this validation."""
        self.validated_step = trainer.global_step
        self._finish_writing()
        figure = float(trainer.callback_metrics[self.MONITOR])
        # asked of the first rank: it alone knows which best model is on the disk
        improved = trainer.strategy.broadcast(self.best is None or figure < self.best or math.isnan(self.best))
        if improved:
            self._best_before = (self.best, self.best_step)
            self.best, self.best_step = figure, trainer.global_step
            self._save(trainer, "best", "last")
        else:
            self._save(trainer, "last")

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Wait for the state at the end.

        Raises:
            UserError: the disk did not take it, or some figures.
        """
        failure = self._finish_writing()
        problems = [f"in {self.folder} ({failure.reason})"] if failure is not None else []
        problems += [f"in {file.file} ({file.problem})" for file in metrics_files(trainer) if file.waiting]
        if problems:
            raise UserError(
                f"the end of the run could not be saved {problems[0]}: make room, then go on "
                f"with python -m src.train resume={self.folder.parent}"
            )

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Let a checkpoint that is being written come to its end."""
        self._finish_writing()

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs of this callback."""
        return {"best": self.best, "best_step": self.best_step, "validated_step": self.validated_step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take it back."""
        self.best = state_dict["best"]
        self.best_step = state_dict["best_step"]
        self.validated_step = state_dict["validated_step"]

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Store configuration and versions, so that a checkpoint serves by itself, and how long metrics.csv is."""
        checkpoint.update(self.about)
        # Lightning counts the last step behind the hook that saves it, a save at the end of training comes later
        checkpoint["loops"]["fit_loop"]["epoch_loop.state_dict"]["_batches_that_stepped"] = checkpoint["global_step"]
        for logger in metrics_files(trainer):
            checkpoint |= {METRICS_ROWS: logger.count, METRICS_WAITING: logger.waiting}

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Count Lightning's batches in today's micro-batches: the split of a step may have changed since."""
        done = checkpoint["global_step"] * trainer.accumulate_grad_batches
        loop = checkpoint["loops"]["fit_loop"]
        for counts in (loop["epoch_loop.batch_progress"][name] for name in ("total", "current")):
            counts.update(dict.fromkeys(("ready", "started", "processed", "completed"), done))

    def _wanted(self, trainer: Trainer) -> bool:
        """Say whether a regular save is due and could begin at once; the first rank's clock and disk decide."""
        if not trainer.is_global_zero or self.writer.busy:
            return False
        step = trainer.global_step
        by_steps = self.every is not None and step // self.every > self._saved_step // self.every
        by_time = self.minutes is not None and time.monotonic() - self._saved_time >= 60 * self.minutes
        return by_steps or by_time or self.stop.save_asked

    def _save(self, trainer: Trainer, *names: str) -> None:
        """Collect the state, on all ranks, and let the first one begin to write it."""
        self._finish_writing()  # before the state is collected: a best model that is not on the disk is not in it
        began = time.monotonic()
        for logger in trainer.loggers:
            logger.save()
        checkpoint = whole_checkpoint(trainer)
        if trainer.is_global_zero:
            self.writer.write(checkpoint, [self.folder / f"{name}.ckpt" for name in names])
        self._saved_step = trainer.global_step
        self._saved_time = time.monotonic()
        self.seconds += self._saved_time - began
        if self.stop.save_asked:
            self.stop.save_asked = False
            log.info("saved at step %d, as asked", trainer.global_step)

    def _finish_writing(self) -> Failure | None:
        began = time.monotonic()
        self.writer.wait()
        self.seconds += time.monotonic() - began
        return self._hear_of_failures()

    def _hear_of_failures(self) -> Failure | None:
        """Say what could not be written; a best model that is not on the disk does not count as one."""
        failure = self.writer.failure()
        if failure is None:
            return None
        if any(path.stem == "best" for path in failure.paths):
            self.best, self.best_step = self._best_before
        last = sealed_step(self.folder / "last.ckpt")
        log.error(
            "the checkpoint of step %d could not be written to %s (%s); %s",
            failure.step,
            " and ".join(map(str, failure.paths)),
            failure.reason,
            "there is none before it" if last is None else f"the one of step {last} stays",
        )
        return failure

    def _validation_due(self, trainer: Trainer) -> bool:
        step = trainer.global_step
        return step % self._interval(trainer) == 0 and self.validated_step != step

    def _interval(self, trainer: Trainer) -> int:
        return int(trainer.val_check_interval) // trainer.accumulate_grad_batches
