"""Unpacking one file from a .zip, .gz or .xz archive: in bounded memory, verified before it gets its name."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import lzma
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, cast

from src.data.files import CHUNK, written_whole
from src.errors import UserError
from src.system.progress_bars import byte_progress

SUFFIXES = (".zip", ".gz", ".xz")
"""The kinds of archive."""

_DAMAGE = (
    zipfile.BadZipFile,
    gzip.BadGzipFile,
    lzma.LZMAError,
    zlib.error,
    EOFError,
    NotImplementedError,
    RuntimeError,
)  # the last two: zip methods that Python lacks, and passwords

Judge = Callable[[int, str, bytes], None]
"""Takes the size, md5 and first bytes of an unpacked file and raises UserError if it is a wrong one."""


def unpack(archive: Path, target: Path, most: int, judge: Judge) -> str:
    """Unpack the one file in ``archive`` to ``target``, with a progress bar, and give its md5.

    Args:
        archive: a file that ends in one of ``SUFFIXES``.
        target: the raw file; it appears only when it is whole and judged right.
        most: bytes after which unpacking stops, since the file is too long.
        judge: refuses a wrong file.

    Raises:
        UserError: the archive is damaged or holds not exactly one file, or the file is judged wrong.
    """
    md5 = hashlib.md5(usedforsecurity=False)
    size, beginning = 0, b""
    packed_size = archive.stat().st_size
    with written_whole(target) as raw, byte_progress(packed_size) as progress:
        task = progress.add_task(f"unpacking {archive.name}", total=packed_size)
        for chunk, packed_bytes in _chunks(archive):
            raw.write(chunk)
            md5.update(chunk)
            beginning = beginning or chunk[:4096]
            size += len(chunk)
            progress.update(task, completed=packed_bytes)
            if size > most:
                break
        judge(size, md5.hexdigest(), beginning)
    return md5.hexdigest()


def _chunks(archive: Path) -> Iterator[tuple[bytes, int]]:
    """Give the content piece by piece, each with how far the archive has been read."""
    try:
        with archive.open("rb") as packed, _opened(archive, packed) as content:
            while chunk := content.read(CHUNK):
                yield chunk, packed.tell()
    except _DAMAGE as error:
        raise UserError(f"{archive} cannot be unpacked ({error}): it is damaged or cut short; remove it") from error
    except PermissionError as error:
        raise UserError(f"{archive} cannot be read ({error.strerror})") from error


@contextlib.contextmanager
def _opened(archive: Path, packed: IO[bytes]) -> Iterator[IO[bytes]]:
    if archive.suffix == ".zip":
        with zipfile.ZipFile(packed) as members:
            names = [item.filename for item in members.infolist() if not item.is_dir()]
            if len(names) != 1:
                raise UserError(f"{archive} must hold exactly one file, found {len(names)}")
            with members.open(names[0]) as content:
                yield content
    elif archive.suffix == ".gz":
        with gzip.GzipFile(fileobj=packed) as content:
            yield cast(IO[bytes], content)
    else:
        with lzma.LZMAFile(packed) as content:
            yield content
