"""Where the documents of a text begin: behind every separator, or where a file of offsets says (``data.documents``).

Windows of a text are cut without regard to its documents, so a sequence may hold many, the first and the last of them
in part. What a model is told of them is one number a position: where in the sequence its document begins. A document
that began before the window counts from the window's beginning.
"""

from __future__ import annotations

import contextlib
import mmap
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from src.data.byte_windows import ByteStore
from src.data.files import digest
from src.data.sampler import IntArray
from src.errors import UserError

BoolArray = npt.NDArray[np.bool_]


class Documents(ABC):
    """The beginnings of the documents of one file."""

    @abstractmethod
    def begins(self, starts: IntArray, width: int) -> BoolArray:
        """Say which bytes of windows begin a document.

        Args:
            starts: int64 (B,), the first byte of each window, counted from the beginning of the file.
            width: bytes of a window; what lies behind the end of the file is of no account.

        Returns:
            (B, width).
        """

    def first(self, starts: IntArray, width: int) -> Tensor:
        """Give the position in its window at which the document of each byte begins: int32 (B, width), 0 or more.

        Arguments as those of ``begins``. It never falls along a window, so it names the documents as well.
        """
        position = np.arange(width, dtype=np.int32)
        return torch.from_numpy(np.maximum.accumulate(np.where(self.begins(starts, width), position, 0), axis=1))


class Separated(Documents):
    """A document begins behind every place where the separator stands; places may overlap.

    So whether a byte begins a document depends on the bytes just before it alone: nothing is read in advance or kept.
    The separator is the end of the document before it.

    Args:
        path: the file.
        size: its bytes.
        separator: at least one byte.
    """

    def __init__(self, path: Path, size: int, separator: bytes) -> None:
        self.store = ByteStore(path, 0, size)
        self.separator = np.frombuffer(separator, dtype=np.uint8)

    def begins(self, starts: IntArray, width: int) -> BoolArray:  # noqa: D102
        length = len(self.separator)
        before = self.store.read(np.maximum(starts - length, 0), width + length)
        for row, missing in enumerate(np.maximum(length - starts, 0)):  # windows near the beginning of the file
            before[row] = np.roll(before[row], missing)
        found = np.arange(width) + starts[:, None] >= length
        for place, byte in enumerate(self.separator):
            found &= before[:, place : place + width] == byte
        return found


class Listed(Documents):
    """Documents begin at given bytes of the file.

    Args:
        offsets: int64 (D,), ascending.
    """

    def __init__(self, offsets: IntArray) -> None:
        self.offsets = offsets

    def begins(self, starts: IntArray, width: int) -> BoolArray:  # noqa: D102
        found = np.zeros((len(starts), width), dtype=np.bool_)
        bounds = np.searchsorted(self.offsets, np.stack([starts, starts + width]))
        for row, (start, low, high) in enumerate(zip(starts, *bounds, strict=True)):
            found[row, self.offsets[low:high] - start] = True
        return found


@dataclass(frozen=True)
class DocumentBounds:
    """How documents are told apart; at most one of both.

    Args:
        separator: bytes that end a document (``data.documents``).
        offsets: a file of the documents' first bytes (``data.document_offsets``).
    """

    separator: bytes | None = None
    offsets: Path | None = None

    def of(self, path: Path, size: int) -> Documents | None:
        """Find the documents of a file of ``size`` bytes; None where it is one text.

        Raises:
            UserError: the separator is nowhere in the file, or the offsets are not those of such a file.
        """
        if self.separator is not None:
            if not _contains(path, self.separator):
                raise UserError(
                    f"data.documents must stand somewhere in {path}, found {self.separator!r} nowhere; a file of the "
                    "documents' first bytes is data.document_offsets=FILE"
                )
            return Separated(path, size, self.separator)
        return None if self.offsets is None else Listed(read_offsets(self.offsets, size))

    def facts(self) -> dict[str, str]:
        """Give what identifies the documents in a report."""
        if self.separator is not None:
            return {"documents": f"end with {self.separator!r}"}
        if self.offsets is None:
            return {}
        return {"documents": f"begin where {self.offsets} says", "offsets_sha256": digest(self.offsets, "sha256")}


ONE_TEXT = DocumentBounds()


def read_offsets(path: Path, size: int) -> IntArray:
    """Read the first bytes of documents, counted from 0, ascending: a .npy of whole numbers, or text between blanks.

    Args:
        path: the file.
        size: bytes of the text.

    Returns:
        int64 (D,), at least one.

    Raises:
        UserError: there is no such file, or it holds something else.
    """
    if not path.is_file():
        found = "a folder" if path.is_dir() else "none there" if not path.exists() else "no plain file"
        raise UserError(f"data.document_offsets must be an existing file, found {found}: {path}")
    try:
        offsets = _array(path) if path.suffix == ".npy" else _numbers(path.read_bytes())
    except OSError as error:
        raise UserError(f"data.document_offsets cannot be read ({error.strerror or error}): {path}") from error
    except (ValueError, EOFError, MemoryError) as error:
        found = (str(error).splitlines() or ["nothing"])[0]
        raise UserError(
            "data.document_offsets must be a .npy file of whole numbers, or a text of them between blanks or lines, "
            f"found {found}: {path}"
        ) from error
    if offsets.ndim != 1 or offsets.dtype.kind not in "iu" or not len(offsets):
        found = f"{offsets.dtype} {offsets.shape}"
        raise UserError(f"data.document_offsets must hold a row of whole numbers, found {found}: {path}")
    if (falls := np.flatnonzero(offsets[1:] <= offsets[:-1])).size:
        place = int(falls[0])
        raise UserError(
            f"data.document_offsets must ascend, found {offsets[place]:,} before {offsets[place + 1]:,}: {path}"
        )
    if offsets[0] < 0 or offsets[-1] >= size:
        wrong = int(offsets[0] if offsets[0] < 0 else offsets[-1])
        raise UserError(
            f"data.document_offsets must be at least 0 and below the {size:,} bytes of the text, found {wrong:,}: "
            f"{path}"
        )
    return offsets.astype(np.int64)


def _array(path: Path) -> npt.NDArray[np.integer]:
    with path.open("rb") as file:  # not np.load: it opens archives as well
        found: npt.NDArray[np.integer] = np.lib.format.read_array(file, allow_pickle=False)
    return found


def _numbers(text: bytes) -> IntArray:
    words = text.split()
    for word in words:
        if not word.removeprefix(b"-").isdigit():
            raise ValueError(repr(word[:20].decode(errors="replace")))
    try:
        return np.array(words, dtype=np.int64)
    except OverflowError as error:
        raise ValueError("a number of more than 64 bits") from error


def _contains(path: Path, separator: bytes) -> bool:
    """Say whether bytes stand somewhere in a file, which is read as far as that takes."""
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(path.open("rb"))
        whole = stack.enter_context(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        return whole.find(separator) >= 0
