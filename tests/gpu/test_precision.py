"""Loss scaling and training steps on a GPU, `make test-gpu`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback

from src.jobs.training import train_run
from src.runs.run import Run
from tests.tiny_runs import TINY, command, corpus, summary
from tests.training.test_precision import OPTIMIZERS, check_one_overflow, check_real_overflow, composed

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
]


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_overflow_skips_the_step_and_halves_the_scale(tmp_path, optimizer):
    check_one_overflow(tmp_path, "cuda", optimizer)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_scale_that_is_too_large_comes_down(tmp_path, optimizer):
    check_real_overflow(tmp_path, "cuda", optimizer)


@pytest.mark.parametrize("precision", ["bf16", "fp16", "fp32"])
def test_every_precision_trains_and_says_how_fast(tmp_path, precision):
    """16 wide heads: the kernels' narrowest."""
    wide = ("trainer.accelerator=gpu", "model.width=64", "attention.stride=32", "attention.summary=8")
    done = command("train", *TINY, *wide, f"precision={precision}", f"data.path={corpus(tmp_path)}", folder=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    (run,) = (tmp_path / "runs").iterdir()
    assert 0 < summary(run)["test/bits_per_byte"] < 8  # type: ignore[operator]
    columns = (run / "metrics.csv").read_text().splitlines()[0].split(",")
    assert {"train/step_ms", "train/peak_memory_gib", "train/data_wait"} <= set(columns)
    assert ("train/loss_scale" in columns) == (precision == "fp16")


class NoSync(Callback):
    """Makes PyTorch raise on every host-device synchronisation of some steps."""

    def __init__(self, first: int, last: int) -> None:
        self.first, self.last = first, last
        self.guarded = 0

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if self.first <= trainer.global_step <= self.last:
            self.guarded += 1
            torch.cuda.set_sync_debug_mode("error")

    def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_a_step_never_waits_for_the_gpu(tmp_path: Path, monkeypatch, precision):
    wide = ("trainer.accelerator=gpu", "model.width=64", "attention.stride=32", "attention.summary=8")
    quiet = ("trainer.max_steps=12", "trainer.log_every=100", "trainer.val_every=100", "trainer.checkpoint_every=100")
    samples = "logger.sample_bytes=0"
    path = f"data.path={corpus(tmp_path)}"
    config = composed(
        *TINY, *wide, *quiet, samples, path, f"precision={precision}", f"paths.output_dir={tmp_path}/runs"
    )
    guard = NoSync(4, 9)
    monkeypatch.setattr("src.jobs.build.PatternPicture", lambda *args: guard)  # rides along in a place of the list
    train_run(Run.create(config))
    assert guard.guarded == 6
