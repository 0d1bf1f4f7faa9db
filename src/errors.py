"""The error that users see as one sentence."""

from __future__ import annotations

import errno
import sys
from collections.abc import Callable
from typing import Any

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_REFUSED = {
    errno.EACCES, errno.EPERM, errno.EROFS, errno.EISDIR, errno.ENOTDIR, errno.EIO, errno.ENAMETOOLONG,
}  # fmt: skip
_NO_MEMORY = ("out of memory", "can't allocate memory", "not enough memory")


class UserError(Exception):
    """A mistake that a user can mend.

    The message is one sentence: the key or file, the value found, and what is allowed or what to run. The commands
    print it without a traceback and exit with a code other than 0.
    """


def exit_code(work: Callable[[], Any], stopped: str = "stopped") -> int:
    """Do the work of a script and give its exit code; a user's mistake and Ctrl-C are a line on stderr.

    Args:
        work: may raise UserError (exit code 2) or KeyboardInterrupt (130); otherwise the code is 0.
        stopped: what Ctrl-C is answered with.
    """
    try:
        work()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(stopped, file=sys.stderr)
        return 130
    return 0


def of_the_machine(error: Exception) -> UserError | None:
    """Say in a sentence that the disk or the memory is too small, or a file refused; None for any other error."""
    if isinstance(error, MemoryError | RuntimeError):
        return _of_memory(error)
    if not isinstance(error, OSError):
        return None
    if error.errno in _FULL:
        where = f" for {error.filename}" if error.filename else ""
        return UserError(f"there is no room on the disk{where} ({error.strerror}): make room, then run the same again")
    if error.errno in _REFUSED and error.filename:
        return UserError(f"{error.filename} cannot be used ({error.strerror}): see its name, kind, owner and rights")
    return None


def _of_memory(error: Exception) -> UserError | None:
    said = str(error) or "out of memory"
    if not any(words in said for words in _NO_MEMORY):
        return None
    reason = said.splitlines()[0].rpartition("] ")[2][:200].rstrip(". ")
    return UserError(
        f"there is not enough memory ({reason}): take a smaller data.micro_batch, model.recompute=block or a smaller "
        "model"
    )
