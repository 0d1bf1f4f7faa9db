"""A loader that gives nothing ends the run with a sentence, whoever is to blame."""

import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from src.data import loading
from src.errors import UserError
from tests.in_process import new_run, train
from tests.subprocesses import alive


def stuck_after(calls: int, monkeypatch, folder: Path) -> None:
    """Let reading a batch block for ever, as on a file server that is gone, once ``calls`` were read."""
    pipe = folder / "pipe"
    os.mkfifo(pipe)
    reading = loading.TrainDataset.__getitems__

    def stuck(self, numbers):
        if numbers[0] >= 4 * calls:  # four sequences a step
            pipe.read_bytes()
        return reading(self, numbers)

    monkeypatch.setattr(loading.TrainDataset, "__getitems__", stuck)


@pytest.mark.parametrize(
    ("workers", "whom"),
    [
        (0, "this process reads it itself (data.workers=0)"),
        pytest.param(2, "it should come from worker 1 (process ", marks=pytest.mark.slow),  # they are given time to end
    ],
)
def test_a_stalled_loader_ends_the_run_in_a_sentence(tmp_path, monkeypatch, workers, whom):
    stuck_after(5, monkeypatch, tmp_path)
    run = new_run(tmp_path / "run", "watch.stall_seconds=0.5", f"data.workers={workers}")
    before, began = signal.getsignal(signal.SIGALRM), time.monotonic()
    with pytest.raises(UserError) as refused:
        train(run)
    said = str(refused.value)
    assert said.startswith("no batch came from the training loader for watch.stall_seconds=0.5: " + whom), said
    assert workers == 0 or said.partition("(process ")[2].split(", ")[1].startswith("asleep) of data.workers=2")
    assert time.monotonic() - began < 60
    assert signal.getsignal(signal.SIGALRM) == before
    monkeypatch.undo()
    train(run)  # the disk answers again


@pytest.mark.slow
def test_a_stopped_worker_is_named_and_does_not_outlive_the_run(tmp_path, monkeypatch):
    """SIGSTOP: a process that heeds no SIGTERM either."""
    reading = loading.TrainDataset.__getitems__
    pids = tmp_path / "pids"

    def stopping(self, numbers):
        if numbers[0] >= 20:
            pids.write_text(str(os.getpid()))
            os.kill(os.getpid(), signal.SIGSTOP)
        return reading(self, numbers)

    monkeypatch.setattr(loading.TrainDataset, "__getitems__", stopping)
    run = new_run(tmp_path / "run", "watch.stall_seconds=0.5", "data.workers=1")
    with pytest.raises(UserError, match=r"worker 0 \(process \d+, stopped\) of data\.workers=1"):
        train(run)
    deadline = time.monotonic() + 30
    while alive(int(pids.read_text())):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_validation_is_watched_too(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "pipe")
    monkeypatch.setattr(loading.EvalDataset, "__getitems__", lambda self, indices: (tmp_path / "pipe").read_bytes())
    run = new_run(tmp_path / "run", "watch.stall_seconds=0.5")
    with pytest.raises(UserError, match="no batch came from the validation loader for"):
        train(run)


def test_a_slow_loader_is_no_stalled_one(tmp_path, monkeypatch):
    reading = loading.TrainDataset.__getitems__

    def slow(self, numbers: list[int]):
        time.sleep(0.1)
        return reading(self, list(np.array(numbers)))

    monkeypatch.setattr(loading.TrainDataset, "__getitems__", slow)
    train(new_run(tmp_path / "run", "watch.stall_seconds=20"))


def test_null_waits_for_ever(tmp_path):
    from src.jobs import build

    run = new_run(tmp_path, "watch.stall_seconds=null")
    assert not any(type(callback).__name__ == "StalledData" for callback in build.watchdogs(run.config(), run))
