"""Whole jobs in the tests' own process, where a test can reach in: the wiring of ``src.job`` on a tiny model."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback

from src.callbacks.checkpoints import Checkpoints
from src.jobs import build
from src.jobs.training import train_run
from src.runs.run import Run
from tests.tiny_runs import TINY, composed, corpus


def new_run(folder: Path, *changes: str) -> Run:
    """A run directory with the tiny configuration and ``changes``."""
    folder.mkdir(exist_ok=True)
    places = (f"data.path={corpus(folder)}", f"paths.output_dir={folder / 'runs'}")
    return Run.create(
        composed(*TINY, "logger.sample_bytes=0", "data.workers=0", "trainer.progress=false", *places, *changes)
    )


def train(run: Run, *extra: Callback) -> None:
    """Do the job of a run, with further callbacks in front."""
    built = build.callbacks

    def with_extra(*arguments: Any) -> Sequence[Callback]:
        return [*extra, *built(*arguments)]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "callbacks", with_extra)
        try:
            train_run(run)
        finally:
            torch.use_deterministic_algorithms(False)


def wait_for_checkpoint(trainer: Any) -> None:
    """Let the checkpoint that is being written come to its end."""
    next(callback for callback in trainer.callbacks if isinstance(callback, Checkpoints)).writer.wait()


class Poison(Callback):
    """Makes the loss or one gradient of some steps (counted from 0) NaN or infinite."""

    def __init__(self, steps: Sequence[int], what: str = "loss") -> None:
        self.steps = steps
        self.what = what
        self._hook: Any = None

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if self.what == "loss" and trainer.global_step in self.steps:
            self._hook = pl_module.model.output.register_forward_hook(lambda module, given, out: out * torch.nan)

    def on_after_backward(self, trainer: Any, pl_module: Any) -> None:
        if self._hook is not None:
            self._hook.remove()
            self._hook = None
        if self.what == "gradient" and trainer.global_step in self.steps:
            pl_module.model.output.weight.grad[0, 0] = torch.inf


class Fall(Callback):
    """Fails after a step, as a kill does, but in this process."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
        if trainer.global_step == self.step:
            raise RuntimeError("fallen")
