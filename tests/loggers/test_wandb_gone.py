"""wandb's own process is killed, as a system without memory does: training goes on, and wandb where it can."""

import logging
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from src.loggers import wandb_run
from src.runs.run import Run
from tests.in_process import Fall, new_run, train
from tests.wandb_files import sent


def kill_wandb() -> None:
    """Kill the wandb-core that this process started."""
    for status in Path("/proc").glob("[0-9]*/stat"):
        pid, name, *rest = status.read_text().replace("(", "").replace(")", "").split()
        if name == "wandb-core" and rest[0] != "Z" and int(rest[1]) == os.getpid():
            os.kill(int(pid), signal.SIGKILL)


class Killed(Fall):
    """Kills wandb's process after some steps."""

    def __init__(self, *steps: int) -> None:
        self.steps = steps

    def on_train_batch_end(self, trainer, *args):
        if trainer.global_step in self.steps:
            kill_wandb()


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    yield new_run(tmp_path, "logger.kind=wandb", "trainer.log_every=1", "trainer.val_every=6")
    wandb_run.finish(0)
    wandb_run.forget()
    assert "WANDB_SERVICE" not in os.environ  # processes of other tests would take it for theirs


def starts(run: Run) -> list[Path]:
    return sorted((run.path / "wandb").glob("offline-run-*"))


def test_it_is_started_again_as_for_a_resumed_run(run, caplog):
    with caplog.at_level(logging.WARNING):
        train(run, Killed(3))
    assert run.summary()["status"] == "finished"
    said = [message for message in caplog.messages if "wandb's own process is gone" in message]
    assert len(said) == 1 and said[0].endswith("it is started again; metrics.csv has all figures")
    assert len(starts(run)) == 2
    wandb_run.finish(0)
    assert sent(starts(run)[1]).exit_code == 0
    assert sent(starts(run)[1]).summary["test/bits_per_byte"] == run.summary()["test/bits_per_byte"]


def test_after_some_starts_training_goes_on_without(run, caplog):
    with caplog.at_level(logging.WARNING):
        train(run, Killed(*range(12)))
    assert run.summary()["status"] == "finished"
    said = [message for message in caplog.messages if "wandb's own process is gone" in message]
    assert len(said) == wandb_run.MOST_STARTS
    assert said[-1].endswith("training goes on without; metrics.csv has all figures")


@pytest.mark.slow
def test_a_process_that_is_gone_at_the_end_leaves_no_traceback(tmp_path):
    script = (
        "from tests.loggers.test_wandb_gone import *\n"
        f"run = new_run(Path({str(tmp_path)!r}), 'logger.kind=wandb')\n"
        "train(run)\nkill_wandb()\nwandb_run.finish(0)\nprint('ended')"
    )
    done = subprocess.run([sys.executable, "-c", script], env={**os.environ, "WANDB_MODE": "offline"},
                          capture_output=True, text=True, check=False)  # fmt: skip
    assert done.returncode == 0 and done.stdout.endswith("ended\n")
    assert "Traceback" not in done.stderr, done.stderr
