"""SWEEP/wandb: a link to what wandb wrote in each run of a sweep, so that its tools take the sweep as one.

``wandb leet SWEEP/wandb`` shows all runs side by side, ``wandb sync SWEEP/wandb/offline-run-*`` sends them.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

NAME = "wandb"


def gather(folder: Path) -> Path | None:
    """Link what the runs of a sweep have written so far, and drop links to what is no more.

    wandb knows its folders by their names, (offline-)run-TIME-ID, so links keep them.

    Returns:
        The folder of the links; None while there are none, also where the file system knows no links.
    """
    links = folder / NAME
    with contextlib.suppress(OSError):
        for link in links.glob("*"):
            if link.is_symlink() and not link.exists():
                link.unlink()
        for found in folder.glob(f"*/{NAME}/*run-[0-9]*"):
            links.mkdir(exist_ok=True)
            if not (links / found.name).is_symlink():
                (links / found.name).symlink_to(os.path.relpath(found, links), target_is_directory=True)
    return links if links.is_dir() else None
