"""What the picture data sets share: the order of a picture's bytes, and rows of a memory-mapped file (section 7).

A picture is one sequence: row by row, pixel by pixel, red, green and blue of a pixel side by side. A split is a
range of a .npy file, uint8 (pictures, 3 * side * side), that is mapped into memory and never read as a whole.
"""

from __future__ import annotations

import mmap
from abc import abstractmethod
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from src.data.base import ByteDataModule
from src.data.byte_windows import ByteArray, Bytes
from src.data.portions import Portions
from src.data.sampler import IntArray
from src.errors import UserError

CHANNELS = 3


def picture_bytes(side: int) -> int:
    """Give the bytes of a square picture, ``side`` pixels wide: the length of its sequence."""
    return CHANNELS * side * side


def interleaved(planes: ByteArray, side: int) -> ByteArray:
    """Turn pictures stored channel by channel into the model's byte order.

    Args:
        planes: uint8 (B, 3 * side * side), all red bytes of a picture, then all green, then all blue.
        side: pixels of a row.

    Returns:
        uint8 (B, 3 * side * side), contiguous: row, column, channel.
    """
    pictures = planes.reshape(-1, CHANNELS, side * side).transpose(0, 2, 1)
    return np.ascontiguousarray(pictures).reshape(len(planes), picture_bytes(side))


class PictureStore:
    """A range of the pictures of a .npy file, memory-mapped on first use in each process.

    Args:
        path: the file, uint8 (pictures, width).
        start: first picture of the range.
        stop: one past its last picture.
        width: bytes of a picture.
    """

    def __init__(self, path: Path, start: int, stop: int, width: int) -> None:
        self.path = path
        self.start = start
        self.stop = stop
        self.width = width

    def __len__(self) -> int:
        return self.stop - self.start

    @property
    def nbytes(self) -> int:
        """Bytes of the range."""
        return len(self) * self.width

    def __getstate__(self) -> dict[str, Any]:
        # A pickled memory map is a copy of its bytes; worker processes shall map the file themselves.
        return {key: value for key, value in self.__dict__.items() if key != "_map"}

    @cached_property
    def _map(self) -> ByteArray:
        return mapped_pictures(self.path, self.width)[self.start : self.stop]

    def read(self, indices: IntArray) -> ByteArray:
        """Copy pictures ``indices`` of the range, int64 (B,): uint8 (B, width)."""
        return self._map[indices]


def mapped_pictures(path: Path, width: int) -> ByteArray:
    """Map a .npy file of pictures, uint8 (pictures, width), read-only.

    Raises:
        UserError: it cannot be read, is cut short, or holds something else.
    """
    try:
        pictures = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{path} cannot be mapped ({reason}): it is damaged or cut short; remove it") from error
    if not isinstance(pictures, np.memmap) or pictures.dtype != np.uint8 or pictures.shape[1:] != (width,):
        found = f"{pictures.dtype} {pictures.shape}" if isinstance(pictures, np.ndarray) else "an archive"
        raise UserError(f"{path} must hold uint8 (pictures, {width:,}), found {found}; remove it")
    if isinstance(pictures.base, mmap.mmap) and hasattr(mmap, "MADV_RANDOM"):
        # Pictures are drawn at random: reading on after each of them would load ten times what is needed.
        pictures.base.madvise(mmap.MADV_RANDOM)
    return pictures


class TrainPictures:
    """Whole pictures, the same in every epoch; only their order changes.

    Args:
        store: the training split.
    """

    def __init__(self, store: PictureStore) -> None:
        self.store = store

    def __len__(self) -> int:
        return len(self.store)

    @property
    def nbytes(self) -> int:
        """Bytes of the split."""
        return self.store.nbytes

    def batch(self, epochs: IntArray, indices: IntArray) -> Bytes:
        """Read pictures ``indices``, int64 (B,); ``epochs``, int64 (B,), do not matter."""
        return _whole(self.store.read(indices))


class EvalPictures:
    """Every picture of a split, each byte scored exactly once.

    Args:
        store: the split.
    """

    def __init__(self, store: PictureStore) -> None:
        self.store = store

    def __len__(self) -> int:
        return len(self.store)

    @property
    def nbytes(self) -> int:
        """Bytes of the split."""
        return self.store.nbytes

    def batch(self, indices: IntArray) -> Bytes:
        """Read pictures ``indices``, int64 (B,)."""
        return _whole(self.store.read(indices))


def _whole(rows: ByteArray) -> Bytes:
    return Bytes(torch.from_numpy(rows), torch.full((len(rows),), rows.shape[1]))


class PictureDataModule(ByteDataModule):
    """Base of the picture data sets: a sequence is one whole picture.

    Raises:
        UserError: ``data.context`` is not the bytes of a picture.
    """

    @property
    @abstractmethod
    def side(self) -> int:
        """Pixels of a row, and rows of a picture."""

    def __init__(self, portions: Portions) -> None:
        super().__init__(portions)
        context = portions.context
        if context != picture_bytes(self.side):
            raise UserError(
                f"data.context must be {picture_bytes(self.side)}, the bytes of a picture of {self.side} x {self.side} "
                f"pixels, found {context}"
            )
