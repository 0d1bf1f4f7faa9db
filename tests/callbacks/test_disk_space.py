"""A warning before the disk is full, once, and nothing lost when it is."""

import logging
import shutil
from types import SimpleNamespace

import pytest
import torch

from src.callbacks.disk_space import DiskSpace
from src.checkpoint.file import inspect
from src.errors import UserError
from tests.checkpoint.test_file import small_disk  # noqa: F401
from tests.in_process import Fall, new_run, train

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
                callback = next(c for c in trainer.callbacks if hasattr(c, "writer"))
                callback.writer.wait()
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
