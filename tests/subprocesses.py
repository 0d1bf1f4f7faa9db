"""Processes of tests: two that exchange over gloo, those of a job, and whether one is still there."""

import multiprocessing
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from tests.warm import Started

RANKS = 2
SERVED = multiprocessing.get_context("forkserver")
"""Where processes begin with what they all import, which one process has imported for them."""
SERVED.set_forkserver_preload(["lightning.pytorch", "torch.distributed.fsdp", "src.training.language_model"])


def in_two_processes(work: Callable[[int], Any], folder: Path) -> list[Any]:
    """Give what ``work(rank)``, a function of a module, returns in each process, by rank; they meet in ``folder``."""
    queue = SERVED.Queue()
    workers = [SERVED.Process(target=_begin, args=(work, rank, folder / "store", queue)) for rank in range(RANKS)]
    for worker in workers:
        worker.start()
    found = dict(queue.get(timeout=120) for _ in workers)
    for worker in workers:
        worker.join()
    return [found[rank] for rank in range(RANKS)]


def alive(pid: int) -> bool:
    """Whether a process runs; one that has ended and waits for its parent does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def children(pid: int) -> list[int]:
    """The processes that a process has started, in that order."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def kill_second_rank(process: subprocess.Popen[str] | Started) -> None:
    """Kill rank 1 of a command on several devices."""
    os.kill(children(process.pid)[1], signal.SIGKILL)


def said_without_second_rank(process: subprocess.Popen[str] | Started) -> str:
    """Kill rank 1, see the others end soon, and give all that was said."""
    kill_second_rank(process)
    killed = time.monotonic()
    said = "".join(stream or "" for stream in process.communicate(timeout=60))
    assert time.monotonic() - killed < 20
    assert process.returncode == 137, said
    return said


def _begin(work: Callable[[int], Any], rank: int, store: Path, queue: Any) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=RANKS)
    queue.put((rank, work(rank)))
    dist.destroy_process_group()
