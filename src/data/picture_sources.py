"""The two releases of ImageNet 64x64 as numbered pictures that many processes can read at once."""

from __future__ import annotations

import itertools
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple, cast

import numpy as np
import numpy.typing as npt

from src.data.png import BadPictureError, decode_png
from src.errors import UserError

SIDE = 64
WIDTH = 3 * SIDE * SIDE
ByteArray = npt.NDArray[np.uint8]


class Portion(NamedTuple):
    """Pictures of a split from ``start`` on: uint8 rows (B, 12288), and number, name and reason of each bad one."""

    start: int
    rows: ByteArray
    bad: list[tuple[int, str, str]]


@dataclass(frozen=True)
class PngTask:
    """Consecutive members of a tar archive, from picture ``start`` on: (name, offset, bytes) of each."""

    archive: Path
    start: int
    members: list[tuple[str, int, int]]

    def read(self) -> Iterator[Portion]:
        """Decode the members; a bad one leaves a row of zeros and its reason."""
        rows = np.zeros((len(self.members), WIDTH), np.uint8)
        bad: list[tuple[int, str, str]] = []
        with self.archive.open("rb") as file:
            for number, (name, offset, size) in enumerate(self.members):
                file.seek(offset)
                try:
                    rows[number] = decode_png(file.read(size), SIDE)
                except BadPictureError as error:
                    bad.append((self.start + number, name, str(error)))
        yield Portion(self.start, rows, bad)


@dataclass(frozen=True)
class NpzTask:
    """The rows of one npz batch, from picture ``start`` on: ``chunk`` at a time, without those in ``done``."""

    archive: Path
    start: int
    chunk: int
    done: frozenset[int]

    def read(self) -> Iterator[Portion]:
        """Stream the rows, each turned from channel by channel to the model's byte order."""
        try:
            with zipfile.ZipFile(self.archive) as members, members.open("data.npy") as data:
                count = npz_header(cast(BinaryIO, data), self.archive)
                for first in range(0, count, self.chunk):
                    size = min(self.chunk, count - first)
                    raw = data.read(size * WIDTH)
                    if len(raw) != size * WIDTH or (first + size == count and data.read(1)):
                        raise UserError(f"{self.archive}: 'data' does not have the bytes of its shape")
                    if self.start + first not in self.done:
                        planes = np.frombuffer(raw, np.uint8).reshape(size, 3, SIDE * SIDE)
                        rows = np.ascontiguousarray(planes.transpose(0, 2, 1)).reshape(size, WIDTH)
                        yield Portion(self.start + first, rows, [])
        except (zipfile.BadZipFile, zlib.error, EOFError, KeyError, OSError, ValueError) as error:
            raise UserError(f"{self.archive} cannot be read ({error}): it is damaged or cut short") from error


def npz_header(data: BinaryIO, archive: Path) -> int:
    """Read the header of ``data.npy`` and give its number of pictures; nothing is unpickled.

    Raises:
        UserError: it is not uint8 (pictures, 12288) in C order.
    """
    version = np.lib.format.read_magic(data)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read(data)
    if dtype != np.uint8 or len(shape) != 2 or shape[1] != WIDTH or fortran:
        raise UserError(f"{archive}: 'data' must be uint8 (pictures, {WIDTH}), found {dtype} {shape}")
    return int(shape[0])


def npz_count(archive: Path) -> int:
    """Give the number of pictures in an npz batch."""
    try:
        with zipfile.ZipFile(archive) as members, members.open("data.npy") as data:
            return npz_header(cast(BinaryIO, data), archive)
    except (zipfile.BadZipFile, zlib.error, EOFError, KeyError, OSError, ValueError) as error:
        raise UserError(f"{archive} cannot be read ({error}): it is damaged or no npz batch") from error


def png_index(archive: Path) -> list[tuple[str, int, int]]:
    """List a tar archive's files as (name, offset, bytes), sorted by name; nothing is unpacked.

    Raises:
        UserError: it is damaged or cut short, holds a link, or a name twice.
    """
    found: list[tuple[str, int, int]] = []
    size, end = archive.stat().st_size, 0
    try:
        with tarfile.open(archive, "r:") as members:
            while (member := members.next()) is not None:
                members.members = []  # type: ignore[attr-defined]  # else it keeps a kilobyte for every picture
                end = member.offset_data + (member.size + 511) // 512 * 512 if member.isreg() else member.offset_data
                if member.isdir():
                    continue
                if not member.isreg() or member.issparse():
                    raise UserError(f"{archive}: {member.name} must be a plain file, found a link or special file")
                if member.offset_data + member.size > size:
                    raise UserError(f"{archive} is cut short inside {member.name}: get it again")
                found.append((member.name, member.offset_data, member.size))
    except (tarfile.TarError, EOFError, OSError) as error:
        raise UserError(f"{archive} cannot be read ({error}): it is damaged, cut short or no tar archive") from error
    with archive.open("rb") as file:
        file.seek(end)
        if file.read(512) != bytes(512):
            raise UserError(f"{archive} lacks the mark of its end: it is cut short or damaged; get it again")
    found.sort()
    for (name, *_), (following, *_) in itertools.pairwise(found):
        if name == following:
            raise UserError(f"{archive} holds {name} twice")
    return found
