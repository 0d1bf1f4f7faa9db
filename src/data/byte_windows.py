"""Windows of a memory-mapped file of bytes, for training and for evaluation."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from src.data.sampler import IntArray, epoch_offset
from src.errors import UserError

ByteArray = npt.NDArray[np.uint8]
Beginnings = Callable[[IntArray, int], Tensor]
"""From where windows begin in a file, and their width, to where each byte's document does: ``Documents.first``."""


class Bytes(NamedTuple):
    """A batch of byte sequences, zero-padded at the end.

    Attributes:
        x: the bytes, uint8 (B, n).
        length: how many positions of each row count, int64 (B,); positions from ``length`` on are not scored.
        documents: the position at which the document of each position begins, int32 (B, n); None: a row is one text.
    """

    x: Tensor
    length: Tensor
    documents: Tensor | None = None


class ByteStore:
    """A read-only range of a file as uint8, memory-mapped on first use in each process.

    Args:
        path: the file.
        start: first byte of the range.
        stop: one past its last byte.
        beginnings: of the documents of the file; None: it is one text.
    """

    def __init__(self, path: Path, start: int, stop: int, beginnings: Beginnings | None = None) -> None:
        self.path = path
        self.start = start
        self.stop = stop
        self.beginnings = beginnings

    def __len__(self) -> int:
        return self.stop - self.start

    def __getstate__(self) -> dict[str, Any]:
        # A pickled memory map is a copy of its bytes; worker processes shall map the file themselves.
        return {key: value for key, value in self.__dict__.items() if key not in ("_map", "_file")}

    @cached_property
    def _file(self) -> BinaryIO:
        return self.path.open("rb")

    @cached_property
    def _map(self) -> ByteArray:
        return np.memmap(self._file, dtype=np.uint8, mode="r", offset=self.start, shape=(len(self),))

    def read(self, starts: IntArray, width: int) -> ByteArray:
        """Copy the windows that begin at ``starts``, int64 (B,): uint8 (B, width), zeros beyond the range.

        Raises:
            UserError: the file is shorter than it was. To read a map beyond the end of its file ends the process.
        """
        size = os.fstat(self._file.fileno()).st_size
        if size < self.stop:
            raise UserError(f"{self.path} must stay as it is while it is read, found {size:,} of {self.stop:,} bytes")
        windows = np.zeros((len(starts), width), dtype=np.uint8)
        for window, start in zip(windows, starts, strict=True):
            found = self._map[start : start + width]
            window[: len(found)] = found
        return windows

    def documents(self, starts: IntArray, width: int) -> Tensor | None:
        """Give where in its window the document of each byte begins, int32 (B, width); None: the file is one text.

        Arguments as those of ``read``. A document that begins before a window begins at 0 there.
        """
        return None if self.beginnings is None else self.beginnings(starts + self.start, width)


class TrainWindows:
    """Whole windows of ``context`` bytes, all shifted by one seeded offset an epoch.

    The shift makes every byte see every position of the context over the epochs. The number of windows is
    what fits under any offset, so it is the same in all epochs.

    Args:
        store: the training split.
        context: bytes of a window.
        seed: seed of the offsets.

    Raises:
        UserError: no window fits.
    """

    def __init__(self, store: ByteStore, context: int, seed: int) -> None:
        if len(store) < 2 * context - 1:
            raise UserError(
                f"data.context must be at most {(len(store) + 1) // 2:,} for the {len(store):,} training "
                f"bytes of {store.path}, found {context:,}"
            )
        self.store = store
        self.context = context
        self.seed = seed

    def __len__(self) -> int:
        return (len(self.store) - (self.context - 1)) // self.context

    @property
    def nbytes(self) -> int:
        """Bytes of the split."""
        return len(self.store)

    def batch(self, epochs: IntArray, indices: IntArray) -> Bytes:
        """Read the windows ``indices`` of ``epochs``, int64 (B,) each."""
        offsets = {epoch: epoch_offset(self.context, self.seed, int(epoch)) for epoch in np.unique(epochs)}
        starts = indices * self.context + np.array([offsets[epoch] for epoch in epochs], dtype=np.int64)
        x = torch.from_numpy(self.store.read(starts, self.context))
        return Bytes(x, torch.full((len(x),), self.context), self.store.documents(starts, self.context))


class EvalWindows:
    """Consecutive windows that cover a whole split, each byte exactly once; the last one may be short.

    Args:
        store: the split.
        context: bytes of a window.
    """

    def __init__(self, store: ByteStore, context: int) -> None:
        self.store = store
        self.context = context

    def __len__(self) -> int:
        return (len(self.store) + self.context - 1) // self.context

    @property
    def nbytes(self) -> int:
        """Bytes of the split."""
        return len(self.store)

    def batch(self, indices: IntArray) -> Bytes:
        """Read the windows ``indices``, int64 (B,)."""
        starts = indices * self.context
        x = torch.from_numpy(self.store.read(starts, self.context))
        length = torch.from_numpy(np.minimum(self.context, len(self.store) - starts))
        return Bytes(x, length, self.store.documents(starts, self.context))


def split_90_5_5(size: int) -> tuple[int, int, int]:
    """Split a number of bytes as the paper splits enwik8 (section 7.2): 90% train, 5% validation, 5% test."""
    train, val = size * 90 // 100, size * 5 // 100
    return train, val, size - train - val
