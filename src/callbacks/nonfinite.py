"""A loss or gradients that are not finite: said in the log, and after so many steps in a row the end of the run."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from src.errors import UserError
from src.system.atomic_files import written_whole
from src.training.language_model import LanguageModel
from src.training.step_guard import StepGuard

REMEDIES = "try a lower optimizer.learning_rate, more optimizer.warmup_steps or precision=fp32"
log = logging.getLogger(__name__)


class NonFinite(Callback):
    """Reads every so many steps what the guard of the model counted; the guard keeps such steps from the weights.

    Args:
        folder: of the run; the batch that began a row is dumped there, by each rank.
        every: optimizer steps between two looks at the device.
        steps: so many in a row end the run; None: it goes on whatever happens.
        seed: of the run, for the dump.
    """

    def __init__(self, folder: Path, every: int, steps: int | None, seed: int) -> None:
        self.folder = folder
        self.every = every
        self.steps = steps
        self.seed = seed
        self._guard: StepGuard | None = None
        self._state: dict[str, Any] | None = None
        self._told = 0
        self._step = -1

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Go on counting where the checkpoint was."""
        assert isinstance(pl_module, LanguageModel)
        self._guard, self._step = pl_module.guard, trainer.global_step
        if self._state is not None:
            self._guard.restore(self._state, trainer.strategy.root_device)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Look, after every so many steps and at the end.

        Raises:
            UserError: too many steps in a row were not finite.
        """
        step = trainer.global_step
        if step != self._step and (step % self.every == 0 or step == trainer.max_steps):
            self._look(trainer)
        self._step = step

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look at the figure; checkpoints come after, so such a model never counts as the best.

        Raises:
            UserError: it is not finite, and the run is to stop for that.
        """
        figure = float(trainer.callback_metrics["val/bits_per_byte"])
        if math.isfinite(figure):
            return
        told = f"the validation at step {trainer.global_step} gave {figure} bits per byte"
        if self.steps is not None:
            raise UserError(f"{told}, so the weights are of no use: {REMEDIES} in a new run")
        log.warning("%s", told)

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs of the guard; it stays on the device."""
        return {} if self._guard is None else self._guard.state()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep it until training starts."""
        self._state = state_dict or None

    def _look(self, trainer: Trainer) -> None:
        guard = self._guard
        if guard is None or guard.counts is None:
            return
        _, longest, skipped = guard.counts.tolist()
        if longest > self._told:
            log.warning(
                "step %d: %d optimizer steps so far had a loss or gradients that are not finite and changed nothing, "
                "%d of them in a row", trainer.global_step, skipped, longest,
            )  # fmt: skip
            self._told = longest
        if self.steps is not None and longest >= self.steps:
            raise UserError(self._sentence(longest, guard, self._dump(trainer, guard)))

    def _dump(self, trainer: Trainer, guard: StepGuard) -> Path:
        """Write what began the row, plain tensors and numbers, and give the file."""
        content = {name: value.cpu() for name, value in guard.first.items()}
        ranks = f"-rank{trainer.global_rank}" if trainer.world_size > 1 else ""
        file = self.folder / f"nonfinite-step-{int(content['step']):07d}{ranks}.pt"
        about = {"seed": self.seed, "rank": trainer.global_rank, "world_size": trainer.world_size}
        with written_whole(file) as out:
            torch.save({**content, **about}, out)
        return file

    @staticmethod
    def _sentence(row: int, guard: StepGuard, file: Path) -> str:
        loss, norm = float(guard.first["loss"]), float(guard.first["norm"])
        return (
            f"{row} optimizer steps in a row had a loss or gradients that are not finite and changed nothing, the "
            f"first with loss {loss:.4g} and gradient norm {norm:.4g}; its batch is in {file}: {REMEDIES} in a new "
            "run, or resume this one with watch.nonfinite=skip"
        )
