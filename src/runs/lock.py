"""One job at a time on a run directory: a lock that the kernel releases when its process ends, however it ends.

The lock is a record lock (``fcntl.lockf``) on RUN_DIR/.lock. Unlike ``flock`` it is this process's own: loader workers
and wandb's service do not inherit it, so none of them keeps a killed job's directory closed; and it stays with the
process when another program takes it over, as ``src.job`` does from ``src.train``.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import socket
import struct
import sys
from pathlib import Path
from typing import TextIO

from src.errors import UserError

_FLOCK = "hhqqi"  # Linux's struct flock with 64-bit offsets: type, whence, start, length, process
_held: dict[Path, TextIO] = {}  # a record lock is gone as soon as its file is closed anywhere in the process


def take(run: Path) -> None:
    """Take a run directory for this process, until it ends or ``release``; where it has it already, it keeps it.

    Raises:
        UserError: another process works on it, or it cannot be written.
    """
    path = run.resolve() / ".lock"
    if path in _held:
        return
    try:
        import fcntl
    except ImportError:  # no POSIX system
        return
    try:
        file = path.open("a+")
    except OSError as error:
        raise UserError(f"{run} cannot be written ({error.strerror}): a job needs its run directory") from error
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        file.seek(0)
        holder = file.readline().strip() or "another process"
        file.close()
        raise UserError(f"{run} is in use by {holder}: wait for its end or stop it, then go on") from None
    except OSError:  # a file system without locks
        file.close()
        return
    os.set_inheritable(file.fileno(), True)
    _held[path] = file
    with contextlib.suppress(OSError):  # on a full disk the lock holds all the same
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()} since {datetime.datetime.now():%Y-%m-%d %H:%M:%S}")
        file.flush()


def release(run: Path) -> None:
    """Give a run directory back, so that another process may take it."""
    file = _held.pop(run.resolve() / ".lock", None)
    if file is not None:
        file.close()


def held(run: Path) -> bool:
    """Say whether another process has a run directory (or a sweep's folder), without taking it even for a moment.

    False where this cannot be asked: no Linux, no such folder, a file system without locks.
    """
    if sys.platform != "linux":
        return False
    import fcntl

    question = struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
    try:
        with (run / ".lock").open("rb+") as file:
            answer = fcntl.fcntl(file, fcntl.F_GETLK, question)
    except OSError:
        return False
    return bool(struct.unpack(_FLOCK, answer)[0] != fcntl.F_UNLCK)
