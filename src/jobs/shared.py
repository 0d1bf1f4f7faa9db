"""What jobs have in common: their data, the checks of their figures, and how they end."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

from src.config.command_line import say_error
from src.config.schema import Config
from src.data.base import ByteDataModule
from src.errors import UserError, of_the_machine
from src.jobs import build
from src.processes.ranks import first_process, lost_a_rank

SAME_MISTAKE = 2.0  # seconds in which the first rank says what is wrong and the others are ended


def prepared_data(config: Config) -> ByteDataModule:
    """Get and open the data; every process asks for them, and a lock lets the first one download and unpack."""
    data = build.data_module(config)
    data.prepare_data()
    data.setup()
    return data


def check_count(scored: int, data: ByteDataModule, split: str) -> None:
    """Make sure that a figure is over every byte of its split, each once."""
    expected = data.test_bytes if split == "test" else data.val_bytes
    if scored != expected:
        raise RuntimeError(f"{scored:,} bytes of the {split} split were scored, and it has {expected:,}: please report")


def refused(error: UserError) -> int:
    """Say what the user can mend, once for all ranks, and give the exit code."""
    if not first_process():
        time.sleep(SAME_MISTAKE)
    say_error(error)
    return 2


def failed(error: Exception, lost: Callable[[], None], unknown: Callable[[Exception], None]) -> int:
    """Say why a job failed, and give its exit code.

    Args:
        error: what ended it; what came from outside, such as a full disk, is told in one sentence.
        lost: says that another rank is gone.
        unknown: says all that is known of any other error.
    """
    if lost_a_rank(error):
        lost()
        return 1
    told = of_the_machine(error)
    if told is None:
        unknown(error)
        return 1
    say_error(told)
    return 2


def finish_wandb(code: int) -> None:
    """End the wandb run with the job's exit code, where there was one."""
    if (wandb_run := sys.modules.get("src.loggers.wandb_run")) is not None:  # importing wandb takes a second
        wandb_run.finish(code)
