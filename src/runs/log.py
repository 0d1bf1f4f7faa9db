"""What a process prints and writes to its log file, and what libraries are kept from printing."""

from __future__ import annotations

import logging
import sys
import warnings
from pathlib import Path

from src.processes.ranks import first_process, place


class _Terminal(logging.Handler):
    """Prints to whatever stdout is at the time, so that lines go above a running progress bar."""

    def emit(self, record: logging.LogRecord) -> None:
        print(self.format(record), flush=True)


class _File(logging.FileHandler):
    """Appends to the run's log file; a line for which there is no room is on the terminal all the same."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        if not isinstance(sys.exc_info()[1], OSError):
            super().handleError(record)


def set_up_logging(file: Path) -> None:
    """Send what the project says to the terminal and to the run's log file; of other ranks their failures alone."""
    quiet_libraries()
    logger = logging.getLogger("src")
    terminal, to_file = _Terminal(), _File(file)
    name = "" if first_process() else f"rank {place().rank}: "
    logger.setLevel(logging.ERROR if name else logging.INFO)
    terminal.setFormatter(logging.Formatter(f"{name}%(message)s"))
    to_file.setFormatter(logging.Formatter(f"%(asctime)s %(levelname)s {name}%(message)s"))
    for handler in (terminal, to_file):
        logger.addHandler(handler)


def quiet_libraries() -> None:
    """Keep Lightning's hints off the screen; its errors stay."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    logging.getLogger("lightning.fabric").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", module="lightning.pytorch.utilities._pytree")
    warnings.filterwarnings("ignore", message="Be aware that when using `ckpt_path`.*")
    warnings.filterwarnings("ignore", message="It is recommended to use `self.log.*sync_dist")  # the metric does that
    warnings.filterwarnings("ignore", message="The `srun` command is available")  # build.cluster looks itself
