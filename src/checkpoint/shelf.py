"""The checkpoints of a run by name: NAME.ckpt is the newest, NAME-step-0000300.ckpt are the ones before.

Two rows stand on the shelf, ``last`` and ``best``. A file keeps its place until a newer one is whole on the disk.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from src.checkpoint.seal import read_seal

OLDER = "-step-"


def row(newest: Path) -> list[Path]:
    """Give the files that stand for ``newest`` (NAME.ckpt), the newest first; empty where there is none."""
    return [path for path in (newest, *older(newest)) if path.is_file()]


def older(newest: Path) -> list[Path]:
    """Give the files before ``newest``, by falling step."""
    return sorted(newest.parent.glob(f"{newest.stem}{OLDER}*{newest.suffix}"), key=_step_in_name, reverse=True)


def all_rows(folder: Path) -> list[Path]:
    """Give every checkpoint of a run from which it could go on: last.ckpt first, then by falling step.

    A file that does not say its step comes behind those that do.
    """
    last = row(folder / "last.ckpt")
    others = [*last[1:], *row(folder / "best.ckpt")]
    return [*last[:1], *sorted(others, key=lambda path: sealed_step(path) or -1, reverse=True)]


def sealed_step(path: Path) -> int | None:
    """Give the step that a file is sealed with; None where it has no seal or cannot be read."""
    with contextlib.suppress(OSError):
        seal = read_seal(path)
        return None if seal is None else seal.step
    return None


def step_aside(newest: Path, step: int) -> None:
    """Give the file that is about to be replaced by one of ``step`` its older name.

    A file of the same or a later step is left to be replaced: the run went back, and trains those steps anew. So is one
    that does not say its step, which is damaged or of an older version.
    """
    before = sealed_step(newest)
    if before is None or before >= step:
        return
    aside = newest.with_name(f"{newest.stem}{OLDER}{before:07d}{newest.suffix}")
    aside.unlink(missing_ok=True)
    try:
        os.link(newest, aside)  # both names until the new file takes the first: never a moment without it
    except OSError:  # a file system without links
        newest.replace(aside)


def tidy(newest: Path, step: int, keep: int) -> None:
    """Remove what ``newest``, just written at ``step``, makes needless: more than ``keep`` files, and later steps."""
    kept = 1
    for path in older(newest):
        if kept < keep and _step_in_name(path) < step:
            kept += 1
        else:
            path.unlink(missing_ok=True)


def remove_drafts(folder: Path) -> None:
    """Remove what processes that were killed while they wrote have left in a run directory and its folders."""
    for draft in (*folder.glob(".*.draft"), *folder.glob("*/.*.draft")):
        draft.unlink(missing_ok=True)


def _step_in_name(path: Path) -> int:
    digits = path.stem.rpartition(OLDER)[2]
    return int(digits) if digits.isdecimal() else -1
