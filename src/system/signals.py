"""Signals that ask to stop, from the first moment on.

Ctrl-C while a command is still starting is answered by one word instead of Python's traceback, since there is nothing
to save yet. This file imports nothing slow: the commands call it before their own imports.
"""

from __future__ import annotations

import contextlib
import os
import signal
import stat
from types import FrameType

STOPPED = 130  # exit code of a command that Ctrl-C ended


def stop_quietly() -> None:
    """End at once on Ctrl-C, until ``raise_again``; also on one that came while ``hold`` kept it back."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # ignored under nohup: that stays
        signal.signal(signal.SIGINT, _stop)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


def raise_again() -> None:
    """Let Ctrl-C raise KeyboardInterrupt again, as the rest of a program expects."""
    if signal.getsignal(signal.SIGINT) is _stop:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def stops() -> list[int]:
    """Give the signals that ask to stop: Ctrl-C, SIGTERM, and a closed terminal but where nohup ignores it."""
    hangup = [] if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else [signal.SIGHUP]
    return [signal.SIGINT, signal.SIGTERM, *hangup]


def leave_terminal() -> None:
    """Where the terminal of this process is gone, print to nowhere: a line to it would be an error."""
    for descriptor in (1, 2):
        with contextlib.suppress(OSError):
            if stat.S_ISCHR(os.fstat(descriptor).st_mode) and not os.isatty(descriptor):
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, descriptor)
                os.close(nowhere)


def hold() -> None:
    """Keep Ctrl-C back for the program that takes this process over, which calls ``stop_quietly`` first of all."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})


def _stop(signum: int, frame: FrameType | None) -> None:
    os.write(2, b"stopped\n")
    os._exit(STOPPED)
