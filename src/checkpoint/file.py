"""Checkpoint files with what is in them: write, choose the newest that is whole, read, compare with a model."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor

from src.checkpoint.seal import Damaged, Sealing, check_seal
from src.checkpoint.shelf import row, step_aside, tidy
from src.errors import UserError
from src.system.atomic_files import written_whole

SHOWN = 4  # differing keys that a message names
METRICS_ROWS = "metrics_rows"  # in a checkpoint: rows that metrics.csv had when it was taken
METRICS_WAITING = "metrics_waiting"  # and those that a full disk had not taken
log = logging.getLogger(__name__)


def write(checkpoint: Mapping[str, Any], path: Path, keep: int = 1) -> None:
    """Write a checkpoint so that ``path`` is the old file or the new one, whole, whatever happens meanwhile.

    Args:
        checkpoint: plain tensors and containers, with ``global_step``.
        path: NAME.ckpt; the file before it stays as NAME-step-0000300.ckpt while there are at most ``keep`` of them.
        keep: files of this name to keep, the new one among them.

    Raises:
        OSError: the disk is full, or the folder cannot be written. What was there is untouched.
    """
    step = int(checkpoint["global_step"])
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(path, before=lambda: step_aside(path, step)) as file:
        sealing = Sealing(file)
        try:
            torch.save(checkpoint, sealing)  # type: ignore[arg-type]
        except RuntimeError as error:
            raise sealing.refused or error from None
        sealing.seal(step)
    tidy(path, step, keep)


def inspect(path: Path) -> int:
    """Check that a file is a whole checkpoint that holds nothing but data; give its optimizer step.

    Raises:
        Damaged: it is not; the message says why.
    """
    try:
        seal = check_seal(path)
    except OSError as error:
        raise Damaged(f"it cannot be read: {error.strerror}") from error
    step = int(_loaded(path, mmap=True).get("global_step", 0))
    if seal is not None and seal.step != step:
        raise Damaged(f"its seal says step {seal.step} and its content step {step}")
    return step


def read(path: Path) -> dict[str, Any]:
    """Read a checkpoint to the CPU. Nothing in the file is run: tensors and plain containers are all it may hold.

    Raises:
        UserError: the file cannot be read as a checkpoint.
    """
    try:
        return _loaded(path, mmap=False)
    except Damaged as error:
        raise UserError(f"{path} cannot be read as a checkpoint: {error}") from error


def entry(path: Path, name: str) -> Any:
    """Give one entry of a whole checkpoint, such as its ``config``, without reading its tensors; None if not there."""
    return _loaded(path, mmap=True).get(name)


def usable(candidates: Sequence[Path]) -> Path:
    """Give the first file that is a whole checkpoint, and say in the log which ones before it are not, and why.

    Args:
        candidates: at least one; the newest first.

    Raises:
        UserError: none is.
    """
    reasons: list[str] = []
    for path in candidates:
        try:
            step = inspect(path)
        except Damaged as error:
            reasons.append(f"{path.name}: {error}")
            continue
        if reasons:
            log.error("damaged in %s: %s; taking %s of step %d", path.parent, "; ".join(reasons), path.name, step)
        return path
    if len(candidates) == 1:
        raise UserError(f"{candidates[0]} cannot be read as a checkpoint: {reasons[0].partition(': ')[2]}")
    raise UserError(f"no checkpoint in {candidates[0].parent} can be read: {'; '.join(reasons)}")


def usable_for(path: Path) -> Path:
    """Give ``path``, or the newest whole file before it (see ``usable``)."""
    return usable(row(path) or [path])


def check_model(path: Path, module: torch.nn.Module, prefix: str = "") -> None:
    """Refuse the checkpoint of another model before anything is loaded.

    Args:
        path: a whole checkpoint.
        module: takes the weights.
        prefix: what the names in the checkpoint have in front of those of ``module``.

    Raises:
        UserError: names the first few weights that differ, and how.
    """
    state = _loaded(path, mmap=True).get("state_dict")
    saved = state if isinstance(state, dict) else {}
    found = differences(saved, {prefix + name: weight for name, weight in module.state_dict().items()})
    if not found:
        return
    more = f" and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
    raise UserError(f"{path} is of another model than the configuration describes: {', '.join(found[:SHOWN])}{more}")


def differences(saved: Mapping[str, Any], wanted: Mapping[str, Tensor]) -> list[str]:
    """Say of each weight whose shape or presence differs how it differs: the file's beside the model's."""
    found = []
    for name in dict.fromkeys((*wanted, *saved)):
        if name not in saved:
            found.append(f"{name} {_size(wanted[name])} is not in the file")
        elif name not in wanted:
            found.append(f"{name} {_size(saved[name])} is not in the model")
        elif _size(saved[name]) != _size(wanted[name]):
            found.append(f"{name} is {_size(saved[name])} in the file and {_size(wanted[name])} in the model")
    return found


def _loaded(path: Path, mmap: bool) -> dict[str, Any]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except UnpicklingError as error:
        raise Damaged("it holds something else than tensors and plain containers, which is never run") from error
    except OSError as error:
        raise Damaged(f"it cannot be read: {error.strerror or 'no such file'}") from error
    except (RuntimeError, EOFError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise Damaged("it is cut off, or no checkpoint at all") from error
    if not isinstance(content, dict) or not isinstance(content.get("state_dict"), dict):
        raise Damaged("it holds no weights")
    return content


def _size(weight: Any) -> str:
    return "x".join(map(str, weight.shape)) or "a number" if isinstance(weight, Tensor) else "no tensor"
