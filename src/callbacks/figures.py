"""Figures against the optimizer step: to the loggers, the screen and the log."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.profilers import Profiler

from src.training.flops import RunFlops
from src.training.language_model import LanguageModel
from src.training.precision import LossScaling
from src.training.step_guard import StepGuard

STATUS = Path("/proc/self/status")  # where Linux says what memory a process took
log = logging.getLogger(__name__)


class LoaderClock(Profiler):
    """Adds up the seconds that Lightning's training loop waits for the next batch; Lightning calls it by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.waited = 0.0
        self._began = 0.0

    def start(self, action_name: str) -> None:
        """Note when the loop asks for a batch."""
        if action_name.endswith("train_dataloader_next"):
            self._began = time.perf_counter()

    def stop(self, action_name: str) -> None:
        """Note when it has one."""
        if action_name.endswith("train_dataloader_next"):
            self.waited += time.perf_counter() - self._began

    def summary(self) -> str:
        """Nothing to print at the end."""
        return ""


class Figures(Callback):
    """Logs loss, learning rate, speed and memory every so many steps, and each validation.

    All are logged against our own step, the number of optimizer steps done. Nothing is read from the device between two
    log entries; an entry waits for the device once, so that wall-clock time over the steps since the last is theirs.
    Time spent in validation and samples is left out, checkpoints are not. ``train/seconds`` is that time over all
    starts of a run: a checkpoint holds what its steps took, and the resumed run counts on from there.

    Args:
        every: optimizer steps between two log entries.
        step_bytes: bytes that one optimizer step trains on, over all devices.
        label: what the figures were measured on; logged beside every validation.
        partial: whether that is only a part of an official data set.
        flops: arithmetic of the optimizer steps over all devices; None: no utilisation is logged.
        peak_flops: FLOP/s that all devices could reach together; None where unknown, and no utilisation is logged.
    """

    def __init__(
        self,
        every: int,
        step_bytes: int,
        label: str,
        partial: bool,
        flops: RunFlops | None = None,
        peak_flops: float | None = None,
    ) -> None:
        self.every = every
        self.step_bytes = step_bytes
        self.label = label
        self.partial = partial
        self.flops = flops
        self.peak_flops = peak_flops
        self.latest: dict[str, float] = {}
        """The figures of the last entry and the last validation, plain numbers, for the screen."""
        self.loader = LoaderClock()
        self.seconds = 0.0
        """Seconds of training of this process, up to the last time the clock was read."""
        self.seconds_before = 0.0
        """The same of earlier processes of this run, for the steps that this one goes on from."""
        self.steps = 0
        self._first: tuple[int, float, float] | None = None
        self._logged = (0, 0.0, 0.0)
        self._mark = 0.0
        self._step = -1

    def whole(self) -> dict[str, float]:
        """Speed over what this process trained, from its first log entry on: before, kernels are compiled.

        Where it ended before a second entry, over everything. Empty where it trained no step.
        """
        steps, seconds, waited = self._first if self._first and self._first[0] < self.steps else (0, 0.0, 0.0)
        spent = self.seconds - seconds
        if not (spent and self.steps > steps):
            return {}
        figures = {
            **self._speed(self.steps - steps, spent),
            "train/data_wait": (self.loader.waited - waited) / spent,
        }
        memory = ("train/peak_memory_gib", "train/peak_rss_gib")
        return figures | {name: self.latest[name] for name in memory if name in self.latest}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clocks."""
        trainer.profiler = self.loader  # type: ignore[attr-defined]
        if trainer.strategy.root_device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(trainer.strategy.root_device)
        self._step = trainer.global_step
        self._mark = time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log after every so many steps."""
        step = trainer.global_step
        if step == self._step:
            return
        self._step = step
        self.steps += 1
        if step % self.every == 0:
            self._log_training(trainer, step)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop the clock."""
        self._settle(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the validation, and start the clock again: the time since the last step was not training."""
        figure = float(trainer.callback_metrics["val/bits_per_byte"])
        self.latest["val/bits_per_byte"] = figure
        log.info(
            "step %d of %d: val/bits_per_byte %.4f (%s)",
            trainer.global_step,
            trainer.max_steps,
            figure,
            self.label,
        )
        row = {"val/bits_per_byte": figure, "data/partial": float(self.partial), **self._spent(trainer.global_step)}
        self._send(trainer, row, trainer.global_step)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Start the clock after a validation and whatever followed it."""
        if self._mark == 0.0:
            self._mark = time.perf_counter()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Count the steps since the last log entry."""
        self._settle(trainer)

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run counts on from; the clock may be running."""
        return {"seconds": self.whole_seconds()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take it back."""
        self.seconds_before = float(state_dict["seconds"])

    def whole_seconds(self) -> float:
        """Seconds of training so far, over all starts of the run."""
        running = time.perf_counter() - self._mark if self._mark else 0.0
        return self.seconds_before + self.seconds + running

    def _spent(self, step: int) -> dict[str, float]:
        """What the steps so far took; the clock stands, or has just been read."""
        return {
            "train/bytes_seen": float(step * self.step_bytes),
            "train/seconds": round(self.seconds_before + self.seconds, 3),
        }

    def _settle(self, trainer: Trainer) -> None:
        """Wait for the device and add the time since the mark; the clock stands until the next batch."""
        if self._mark:
            if trainer.strategy.root_device.type == "cuda":
                torch.cuda.synchronize(trainer.strategy.root_device)
            self.seconds += time.perf_counter() - self._mark
            self._mark = 0.0

    def _log_training(self, trainer: Trainer, step: int) -> None:
        assert isinstance(trainer.lightning_module, LanguageModel)
        bits = float(trainer.strategy.reduce(trainer.lightning_module.step_bits_per_byte(), reduce_op="mean"))
        self._settle(trainer)
        self._mark = time.perf_counter()
        steps, seconds, waited = self._logged
        self._logged = (self.steps, self.seconds, self.loader.waited)
        self._first = self._first or self._logged
        spent = max(self.seconds - seconds, 1e-9)
        figures = {
            "train/bits_per_byte": bits,
            "train/learning_rate": trainer.optimizers[0].param_groups[0]["lr"],
            **self._spent(step),
            **_guard_figures(trainer.lightning_module.guard),
            "train/data_wait": min(1.0, (self.loader.waited - waited) / spent),
            **self._speed(self.steps - steps, spent),
            **_device_figures(trainer),
        }
        self.latest.update(figures)
        self._send(trainer, figures, step)

    def _speed(self, steps: int, seconds: float) -> dict[str, float]:
        """Speed over the last ``steps`` of the run, which took so many seconds."""
        steps_per_second = steps / seconds
        figures = {
            "train/tokens_per_second": steps_per_second * self.step_bytes,
            "train/step_ms": 1000 / steps_per_second,
        }
        if self.flops is not None and self.peak_flops is not None:
            kept, dense_equivalent = self.flops.mean(self._step - steps, self._step)
            figures["train/mfu"] = kept * steps_per_second / self.peak_flops
            figures["train/mfu_dense_equivalent"] = dense_equivalent * steps_per_second / self.peak_flops
            if self.flops.full.muon:
                figures["train/mfu_muon"] = self.flops.full.muon * steps_per_second / self.peak_flops
        return figures

    @staticmethod
    def _send(trainer: Trainer, figures: Mapping[str, float], step: int) -> None:
        for logger in trainer.loggers:
            logger.log_metrics(dict(figures), step=step)


def _guard_figures(guard: StepGuard) -> dict[str, float]:
    """Norm of the last step's gradients before clipping, and the steps that changed nothing, not being finite."""
    if guard.norm is None or guard.counts is None:
        return {}
    return {"train/gradient_norm": float(guard.norm), "train/skipped_steps": float(guard.counts[guard.SKIPPED])}


def _device_figures(trainer: Trainer) -> dict[str, float]:
    """Peak memory in GiB of the fullest GPU or of this process, and the loss scale; the device has been waited for."""
    figures: dict[str, float] = {}
    device = trainer.strategy.root_device
    if device.type == "cuda":
        peak = torch.tensor(torch.cuda.max_memory_allocated(device) / 2**30, device=device)
        figures["train/peak_memory_gib"] = float(trainer.strategy.reduce(peak, reduce_op="max"))
    elif (peak_rss := _peak_rss_gib()) is not None:
        figures["train/peak_rss_gib"] = peak_rss
    if isinstance(scaling := trainer.precision_plugin, LossScaling):
        figures["train/loss_scale"] = scaling.loss_scale()
    return figures


def _peak_rss_gib() -> float | None:
    """Most memory that this process took so far; None where the system does not say."""
    try:
        lines = STATUS.read_text().splitlines()
    except OSError:
        return None
    peak = next((line.split()[1] for line in lines if line.startswith("VmHWM:")), None)  # in KiB
    return None if peak is None else int(peak) / 2**20
