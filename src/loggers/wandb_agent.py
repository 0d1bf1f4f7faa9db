"""A run that an agent of one of wandb's own sweeps has started (``wandb agent``).

The agent puts the ids of its sweep and run into the environment. wandb takes them, the sweep's project and the sweep's
values, whatever we ask for. Here is what such a run does otherwise than one that a user has started.
"""

from __future__ import annotations

import functools
import logging
import os
import signal
import sys
import threading
import time
from typing import Any

from src.errors import UserError
from src.processes.ranks import ASKED, STOPPED, place
from src.runs.run import Run

SWEEP = "WANDB_SWEEP_ID"
OLD = 60.0  # seconds; what the server wants by then it wanted before this process began
log = logging.getLogger(__name__)


def of_agent() -> bool:
    """Say whether an agent has started this process."""
    return bool(os.environ.get(SWEEP))


def check_one_run(kind: str) -> None:
    """Refuse a sweep of ours within a run of an agent: its jobs would all be that one run.

    Args:
        kind: ``logger.kind`` of a job.

    Raises:
        UserError: it is wandb, and an agent has started this process.
    """
    if kind == "wandb" and of_agent():
        raise UserError(
            f"-m must be left out where an agent of wandb waits for one run, found {SWEEP}={os.environ[SWEEP]}: "
            f"unset {SWEEP} for a sweep without the agent"
        )


def settings(resumed: bool) -> dict[str, Any]:
    """Give wandb's settings for a stop that its server wants, by which wandb sends SIGINT (since wandb has such ones).

    In a run of an agent nothing is sent: the agent sends SIGTERM, some seconds before or after. A second signal ends
    without saving.

    Args:
        resumed: another process was this wandb run before. The server may still want that one stopped.
    """
    import wandb

    if "stop_fn" not in wandb.Settings.model_fields or not (resumed or of_agent()):
        return {}
    return {"stop_fn": _leave_to_agent if of_agent() else functools.partial(_stop_unless_old, time.monotonic())}


def keep(run: Run, experiment: Any) -> None:
    """Keep what wandb took instead of ours, so that a resumed run is that wandb run: its id, and the sweep's project.

    Args:
        run: whose files keep it.
        experiment: wandb's run, begun.
    """
    run.keep_wandb_id(experiment.id)
    if not of_agent():
        return
    config = run.config()
    before = config.logger.project, config.logger.entity
    config.logger.project = experiment.project or config.logger.project
    config.logger.entity = experiment.entity or config.logger.entity
    if before != (config.logger.project, config.logger.entity):
        run.write_config(config)


def add_hidden(config: dict[str, Any], experiment: Any) -> None:
    """Send the keys of groups that a sweep chooses, such as ``attention``, once more as ``run/attention``.

    Under the group's own name wandb keeps the sweep's choice, which the sweep's charts and search go by.
    """
    if not of_agent():
        return
    groups = {name: keys for name, keys in config.items() if isinstance(keys, dict)}
    hidden = {name for name in groups if not isinstance(experiment.config.get(name), dict)}
    if hidden:
        experiment.config.update({f"run/{name}": groups[name] for name in hidden})


def end_for_agent(code: int) -> None:
    """End by the signal that asked for it, where an agent waits: it gives up after some exit codes other than 0."""
    if not of_agent() or code not in ASKED or place().launcher != "none":
        return
    if (wandb := sys.modules.get("wandb")) is not None:
        wandb.teardown()
    sys.stdout.flush()
    sys.stderr.flush()
    signal.signal(code - STOPPED, signal.SIG_DFL)
    signal.raise_signal(code - STOPPED)


def _leave_to_agent() -> None:
    """Stop nothing."""


def _stop_unless_old(began: float) -> None:
    """Stop this process, started at ``began``, as wandb does; it asks once."""
    if time.monotonic() - began < OLD:
        log.warning("wandb's server still wants this run stopped, as before it was resumed: it goes on")
    else:
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
