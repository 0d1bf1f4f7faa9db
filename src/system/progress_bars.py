"""Progress bars of what is not training: on a terminal, on stderr, with the time left."""

from __future__ import annotations

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

_QUIET_BELOW = 64 << 20  # bytes that are read too fast to need a progress bar


def byte_progress(size: int | None = None) -> Progress:
    """Make a progress bar for bytes, with speed and time left, on a terminal; silent for small sizes."""
    return _progress(DownloadColumn(), TransferSpeedColumn(), shown=size is None or size >= _QUIET_BELOW)


def count_progress(shown: bool = True, transient: bool = False) -> Progress:
    """Make a progress bar for things that are counted, with time left, on a terminal.

    Args:
        shown: whether they are enough to need one.
        transient: whether it vanishes at its end.
    """
    return _progress(MofNCompleteColumn(), shown=shown, transient=transient)


def _progress(*done: ProgressColumn, shown: bool, transient: bool = False) -> Progress:
    console = Console(stderr=True)
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        *done,
        TimeRemainingColumn(),
        console=console,
        transient=transient,
        disable=not console.is_terminal or not shown,
    )
