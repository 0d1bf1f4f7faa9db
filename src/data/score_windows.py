"""Overlapping windows that score every byte of a split once, with at least so much context (the paper's table 3)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Sampler

from src.data.byte_windows import ByteStore
from src.data.sampler import EMPTY, IntArray
from src.errors import UserError


class Scored(NamedTuple):
    """A batch of byte sequences, zero-padded at the end, of which a middle part is scored.

    Attributes:
        x: the bytes, uint8 (B, n).
        first: first scored position of each row, int64 (B,); those before it are context alone.
        length: one past the last scored position of each row, int64 (B,).
        documents: as in ``Bytes``.
    """

    x: Tensor
    first: Tensor
    length: Tensor
    documents: Tensor | None = None


class ScoreWindows:
    """Windows of ``context`` bytes, each beginning ``context - min_context`` bytes after the one before.

    The first is scored whole, every other one from position ``min_context`` on, so that each byte counts once and all
    but the first ``context`` bytes have at least ``min_context`` bytes before them. The last window may be short.
    With ``min_context`` 0 the windows do not overlap.

    Args:
        store: the split.
        context: bytes of a window.
        min_context: least bytes of context, from 0 to ``context - 1``.

    Raises:
        UserError: a ``min_context`` that leaves nothing to score.
    """

    def __init__(self, store: ByteStore, context: int, min_context: int) -> None:
        if not 0 <= min_context < context:
            raise UserError(
                f"eval.min_context must be at least 0 and below data.context ({context:,}), found {min_context:,}"
            )
        self.store = store
        self.context = context
        self.min_context = min_context

    def __len__(self) -> int:
        rest = len(self.store) - self.context
        step = self.context - self.min_context
        return min(1, len(self.store)) if rest <= 0 else 1 + (rest + step - 1) // step

    @property
    def nbytes(self) -> int:
        """Bytes of the split."""
        return len(self.store)

    def batch(self, indices: IntArray) -> Scored:
        """Read the windows ``indices``, int64 (B,)."""
        starts = indices * (self.context - self.min_context)
        x = torch.from_numpy(self.store.read(starts, self.context))
        first = torch.from_numpy(np.where(indices == 0, 0, self.min_context).astype(np.int64))
        length = torch.from_numpy(np.minimum(self.context, len(self.store) - starts))
        return Scored(x, first, length, self.store.documents(starts, self.context))


class ScoreBatchSampler(Sampler[list[int]]):
    """Deals the batches that a single device would make out to the devices in turn.

    No batch depends on the number of devices, so neither does the score of any byte. All devices have the same number
    of batches; one that gets nothing of the last round yields ``[EMPTY]``.

    Args:
        size: number of windows.
        batch_size: most windows of a batch.
        rank: this device, from 0.
        world: number of devices.
    """

    def __init__(self, size: int, batch_size: int, rank: int = 0, world: int = 1) -> None:
        self.size = size
        self.batch_size = batch_size
        self.rank = rank
        self.world = world

    def __len__(self) -> int:
        together = self.batch_size * self.world
        return (self.size + together - 1) // together

    def __iter__(self) -> Iterator[list[int]]:
        for turn in range(len(self)):
            start = (turn * self.world + self.rank) * self.batch_size
            yield list(range(start, min(start + self.batch_size, self.size))) or [EMPTY]
