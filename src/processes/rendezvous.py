"""``src.train`` under torchrun or srun: the first rank makes the run directory, the others learn its path."""

from __future__ import annotations

import datetime
import os
import time
from pathlib import Path
from typing import Any

from src.errors import UserError
from src.processes.ranks import Place
from src.system.atomic_files import written_whole

PATIENCE = 300.0  # seconds that a rank waits for the first one
NONE = "-"  # stands for a run that the first rank could not make; it has said why


def publish(here: Place, run: Path | None, folder: Path) -> None:
    """Tell the other ranks the path of the run directory, or that there is none.

    Args:
        here: this process, the first rank.
        run: the run directory; None if it could not be made.
        folder: ``paths.output_dir``, which all machines see.
    """
    word = NONE if run is None else str(run)
    if here.launcher == "torchrun":
        _torchrun_store().set(_torchrun_key(), word)
        return
    folder.mkdir(parents=True, exist_ok=True)
    with written_whole(_slurm_file(folder)) as file:
        file.write(word.encode())


def receive(here: Place, folder: Path) -> Path | None:
    """Wait for what the first rank publishes; None if it made no run directory.

    Raises:
        UserError: nothing came within five minutes.
    """
    word = _from_torchrun() if here.launcher == "torchrun" else _from_file(_slurm_file(folder))
    return None if word == NONE else Path(word)


def _from_torchrun() -> str:
    try:
        return bytes(_torchrun_store().get(_torchrun_key())).decode()
    except RuntimeError as error:
        raise UserError("the first rank made no run directory within 5 minutes: see its messages") from error


def _from_file(file: Path) -> str:
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        if file.is_file():
            return file.read_text()
        time.sleep(0.2)
    raise UserError(f"the first rank made no {file} within 5 minutes: paths.output_dir must be seen by every machine")


def _torchrun_store() -> Any:
    from torch.distributed import TCPStore  # late: it takes seconds, and one process alone never needs it

    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    return TCPStore(address, port, is_master=False, timeout=datetime.timedelta(seconds=PATIENCE))


def _torchrun_key() -> str:
    return f"sparse-transformer/run/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"


def _slurm_file(folder: Path) -> Path:
    parts = (os.environ.get(name, "0") for name in ("SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_RESTART_COUNT"))
    return folder / f".run-of-slurm-{'-'.join(parts)}"
