"""A wandb run beside training: what is wrong is told before it begins, and nothing of wandb's ends it later.

It alone touches what is private in Lightning's WandbLogger: ``_wandb_init`` and ``_offline`` (seen with 2.6.6).
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import wandb
from lightning.pytorch.loggers import WandbLogger
from wandb.errors import AuthenticationError, CommError, Error

from src.errors import UserError
from src.loggers.wandb_login import without_login

log = logging.getLogger(__name__)
# What a server says that was reached and refuses: waiting for a better network would not help.
_REFUSALS = ("401", "403", "404", "permission", "not found", "unauthorized")
MOST_STARTS = 4  # of wandb's process for one of ours


def started(logger: WandbLogger, folder: Path) -> WandbLogger:
    """Begin a logger's wandb run; offline, with a warning, where the server does not answer.

    Args:
        logger: made, not yet used.
        folder: where the run is sent from later, by ``wandb sync``.

    Raises:
        UserError: wandb refuses the settings or the key.
    """
    logger._wandb_init.pop("anonymous", None)  # Lightning passes it on; wandb warns of it at every start
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


class RunLogger(WandbLogger):
    """Lightning's logger to wandb, but that training outlives wandb's own process, which the system may kill.

    It is started again, as for a resumed run. After ``MOST_STARTS`` starts training goes on without it.
    """

    starts = 1

    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Send figures and media of a step; all other ``log_...`` end here too."""
        self._send(lambda: super(RunLogger, self).log_metrics(metrics, step))

    def summarize(self, figures: Mapping[str, Any]) -> None:
        """Send final figures, the columns of wandb's table of runs."""
        self._send(lambda: self.experiment.summary.update(dict(figures)))

    def _send(self, what: Callable[[], None]) -> None:
        while self.starts <= MOST_STARTS:
            try:
                return what()
            except ConnectionError as error:
                self._start_again(error)

    def _start_again(self, error: ConnectionError) -> None:
        self.starts += 1
        forget()
        self._experiment = None
        again = "it is started again" if self.starts <= MOST_STARTS else "training goes on without"
        log.warning("wandb's own process is gone (%s): %s; metrics.csv has all figures", error, again)
        if self.starts <= MOST_STARTS:
            time.sleep(1)  # wandb names a start's folder by the second
            try:
                started(self, Path(str(self.save_dir)) / "wandb" / "latest-run")
            except Exception as refused:  # of many kinds, and none of them a reason to stop
                self.starts = MOST_STARTS + 1
                log.warning("wandb does not start again (%s): training goes on without", refused)


def finish(code: int) -> None:
    """End the wandb run of this process, if there is one, with the exit code: a crash is shown as a crash."""
    if wandb.run is None:
        return
    try:
        wandb.finish(exit_code=code)
    except Exception as error:  # of many kinds, of its connection and its process
        log.warning("wandb could not end its run (%s)", error)
        forget()


def forget() -> None:
    """Leave wandb's process, which may be gone: it is not waited for when this process ends."""
    with contextlib.suppress(Exception, SystemExit):
        wandb.teardown()
    wandb.run = None
