"""What a process waits for while it waits for a batch: noted by the loaders, read by whoever watches them."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch.utils.data import DataLoader, Dataset

from src.data.byte_windows import Bytes

STATES = {"R": "running", "S": "asleep", "D": "waiting for a disk", "T": "stopped", "Z": "dead"}


@dataclass(frozen=True)
class Wait:
    """A wait for a batch: of which loader, from when on (``time.monotonic``), and PyTorch's iterator over it if any."""

    loader: str
    since: float
    batches: Any = None

    def whom(self) -> str:
        """Say which process the batch should come from, and what that process does."""
        workers = getattr(self.batches, "_workers", None)
        if not workers:
            return "this process reads it itself (data.workers=0)"
        number = _awaited(self.batches)
        processes = list(enumerate(workers)) if number is None else [(number, workers[number])]
        told = ", ".join(f"{i} (process {worker.pid}, {_state(worker.pid)})" for i, worker in processes)
        return f"it should come from worker {told} of data.workers={len(workers)}"

    def end_workers(self) -> None:
        """End the loader's processes, also those that do not listen."""
        workers = list(getattr(self.batches, "_workers", ()))
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


class WatchedLoader(DataLoader[Bytes]):
    """A loader that notes when it is waited for.

    It resumes by its step, so it keeps no state; saying so spares Lightning its warning.
    """

    def __init__(self, name: str, waits: Waits, dataset: Dataset[Bytes], **options: Any) -> None:
        super().__init__(dataset, **options)
        self.name = name
        self.waits = waits

    def __iter__(self) -> Iterator[Bytes]:  # type: ignore[override]
        with self.waits.noted(self.name):
            batches = super().__iter__()
        while True:
            with self.waits.noted(self.name, batches):
                batch = next(batches, None)
            if batch is None:
                return
            yield batch

    def state_dict(self) -> dict[str, Any]:  # noqa: D102
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:  # noqa: D102
        pass


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
