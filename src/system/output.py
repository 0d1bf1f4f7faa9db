"""Output that no terminal's character set can stop."""

from __future__ import annotations

import contextlib
import io
import os
import sys


def understand_utf8() -> None:
    """Begin this process anew in Python's UTF-8 mode where the locale is ASCII: files' names and contents need it.

    Call it from a command alone, before it does anything.
    """
    if sys.getfilesystemencoding().lower() == "utf-8" or sys.flags.utf8_mode:
        return
    os.environ["PYTHONUTF8"] = "1"
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def print_anything() -> None:
    """Print a question mark for a character that stdout or stderr cannot show, instead of raising an error."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            with contextlib.suppress(ValueError, OSError):
                stream.reconfigure(errors="replace")
