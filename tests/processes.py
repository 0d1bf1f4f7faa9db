"""Processes of tests: two that exchange over gloo, and whether one is still there."""

import multiprocessing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

RANKS = 2


def in_two_processes(work: Callable[[int], Any], folder: Path) -> list[Any]:
    """Give what ``work(rank)``, a function of a module, returns in each process, by rank; they meet in ``folder``."""
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    workers = [context.Process(target=_begin, args=(work, rank, folder / "store", queue)) for rank in range(RANKS)]
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


def _begin(work: Callable[[int], Any], rank: int, store: Path, queue: Any) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=RANKS)
    queue.put((rank, work(rank)))
    dist.destroy_process_group()
