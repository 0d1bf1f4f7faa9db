"""Writing and checking data files: atomically, in bounded memory, and safely beside other processes."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from src.errors import UserError
from src.system import atomic_files
from src.system.progress_bars import byte_progress

CHUNK = 1 << 20
"""Bytes read at a time."""


@contextlib.contextmanager
def written_whole(path: Path) -> Iterator[BinaryIO]:
    """Write a data file that appears under its name only when it is whole; its folder is made.

    Raises:
        UserError: the folder cannot be written, or the disk is full.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_files.written_whole(path) as file:
            yield file
    except OSError as error:
        raise UserError(f"cannot write {path} ({error.strerror or error}); choose another paths.data_dir") from error


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Let one process of this machine at a time work on the files of a folder; the others wait.

    Where the folder cannot be written or the file system knows no locks, nobody waits: every file is written
    under a name of its own and then renamed, so the lock saves work but is not what keeps files whole.
    """
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(ImportError, OSError):
            import fcntl

            folder.mkdir(parents=True, exist_ok=True)
            lock = stack.enter_context((folder / ".lock").open("w"))
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def digest(path: Path, algorithm: str) -> str:
    """Compute a file's checksum, ``md5`` or ``sha256``, in hexadecimal; large files show their progress."""
    checksum = hashlib.new(algorithm, usedforsecurity=False)
    size = path.stat().st_size
    with byte_progress(size) as progress, path.open("rb") as file:
        task = progress.add_task(f"checking {path.name}", total=size)
        while chunk := file.read(CHUNK):
            checksum.update(chunk)
            progress.advance(task, len(chunk))
    return checksum.hexdigest()


def remember_digest(path: Path, algorithm: str, found: str) -> None:
    """Write a file's checksum beside it."""
    remember(_side_file(path, algorithm), path, {algorithm: found})


def remembered_digest(path: Path, algorithm: str) -> str:
    """Give a file's checksum as it is remembered beside it, or compute and remember it."""
    known = remembered(_side_file(path, algorithm), path) or {}
    if algorithm in known:
        return known[algorithm]
    found = digest(path, algorithm)
    remember_digest(path, algorithm, found)
    return found


def remember(memory: Path, path: Path, facts: dict[str, str]) -> None:
    """Write what was found out about a file, with its size and time of change; a read-only folder is left alone.

    Args:
        memory: the JSON file to write.
        path: the file that the facts are about.
        facts: values by name.
    """
    with contextlib.suppress(UserError), written_whole(memory) as file:
        file.write(json.dumps({**_state(path), **facts}).encode())


def remembered(memory: Path, path: Path) -> dict[str, str] | None:
    """Give what ``remember`` wrote about a file; None where there is nothing, or the file has changed since."""
    with contextlib.suppress(OSError, ValueError, TypeError, AttributeError):
        known = json.loads(memory.read_text())
        state = _state(path)
        if {key: known.pop(key, None) for key in state} == state:
            return {key: str(value) for key, value in known.items()}
    return None


def _side_file(path: Path, algorithm: str) -> Path:
    return path.with_name(f"{path.name}.{algorithm}.json")


def _state(path: Path) -> dict[str, int]:
    status = path.stat()
    return {"size": status.st_size, "mtime_ns": status.st_mtime_ns}
