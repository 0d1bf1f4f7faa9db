"""Writing checkpoints while training goes on: a copy in CPU memory, and a thread that takes it to the disk.

Training waits for the copy alone, and on a GPU not even for that: the copies are queued behind the step before and in
front of the next one, and the thread waits for them. Whatever needs all ranks is done before, by the caller.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from src.checkpoint import file


@dataclass(frozen=True)
class Failure:
    """A checkpoint that could not be written: its step, the files that are missing, and why."""

    step: int
    paths: tuple[Path, ...]
    reason: str


class Snapshots:
    """Copies nested containers of tensors into CPU memory that is used again for the next copy.

    A tensor of a GPU goes to pinned memory without waiting: call what ``take`` gives beside the copy before reading it.
    Memory for a model and its optimizer state is held from the first copy on.
    """

    def __init__(self) -> None:
        self._buffers: dict[int, Tensor] = {}

    def take(self, content: Mapping[str, Any]) -> tuple[dict[str, Any], Callable[[], None]]:
        """Copy; the second of the pair returns once the copy is complete. The copy before becomes invalid."""
        taken: dict[tuple[Any, ...], Tensor] = {}
        devices: set[torch.device] = set()

        def copied(item: Any) -> Any:
            if isinstance(item, Tensor):
                key = (item.device, item.data_ptr(), item.dtype, tuple(item.shape), item.stride())
                if item.numel() == 0:
                    return item.detach().cpu().clone()
                if key not in taken:  # weights that two names share are copied once
                    taken[key] = self._copy(len(taken), item.detach())
                    devices.add(item.device)
                return taken[key]
            if isinstance(item, Mapping):
                return {name: copied(value) for name, value in item.items()}
            if type(item) in (list, tuple):
                return type(item)(copied(value) for value in item)
            return copy.deepcopy(item)

        snapshot = {name: copied(value) for name, value in content.items()}
        events = [_recorded(device) for device in devices if device.type == "cuda"]

        def complete() -> None:
            for event in events:
                event.synchronize()

        return snapshot, complete

    def _copy(self, number: int, item: Tensor) -> Tensor:
        buffer = self._buffers.get(number)
        if buffer is None or buffer.shape != item.shape or buffer.dtype != item.dtype:
            buffer = self._buffers[number] = _empty(item)
        return buffer.copy_(item, non_blocking=buffer.is_pinned())


class BackgroundWriter:
    """Writes checkpoints one at a time on a thread of its own.

    Args:
        keep: files of one name to keep, see ``file.write``.
    """

    def __init__(self, keep: int) -> None:
        self.keep = keep
        self._snapshots = Snapshots()
        # no daemon: where the interpreter ends in the middle of a file, it ends after it
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        # started now: a thread that is started once memory is short may leave its starter waiting for ever
        self._work_in_hand: Future[Any] = self._thread.submit(int)
        self._failure: Failure | None = None
        self._fault: BaseException | None = None

    @property
    def busy(self) -> bool:
        """Whether a checkpoint is being written."""
        return not self._work_in_hand.done()

    def write(self, checkpoint: Mapping[str, Any], paths: Sequence[Path]) -> None:
        """Copy ``checkpoint`` and begin to write it to ``paths``, one after the other; waits for the one before.

        Where a file cannot be written, neither are those behind it. Take the failure before the next call.
        """
        self.wait()
        snapshot, complete = self._snapshots.take(checkpoint)
        self._work_in_hand = self._thread.submit(self._work, snapshot, complete, tuple(paths))

    def wait(self) -> None:
        """Return once nothing is being written."""
        wait([self._work_in_hand])

    def failure(self) -> Failure | None:
        """Give, once, what could not be written; None if all is well or still under way.

        Raises:
            Exception: a fault in the writer itself, anything but a disk that does not take the file.
        """
        if self.busy:
            return None
        failure, self._failure = self._failure, None
        fault, self._fault = self._fault, None
        if fault is not None:
            raise fault
        return failure

    def _work(self, snapshot: dict[str, Any], complete: Callable[[], None], paths: tuple[Path, ...]) -> None:
        done = 0
        try:
            complete()
            for path in paths:
                file.write(snapshot, path, self.keep)
                done += 1
        except OSError as error:
            self._failure = Failure(int(snapshot["global_step"]), paths[done:], error.strerror or str(error))
        except BaseException as fault:
            self._fault = fault


def _empty(item: Tensor) -> Tensor:
    """Make CPU memory for a copy, pinned for a GPU's tensor where the machine has that much."""
    if item.device.type == "cuda":
        try:
            return torch.empty(item.shape, dtype=item.dtype, pin_memory=True)
        except RuntimeError:
            pass
    return torch.empty(item.shape, dtype=item.dtype)


def _recorded(device: torch.device) -> torch.cuda.Event:
    event = torch.cuda.Event(blocking=True)
    event.record(torch.cuda.current_stream(device))
    return event
