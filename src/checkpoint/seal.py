"""The seal of a checkpoint: its step and SHA-256, as the comment of the zip archive that ``torch.save`` writes.

A zip archive ends with a comment of any text. The seal travels with the file wherever it is copied, every zip reader
and ``torch.load`` skip it, and ``unzip -z FILE`` shows it. The sum is that of the archive as it was before the comment.
"""

from __future__ import annotations

import hashlib
import re
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from src.errors import UserError

BLOCK = 1 << 20
NO_COMMENT = b"\0\0"  # an archive without a comment ends with the length of it
END_OF_ARCHIVE, SIGNATURE = 22, b"PK\5\6"  # the last record of a zip archive, before its comment
TEXT = "sparse-transformer checkpoint, step {step}, sha256 {digest}"
PATTERN = re.compile(rb"sparse-transformer checkpoint, step (\d{1,18}), sha256 ([0-9a-f]{64})\Z")
LONGEST = len(TEXT) + 18 + 64


class Damaged(UserError):
    """A checkpoint that cannot be used; the message says why, without the file's name."""


@dataclass(frozen=True)
class Seal:
    """What a file says of itself: the optimizer step it was taken after, and the SHA-256 of its archive."""

    step: int
    digest: str
    size: int
    """Bytes of the archive without the comment."""


class Sealing:
    """Takes an archive without a comment on its way to a file, and seals it.

    Args:
        file: open for writing, at its beginning.
    """

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.digest = hashlib.sha256()
        self.refused: OSError | None = None
        """What the disk said when it did not take the bytes; PyTorch covers it with an error of its own."""

    def write(self, part: memoryview | bytes) -> int:
        """Write the next bytes; both the sum and the disk leave other threads running."""
        self.digest.update(part)
        try:
            return self.file.write(part)
        except OSError as error:
            self.refused = error
            raise

    def flush(self) -> None:
        """As of any file."""
        self.file.flush()

    def seal(self, step: int) -> None:
        """Put the comment behind the archive, which must be complete."""
        comment = TEXT.format(step=step, digest=self.digest.hexdigest()).encode()
        self.file.seek(-len(NO_COMMENT), 2)
        self.file.write(len(comment).to_bytes(2, "little") + comment)


def read_seal(path: Path) -> Seal | None:
    """Read a file's seal, without checking it; None where there is none: an older version's file, or a damaged one.

    Raises:
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - LONGEST))
        tail = file.read()
    found = PATTERN.search(tail)
    if found is None:
        return None
    comment = len(found.group())
    if tail[-comment - 2 : -comment] != comment.to_bytes(2, "little"):
        return None
    return Seal(int(found[1]), found[2].decode(), size - comment)


def check_seal(path: Path) -> Seal | None:
    """Compare a file with its seal, and give it; a file without one is held against the sums of its archive's members.

    Raises:
        Damaged: the content is not what was written.
        OSError: the file cannot be read.
    """
    seal = read_seal(path)
    if seal is None:
        _check_members(path)
        return None
    digest = hashlib.sha256()
    left = seal.size - len(NO_COMMENT)
    with path.open("rb") as file:
        while left > 0 and (part := file.read(min(BLOCK, left))):
            digest.update(part)
            left -= len(part)
    digest.update(NO_COMMENT)
    if digest.hexdigest() != seal.digest:
        raise Damaged("its SHA-256 is not the one it was sealed with")
    return seal


def _check_members(path: Path) -> None:
    size = path.stat().st_size
    if size == 0:
        raise Damaged("it is empty")
    with path.open("rb") as file:
        file.seek(max(0, size - LONGEST - END_OF_ARCHIVE))
        tail = file.read()
    end = tail[-END_OF_ARCHIVE:]
    if SIGNATURE in tail and not (end.startswith(SIGNATURE) and end.endswith(NO_COMMENT)):
        raise Damaged("its seal is damaged")
    try:
        with zipfile.ZipFile(path) as archive:
            bad = archive.testzip()
    except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError, ValueError) as error:
        raise Damaged("it is cut off, or no checkpoint at all") from error
    if bad is not None:
        raise Damaged(f"its part {bad} is not what was written")
