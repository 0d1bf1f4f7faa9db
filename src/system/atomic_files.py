"""Files that are whole or not there: the one way this project replaces a file."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO


@contextlib.contextmanager
def written_whole(path: Path, before: Callable[[], None] | None = None) -> Iterator[BinaryIO]:
    """Write a file that appears under its name only when it is whole and on the disk.

    A reader, a crash or a full disk sees the old content or the new, never a part; a failed write leaves no draft.

    Args:
        path: the file; its folder must exist.
        before: called when the new content is whole and on the disk, just before it takes the name.

    Raises:
        OSError: the folder cannot be written, or the disk is full.
    """
    draft = path.with_name(f".{path.name}.{os.getpid()}.draft")
    try:
        with draft.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if before is not None:
            before()
        draft.replace(path)
        _sync_folder(path.parent)
    finally:
        with contextlib.suppress(OSError):
            draft.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    """Put the new name on the disk too, so that it outlives a power cut; some file systems cannot and need not."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
