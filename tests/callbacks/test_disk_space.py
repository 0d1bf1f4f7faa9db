"""A warning before the disk is full, once, and nothing lost when it is."""

import contextlib
import csv
import logging
import os
import re
import shutil
from types import SimpleNamespace

import pytest
import torch

from src.callbacks.disk_space import DiskSpace
from src.checkpoint.file import inspect
from src.errors import UserError
from src.runs.run import Run
from tests.checkpoint.test_file import roomy_disk, small_disk  # noqa: F401
from tests.in_process import Fall, new_run, train, wait_for_checkpoint

TRAINER = SimpleNamespace(is_global_zero=True)
STATE = {"state_dict": {"w": torch.zeros(1000)}, "optimizer_states": [{"state": {0: {"m": torch.zeros(2000)}}}]}


def looked(watch, free, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=free))
    watch.on_save_checkpoint(TRAINER, None, STATE)


def test_it_warns_once_until_there_is_room_again(tmp_path, monkeypatch, caplog):
    watch = DiskSpace(tmp_path)
    for free in (36_000, 35_999, 20_000, 36_000, 1):  # three checkpoints of 12,000 bytes
        looked(watch, free, monkeypatch)
    assert len(caplog.messages) == 2
    assert caplog.messages[0].startswith(f"the disk of {tmp_path} is nearly full: 0.00 GiB are free")


def test_a_disk_that_fills_up_leaves_the_last_good_checkpoint_and_training_goes_on(small_disk, tmp_path, caplog):  # noqa: F811
    run = new_run(tmp_path, "logger.kind=none", "trainer.keep=1")
    shutil.rmtree(run.checkpoints)
    run.checkpoints.symlink_to(small_disk)

    class Fill(Fall):
        def on_train_batch_end(self, trainer, *args):
            if trainer.global_step == self.step:
                wait_for_checkpoint(trainer)
                (small_disk / "other").write_bytes(bytes(shutil.disk_usage(small_disk).free))

    with (
        caplog.at_level(logging.INFO),
        pytest.raises(UserError, match=r"end of the run could not be saved in .*No space left"),
    ):
        train(run, Fill(4))
    said = "\n".join(caplog.messages)
    assert "is nearly full" in said
    assert "could not be written" in said
    assert "the one of step 3 stays" in said
    assert inspect(run.checkpoints / "last.ckpt") == 3
    assert "step 12 of 12" in said  # it went on to the end
    (small_disk / "other").unlink()
    train(run)
    assert run.summary()["status"] == "finished"


@pytest.mark.parametrize("trouble", [FileNotFoundError(2, "No such file"), OSError(116, "Stale file handle")])
def test_a_disk_that_does_not_answer_is_not_warned_of(trouble, tmp_path, monkeypatch, caplog):
    def refuse(folder):
        raise trouble

    monkeypatch.setattr(shutil, "disk_usage", refuse)
    DiskSpace(tmp_path).on_save_checkpoint(TRAINER, None, STATE)
    assert not caplog.messages


SHOWN = ("trainer.val_every=4", "trainer.log_every=1", "logger.kind=csv", "logger.sample_bytes=8",
         "logger.attention_picture=true", "trainer.keep=1")  # fmt: skip


def losses(run):
    with (run.path / "metrics.csv").open(newline="") as file:
        return [(row["step"], row["train/bits_per_byte"], row["val/bits_per_byte"]) for row in csv.DictReader(file)]


def test_a_run_whose_disk_is_full_for_a_while_loses_no_figure(roomy_disk, tmp_path, caplog):  # noqa: F811
    """Everything of the run is on the disk: checkpoints, figures, log, samples, pictures."""
    unbroken = new_run(tmp_path / "unbroken", *SHOWN)
    train(unbroken)
    run = new_run(tmp_path / "full", *SHOWN, f"paths.output_dir={roomy_disk}")
    other = roomy_disk / "other"

    class FullForAWhile(Fall):
        def on_train_batch_end(self, trainer, *args):
            if trainer.global_step in range(5, 10):
                wait_for_checkpoint(trainer)
                with other.open("ab") as file, contextlib.suppress(OSError):
                    os.posix_fallocate(file.fileno(), 0, file.tell() + shutil.disk_usage(roomy_disk).free)
            else:
                other.unlink(missing_ok=True)

    with caplog.at_level(logging.INFO):
        train(run, FullForAWhile(0))
    said = "\n".join(caplog.messages)
    assert run.summary()["status"] == "finished"
    assert losses(run) == losses(unbroken)
    assert inspect(run.checkpoints / "last.ckpt") == 12
    for what in ("checkpoint of step 8", "sample of step 8", "step-0000008.png"):
        assert re.search(rf"{what}.* could not be written .*No space left on device", said)
    assert {path.name for path in (run.path / "attention").iterdir()} == {"step-0000004.png", "step-0000012.png"}


@pytest.mark.parametrize("name", ["checkpoints", "metrics.csv", "attention", "."])
def test_what_is_removed_in_the_middle_begins_anew(name, tmp_path, caplog):
    run = new_run(tmp_path, *SHOWN)

    class Remove(Fall):
        def on_train_batch_end(self, trainer, *args):
            if trainer.global_step == 5:
                wait_for_checkpoint(trainer)
                path = run.path / name
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    with caplog.at_level(logging.WARNING):
        train(run, Remove(5))
    assert run.summary()["status"] == "finished"
    assert inspect(run.checkpoints / "last.ckpt") == 12
    steps = [step for step, *_ in losses(run)]
    assert steps[-1] == "12" and steps[0] == ("5" if name in ("metrics.csv", ".") else "1")
    assert [message for message in caplog.messages if "is gone: a new one begins at step 5" in message] == (
        [f"{run.path / 'metrics.csv'} is gone: a new one begins at step 5"] if steps[0] == "5" else []
    )
    assert Run.find(run.path).config().data.context == 64
