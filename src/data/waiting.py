"""What a process waits for while it waits for a batch: noted by the loaders, read by whoever watches them."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

STATES = {"R": "running", "S": "asleep", "D": "waiting for a disk", "T": "stopped", "Z": "dead"}


@dataclass(frozen=True)
class Wait:
    """A wait for a batch: of which loader, from when on (``time.monotonic``), and PyTorch's iterator over it if any."""

    loader: str
    since: float
    batches: Any = None

    def whom(self) -> str:
        """Say which process the batch should come from, and what that process does."""
        workers = workers_of(self.batches)
        if not workers:
            return "this process reads it itself (data.workers=0)"
        number = _awaited(self.batches)
        processes = list(enumerate(workers)) if number is None else [(number, workers[number])]
        told = ", ".join(f"{i} (process {worker.pid}, {_state(worker.pid)})" for i, worker in processes)
        return f"it should come from worker {told} of data.workers={len(workers)}"

    def end_workers(self) -> None:
        """End the loader's processes, also those that do not listen."""
        workers = workers_of(self.batches)
        if workers:
            self.batches._shutdown_workers()
        for worker in workers:
            worker.kill()


class Waits:
    """The wait of one process; there is at most one at a time."""

    def __init__(self) -> None:
        self.now: Wait | None = None

    @contextlib.contextmanager
    def noted(self, loader: str, batches: Any = None) -> Iterator[None]:
        """Note that a batch of ``loader`` is waited for inside."""
        self.now = Wait(loader, time.monotonic(), batches)
        try:
            yield
        finally:
            self.now = None


def workers_of(batches: Any) -> list[Any]:
    """Give the processes that read for PyTorch's iterator; none where this process reads itself."""
    return list(getattr(batches, "_workers", ()))


def _awaited(batches: Any) -> int | None:
    """Number of the worker whose batch is next; PyTorch keeps it to itself, so do without where it is not there."""
    with contextlib.suppress(AttributeError, KeyError, IndexError, TypeError):
        return int(batches._task_info[batches._rcvd_idx][0])
    return None


def _state(pid: int) -> str:
    try:
        letter = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "gone"
    return STATES.get(letter, letter)
