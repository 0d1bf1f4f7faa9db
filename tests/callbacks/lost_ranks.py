"""Ranks that lose another one, as a program of their own: ``python -m tests.callbacks.lost_ranks KIND RANKS``."""

from __future__ import annotations

import os
import signal
import sys
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch.distributed as dist

from src.callbacks.lost_rank import LostRank
from src.callbacks.stop_signal import Interrupted
from src.processes import ranks
from src.processes.ranks import say_lost

DRAFT = Path("last.ckpt")  # what is being written while it is there
PATIENCE = 60.0  # seconds before a rank would be ended: longer than any may take


def main(arguments: list[str]) -> int:
    """Start the ranks and watch over them, or be one of them."""
    kind, count = arguments
    if "RANK" not in os.environ:
        ranks.GRACE = PATIENCE
        return ranks.supervise(
            [sys.executable, "-m", "tests.callbacks.lost_ranks", *arguments], int(count), 1, Path("log")
        )
    rank = int(os.environ["RANK"])
    dist.init_process_group("gloo")
    watch = LostRank(partial(say_lost, Path("runs/mine")), DRAFT.exists, patience=0.2)
    trainer: Any = SimpleNamespace(world_size=dist.get_world_size())
    watch.setup(trainer, None, "fit")  # type: ignore[arg-type]
    dist.barrier()  # none is lost while another one still connects
    KINDS[kind](rank, watch, trainer)
    return 0


def _killed(rank: int, watch: LostRank, trainer: Any) -> None:
    if rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    if rank == 0:
        time.sleep(3)
        DRAFT.rename(DRAFT.with_suffix(".written"))
    time.sleep(600)  # as in a library that waits for the GPU


def _between(rank: int, watch: LostRank, trainer: Any) -> None:
    watch.teardown(trainer, None, "fit")  # type: ignore[arg-type]
    if rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    watch.setup(trainer, None, "test")  # type: ignore[arg-type]
    time.sleep(600)


def _failed(rank: int, watch: LostRank, trainer: Any) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if rank == 1:
        watch.on_exception(trainer, None, ValueError())  # type: ignore[arg-type]
        os._exit(1)
    time.sleep(600)


def _stopped(rank: int, watch: LostRank, trainer: Any) -> None:
    time.sleep(rank)
    # and so it tells the others, as at the end of all steps
    watch.on_exception(trainer, None, Interrupted(signal.SIGTERM))  # type: ignore[arg-type]
    if rank == 0:
        os._exit(0)  # the other one is still at it
    time.sleep(1)


KINDS = {"killed": _killed, "between": _between, "failed": _failed, "stopped": _stopped}

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
