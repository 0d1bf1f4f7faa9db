"""Data sets and loaders that read a whole batch at once and keep no state of their own."""

from __future__ import annotations

import functools
import multiprocessing
import os
import signal
from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from src.data.byte_windows import Bytes
from src.data.sampler import EMPTY, IntArray, TrainOrder
from src.data.score_windows import Scored
from src.data.waiting import Waits, workers_of
from src.errors import ReaderLostError, UserError
from src.processes.ranks import end_with_parent

LAST_BREATH = 0.2  # seconds from a process's last word to its exit code


class TrainItems(Protocol):
    """The training sequences of a data set."""

    def __len__(self) -> int:
        """Sequences an epoch."""

    @property
    def nbytes(self) -> int:
        """Bytes of the split."""

    def batch(self, epochs: IntArray, indices: IntArray) -> Bytes:
        """Read sequences ``indices`` as they are in ``epochs``, int64 (B,) each."""


class EvalItems(Protocol):
    """The sequences of a validation or test split."""

    def __len__(self) -> int:
        """Sequences of the split."""

    @property
    def nbytes(self) -> int:
        """Bytes of the split."""

    def batch(self, indices: IntArray) -> Bytes | Scored:
        """Read sequences ``indices``, int64 (B,)."""


class TrainDataset(Dataset[Bytes]):
    """Training sequences by their number in the whole run."""

    def __init__(self, items: TrainItems, order: TrainOrder) -> None:
        self.items = items
        self.order = order

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, number: int) -> Bytes:
        return self.__getitems__([number])

    def __getitems__(self, numbers: list[int]) -> Bytes:
        """Read a whole micro-batch of global sequence numbers at once; PyTorch's loader prefers it."""
        return self.items.batch(*self.order(np.array(numbers, dtype=np.int64)))


class EvalDataset(Dataset[Any]):
    """Sequences of a validation or test split."""

    def __init__(self, items: EvalItems) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Bytes | Scored:
        return self.__getitems__([index])

    def __getitems__(self, indices: list[int]) -> Bytes | Scored:
        """Read a whole batch at once; ``EMPTY`` becomes a row of zeros with length 0."""
        if EMPTY in indices:
            one = self.items.batch(np.zeros(1, dtype=np.int64))
            return one._replace(x=torch.zeros_like(one.x), length=torch.zeros_like(one.length))
        return self.items.batch(np.array(indices, dtype=np.int64))


class WatchedLoader(DataLoader[Any]):
    """A loader that notes when it is waited for.

    It resumes by its step, so it keeps no state; saying so spares Lightning its warning.
    """

    def __init__(self, name: str, waits: Waits, dataset: Dataset[Any], **options: Any) -> None:
        super().__init__(dataset, **options)
        self.name = name
        self.waits = waits

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        with self.waits.noted(self.name):
            batches = super().__iter__()
        while True:
            with self.waits.noted(self.name, batches):
                batch = _next(batches)
            if batch is None:
                return
            yield batch

    def state_dict(self) -> dict[str, Any]:  # noqa: D102
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:  # noqa: D102
        pass


def _next(batches: Iterator[Any]) -> Any:
    """Give the next batch, or None at the end.

    Raises:
        UserError: what is read is at fault.
        ReaderLostError: a process that reads has ended; what PyTorch raises then depends on where it was.
    """
    try:
        return next(batches, None)
    except UserError as error:  # one of a worker comes with its traceback before it
        raise UserError(str(error).strip().splitlines()[-1].removeprefix("src.errors.UserError: ")) from error
    except (RuntimeError, OSError, EOFError) as error:
        for worker in workers_of(batches):
            worker.join(LAST_BREATH)
            if worker.exitcode:
                raise ReaderLostError(f"process {worker.pid} ended with exit code {worker.exitcode}") from error
        raise


def _begin_worker(parent: int, number: int) -> None:
    """End with the process that reads from this one, for it holds copies of its connections open, and not before.

    Ctrl-C and a closed terminal reach all processes of a command; the one that trains still reads the step to its end.
    """
    for signum in (signal.SIGINT, signal.SIGHUP):
        signal.signal(signum, signal.SIG_IGN)
    if multiprocessing.get_start_method() != "forkserver":  # else the parent is the server, and nothing is held
        end_with_parent(parent)


def _as_it_is(batch: Any) -> Any:
    return batch


def loader(
    name: str, waits: Waits, dataset: Dataset[Any], batches: Sampler[list[int]], workers: int, pin_memory: bool = False
) -> DataLoader[Any]:
    """Build a loader of the batches that a sampler names, read by ``workers`` processes.

    It notes in ``waits`` under its ``name`` when it is waited for.
    """
    return WatchedLoader(
        name,
        waits,
        dataset,
        batch_sampler=batches,
        num_workers=workers,
        collate_fn=_as_it_is,
        pin_memory=pin_memory,
        persistent_workers=workers > 0,
        worker_init_fn=functools.partial(_begin_worker, os.getpid()),
    )
