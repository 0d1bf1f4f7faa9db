"""Which sequence is trained when: a pure function of (seed, step).

Training sequences carry a global number ``g = step * batch_size + b``. Number ``g`` belongs to epoch ``g //
N`` and is that epoch's permutation at ``g % N``, so a batch may straddle two epochs. Devices, workers and
micro-batches only decide who reads number ``g``, never what it is; a resumed run starts at its step and
sees what the unbroken run saw.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from torch.utils.data import Sampler

from src.errors import UserError

IntArray = npt.NDArray[np.int64]

EMPTY = -1
"""Stands for no sequence in an evaluation batch: it becomes a row of zeros with length 0."""

_PERMUTATION, _OFFSET = 0, 1  # purposes of the random words, so that no two purposes share a stream


def _random_words(purpose: int, seed: int, epoch: int, count: int) -> npt.NDArray[np.uint64]:
    # NumPy keeps seeds and raw words the same in all its versions, unlike what its Generators make of them.
    return np.random.PCG64(np.random.SeedSequence((purpose, seed, epoch))).random_raw(count)


def permutation(size: int, seed: int, epoch: int) -> IntArray:
    """Give the order of ``size`` sequences in one epoch: int64 (size,), each of 0 to ``size - 1`` once."""
    return np.argsort(_random_words(_PERMUTATION, seed, epoch, size), kind="stable")


def epoch_offset(below: int, seed: int, epoch: int) -> int:
    """Give the epoch's random shift of all its windows, in bytes: from 0 to ``below - 1``."""
    return int(_random_words(_OFFSET, seed, epoch, 1)[0] % np.uint64(below))


class TrainOrder:
    """Turns global sequence numbers into epochs and indices.

    Args:
        size: number of training sequences N, at least 1.
        seed: seed of the order, at least 0.
    """

    def __init__(self, size: int, seed: int) -> None:
        self.size = size
        self.seed = seed

    def __call__(self, numbers: IntArray) -> tuple[IntArray, IntArray]:
        """Look up sequence numbers, int64 (B,): their epochs and their indices below N, int64 (B,) each."""
        epochs, places = np.divmod(numbers, self.size)
        indices = np.empty_like(places)
        for epoch in np.unique(epochs):
            chosen = epochs == epoch
            indices[chosen] = _cached_permutation(self.size, self.seed, int(epoch))[places[chosen]]
        return epochs, indices


# Two: a batch may straddle two epochs. Each worker process keeps its own.
_cached_permutation = lru_cache(maxsize=2)(permutation)


def micro_batch_size(batch_size: int, world: int = 1, micro_batch: int | None = None) -> int:
    """Check how a global batch is split, and give the sequences of one forward pass on one device.

    Args:
        batch_size: sequences of one optimizer step over all devices.
        world: number of devices.
        micro_batch: sequences of one forward pass on one device; None takes the device's whole share.

    Raises:
        UserError: the batch does not split evenly.
    """
    if batch_size < 1 or batch_size % world:
        raise UserError(f"data.batch_size must be a multiple of the {world} device(s), found {batch_size}")
    share = batch_size // world
    size = share if micro_batch is None else micro_batch
    if size < 1 or share % size:
        raise UserError(
            f"data.micro_batch must divide the sequences of a device ({share} = data.batch_size "
            f"{batch_size} / {world} device(s)), found {size}"
        )
    return size


class TrainBatchSampler(Sampler[list[int]]):
    """Yields the global numbers of one device's micro-batches, step by step.

    Within a step, device ``rank`` takes the contiguous share ``rank * B / R`` to ``(rank + 1) * B / R``. The
    length counts from step 0 although iteration begins at ``start_step``: Lightning counts batches from the
    epoch's start.

    Args:
        batch_size: sequences of one step over all devices (B).
        micro_batch: sequences of one forward pass on one device; None for the device's whole share.
        rank: this device, from 0.
        world: number of devices (R).
        start_step: first step to yield.
        stop_step: one past the last step.

    Raises:
        UserError: the batch does not split evenly.
    """

    def __init__(
        self,
        batch_size: int,
        *,
        micro_batch: int | None = None,
        rank: int = 0,
        world: int = 1,
        start_step: int = 0,
        stop_step: int = 1,
    ) -> None:
        self.micro_batch = micro_batch_size(batch_size, world, micro_batch)
        self.batch_size = batch_size
        self.share = batch_size // world
        self.rank = rank
        self.start_step = start_step
        self.stop_step = stop_step

    def __len__(self) -> int:
        return self.stop_step * (self.share // self.micro_batch)

    def __iter__(self) -> Iterator[list[int]]:
        for step in range(self.start_step, self.stop_step):
            first = step * self.batch_size + self.rank * self.share
            for start in range(first, first + self.share, self.micro_batch):
                yield list(range(start, start + self.micro_batch))


class EvalBatchSampler(Sampler[list[int]]):
    """Yields one device's share of every sequence of a split, each exactly once over all devices.

    The batches come in rounds, one batch a device, and the devices take equal shares of a round. All devices
    have the same number of batches, as collective operations need; one that gets nothing of the last round
    yields ``[EMPTY]``.

    Args:
        size: number of sequences.
        batch_size: most sequences of one batch on one device.
        rank: this device, from 0.
        world: number of devices.
    """

    def __init__(self, size: int, batch_size: int, rank: int = 0, world: int = 1) -> None:
        self.size = size
        self.round = batch_size * world
        self.rank = rank
        self.world = world

    def __len__(self) -> int:
        return (self.size + self.round - 1) // self.round

    def __iter__(self) -> Iterator[list[int]]:
        for start in range(0, self.size, self.round):
            stop = min(start + self.round, self.size)
            share = (stop - start + self.world - 1) // self.world
            first = start + self.rank * share
            yield list(range(first, min(first + share, stop))) or [EMPTY]
