"""The error that users see as one sentence."""

from __future__ import annotations

import contextlib
import errno
import logging
import sys
from collections.abc import Callable, Iterator
from typing import Any

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_TOO_MANY = {errno.EMFILE, errno.ENFILE}
_REFUSED = {
    errno.EACCES, errno.EPERM, errno.EROFS, errno.EISDIR, errno.ENOTDIR, errno.EIO, errno.ENAMETOOLONG,
}  # fmt: skip
# as the operating system, PyTorch (GPU, CPU), Triton and cuBLAS or cuDNN have it
_NO_MEMORY = ("out of memory", "can't allocate memory", "not enough memory", "_ALLOC_FAILED")
log = logging.getLogger(__name__)


class UserError(Exception):
    """A mistake that a user can mend.

    The message is one sentence: the key or file, the value found, and what is allowed or what to run. The commands
    print it without a traceback and exit with a code other than 0.
    """


class ReaderLostError(RuntimeError):
    """A process that reads data for a loader ended before its time."""


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
    """Say in a sentence that disk or memory are too small, a file refused or a reader was lost; None for the rest."""
    if getattr(error, "errno", None) in _TOO_MANY or str(error).startswith("Too many open files"):  # PyTorch's loader
        return UserError(
            "this process may not open as many files as it needs: allow more (ulimit -n 1024), or take data.workers=0"
        )
    if isinstance(error, MemoryError | RuntimeError):
        return _of_a_reader(error) or _of_memory(error)
    if not isinstance(error, OSError):
        return None
    if error.errno in _FULL:
        where = f" for {error.filename}" if error.filename else ""
        return UserError(f"there is no room on the disk{where} ({error.strerror}): make room, then run the same again")
    if error.errno in _REFUSED and error.filename:
        return UserError(f"{error.filename} cannot be used ({error.strerror}): see its name, kind, owner and rights")
    return None


def memory_error(error: BaseException) -> BaseException | None:
    """Find the error that says that there is not enough memory, on a GPU or a CPU, among an error and its causes.

    It may be a cause alone: what cleans up behind it, such as the end of a CUDA graph's capture, fails as well.
    """
    seen: set[int] = set()
    at: BaseException | None = error
    while at is not None and id(at) not in seen:
        if isinstance(at, MemoryError) or type(at).__name__ == "OutOfMemoryError":  # the second is PyTorch's
            return at
        if isinstance(at, RuntimeError) and any(words in str(at) for words in _NO_MEMORY):
            return at
        seen.add(id(at))
        at = at.__cause__ or at.__context__
    return None


@contextlib.contextmanager
def said_if_out_of_memory(sentence: Callable[[], str]) -> Iterator[None]:
    """Turn an error inside that says that the memory does not suffice into ``sentence`` for the user.

    Raises:
        UserError: with that sentence.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if memory_error(error) is None:
            raise
        raise UserError(sentence()) from error


@contextlib.contextmanager
def warned_if_not_written(what: str) -> Iterator[None]:
    """Go on, with a warning, where a file cannot be written that training can do without; ``what`` it is."""
    try:
        yield
    except OSError as error:
        log.warning("%s could not be written (%s): training goes on without", what, error.strerror or error)


def _of_a_reader(error: Exception) -> UserError | None:
    said = str(error)
    if not isinstance(error, ReaderLostError) and not said.startswith("DataLoader worker "):  # PyTorch's, on SIGCHLD
        return None
    return UserError(
        f"a process that reads data is gone ({said.rstrip('. ')}): where memory is short take fewer data.workers"
    )


def _of_memory(error: Exception) -> UserError | None:
    found = memory_error(error)
    if found is None:
        return None
    said = str(found) or "out of memory"
    reason = said.splitlines()[0].rpartition("] ")[2][:200].rstrip(". ")
    return UserError(
        f"there is not enough memory ({reason}): take a smaller data.micro_batch, model.recompute=block or a smaller "
        "model"
    )
