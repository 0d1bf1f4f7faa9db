"""What is private in Lightning and used here, all of it but the logger's (seen with Lightning 2.6.0 to 2.6.6).

Lightning has no public way to save, to validate out of turn or to see its gradient scaler; each function says why it is
wanted.
"""

from __future__ import annotations

from typing import Any

import torch
from lightning.fabric.utilities.types import _PATH as CheckpointPath  # noqa: N811
from lightning.pytorch import Trainer
from torch import Tensor

__all__ = [
    "CheckpointPath", "gradient_scale", "leave_sigterm_to_us", "plain_optimizer", "validate_out_of_turn",
    "whole_checkpoint",
]  # fmt: skip


def plain_optimizer(optimizer: Any) -> torch.optim.Optimizer:
    """Take the optimizer out of what Lightning wraps around it: the state dict wants the one that it knows."""
    found: torch.optim.Optimizer = getattr(optimizer, "_optimizer", optimizer)
    return found


def gradient_scale(trainer: Trainer) -> Tensor | None:
    """Give the loss scale of fp16 on the device, unread, since reading it would wait; None without one."""
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    return None if scaler is None else scaler._scale


def leave_sigterm_to_us(trainer: Trainer) -> None:
    """Keep Lightning from reading a flag from the GPU at every batch: ``StopSignal`` agrees on a stop by the CPU."""
    trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None  # type: ignore[method-assign]


def whole_checkpoint(trainer: Trainer) -> dict[str, Any]:
    """Collect all state, on all ranks, without writing it: files are ours, written beside training."""
    return trainer._checkpoint_connector.dump_checkpoint(weights_only=False)


def validate_out_of_turn(trainer: Trainer) -> None:
    """Validate as Lightning's training loop does it in turn, for its own turn comes after the checkpoint."""
    loop = trainer.fit_loop.epoch_loop.val_loop
    loop.restarting = False
    first_iteration = trainer._logger_connector._first_loop_iter
    trainer.validating = True
    loop.run()
    trainer.training = True
    trainer._logger_connector._first_loop_iter = first_iteration
