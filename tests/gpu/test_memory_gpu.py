"""A GPU whose memory does not suffice: one sentence with what to lower, exit code 2, and a run that goes on with it."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest
import torch

from src.checkpoint.file import inspect
from tests.kills import HOOKS
from tests.tiny_runs import TINY, cold_command, corpus, environment, only_run, summary

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
]

RUN = (
    *TINY, "data.context=1024", "model.width=256", "model.heads=4", "model.dropout=0", "attention.stride=32",
    "attention.summary=8", "trainer.accelerator=gpu", "trainer.progress=false", "data.workers=0",
    "logger.sample_bytes=0", "trainer.max_steps=4", "trainer.val_every=2", "precision=bf16",
)  # fmt: skip


def train(folder: Path, *arguments: str, gib: float | None = None) -> subprocess.CompletedProcess[str]:
    """Train as a user does, with so much of the GPU's memory; None: all that there is."""
    if gib is None:
        return cold_command("train", *arguments, folder=folder)
    path = os.pathsep.join((str(HOOKS), environment()["PYTHONPATH"]))
    return cold_command("train", *arguments, folder=folder, PYTHONPATH=path, TEST_GPU_MEMORY_GIB=str(gib))


def refused(done: subprocess.CompletedProcess[str]) -> str:
    """Check that a command ended with one sentence for its user, and give that."""
    assert done.returncode == 2, done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    (line,) = (line for line in done.stderr.splitlines() if line.startswith("error: "))
    return line.removeprefix("error: ")


def test_a_step_that_no_gpu_can_hold(tmp_path):
    """1.5 TiB of activations. The run has 16 GiB to fill: tests beside this one need the rest."""
    large = ("model.depth=128", "data.batch_size=2048", "model.recompute=none", "data.eval_batch_size=1")
    done = train(tmp_path, *RUN, *large, f"data.path={corpus(tmp_path, 400_000)}", gib=16)
    run = only_run(tmp_path)
    assert refused(done) == (
        "the memory of the device does not suffice: activations of a step take about 1551.00 GiB, of which by estimate "
        "model.recompute=block saves 1408.00 GiB, data.micro_batch=1024 saves 775.50 GiB, model.recompute=light saves "
        "768.00 GiB, data.context=512 (a new run) 775.50 GiB; go on with python -m src.train "
        f"resume={run.relative_to(tmp_path)} and one of them"
    )
    assert not list((run / "checkpoints").glob("*")) and not (run / "summary.json").exists()
    assert {path.name for path in run.rglob(".*")} <= {".lock"}
    assert "Traceback" not in (run / "train.log").read_text()


def test_the_setting_that_the_sentence_names_leads_out(tmp_path):
    """An allocation fails while training runs: 3 GiB of activations in 2 GiB of memory."""
    large = ("model.depth=16", "data.batch_size=32", "model.recompute=none", f"data.path={corpus(tmp_path, 400_000)}")
    told = refused(train(tmp_path, *RUN, *large, gib=2))
    found = re.search(r"(model\.recompute=block) saves (\d+\.\d\d) GiB", told)
    assert found and float(found[2]) > 2
    run = only_run(tmp_path)
    done = train(tmp_path, f"resume={run}", found[1], gib=2)
    assert done.returncode == 0, done.stdout + done.stderr
    assert summary(run)["status"] == "finished"


def test_an_evaluation_batch_that_is_too_large_costs_no_step(tmp_path):
    """The steps before the validation are saved, and the run goes on with a smaller batch."""
    large = ("data.eval_batch_size=512", f"data.path={corpus(tmp_path, 12_000_000)}")
    told = refused(train(tmp_path, *RUN, *large, gib=1))
    assert told == (
        "512 windows of 1,024 bytes to score do not fit the memory of the device: take a smaller data.eval_batch_size"
    )
    run = only_run(tmp_path)
    assert inspect(run / "checkpoints" / "last.ckpt") == 2
    assert {path.name for path in run.rglob(".*")} <= {".lock"}
    done = train(tmp_path, f"resume={run}", "data.eval_batch_size=16", gib=1)
    assert done.returncode == 0, done.stdout + done.stderr
    assert summary(run)["status"] == "finished"
