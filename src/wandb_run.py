"""Beginning a wandb run before training does: what is wrong is told at once, and no network is no reason to stop."""

from __future__ import annotations

import logging
from pathlib import Path

import wandb
from lightning.pytorch.loggers import WandbLogger
from wandb.errors import AuthenticationError, CommError, Error

from src.errors import UserError
from src.wandb_login import without_login

log = logging.getLogger(__name__)
# What a server says that was reached and refuses: waiting for a better network would not help.
_REFUSALS = ("401", "403", "404", "permission", "not found", "unauthorized")


def started(logger: WandbLogger, folder: Path) -> WandbLogger:
    """Begin a logger's wandb run; offline, with a warning, where the server does not answer.

    Args:
        logger: made, not yet used.
        folder: where the run is sent from later, by ``wandb sync``.

    Raises:
        UserError: wandb refuses the settings or the key.
    """
    try:
        _ = logger.experiment
    except (Error, ValueError) as error:
        reason = without_login(str(error).strip().splitlines()[0]) if str(error).strip() else type(error).__name__
        unreachable = isinstance(error, CommError) and not isinstance(error, AuthenticationError)
        if not unreachable or any(word in reason.lower() for word in _REFUSALS):
            raise UserError(f"wandb refuses to start ({reason}): correct it, or set WANDB_MODE=offline") from error
        log.warning("wandb does not answer (%s): logged offline; later, wandb sync %s sends it", reason, folder)
        wandb.teardown()  # its service would keep the run's id for the start that failed
        logger._offline = True
        logger._wandb_init["mode"] = "offline"
        _ = logger.experiment
    return logger
