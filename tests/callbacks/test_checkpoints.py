"""When a run saves, and what its checkpoints hold: by steps, by time, on signals, around validations."""

import logging
import os
import signal
import time
from itertools import pairwise

import pytest
import torch
from lightning.pytorch import Callback

from src.callbacks.stop_signal import Interrupted
from src.checkpoint.file import inspect
from tests.in_process import new_run, train, wait_for_checkpoint
from tests.kills import differing
from tests.tiny_runs import command, corpus, summary

NEVER = ("trainer.checkpoint_every=null", "trainer.checkpoint_minutes=null", "trainer.val_every=1000")


class Saves(Callback):
    """Writes down the steps at which the state was collected, and may do something after a step."""

    def __init__(self, after=None, act=lambda: None):
        self.steps, self.times, self.after, self.act = [], [], after, act

    def on_save_checkpoint(self, trainer, pl_module, checkpoint):
        self.steps.append(trainer.global_step)
        self.times.append(time.monotonic())

    def on_train_batch_end(self, trainer, *args):
        if trainer.global_step == self.after:
            self.act()


class OneByOne(Saves):
    """Lets each checkpoint be written before the next step; ``times`` are those of the saves."""

    def on_train_batch_end(self, trainer, *args):
        wait_for_checkpoint(trainer)
        time.sleep(0.02)


def test_by_steps(tmp_path):
    run, saves = new_run(tmp_path, *NEVER, "trainer.checkpoint_every=4", "trainer.max_steps=10"), OneByOne()
    train(run, saves)
    assert saves.steps == [4, 8, 10]


def test_by_time(tmp_path):
    saves = OneByOne()
    train(new_run(tmp_path, *NEVER, "trainer.checkpoint_minutes=0.001"), saves)  # 60 ms
    assert len(saves.steps) > 2
    assert saves.steps[-1] == 12
    assert all(later - earlier >= 0.06 for earlier, later in pairwise(saves.times[:-1]))


def test_by_neither_only_the_end_is_saved(tmp_path):
    saves = Saves()
    train(new_run(tmp_path, *NEVER), saves)
    assert saves.steps == [12]


def test_sigusr2_saves_and_training_goes_on(tmp_path, caplog):
    saves = Saves(5, lambda: os.kill(os.getpid(), signal.SIGUSR2))
    with caplog.at_level(logging.INFO):
        train(new_run(tmp_path, *NEVER), saves)
    assert saves.steps in ([5, 12], [6, 12])
    assert f"saved at step {saves.steps[0]}, as asked" in caplog.messages


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_signal_saves_and_stops(tmp_path, signum):
    run = new_run(tmp_path, *NEVER)
    with pytest.raises(Interrupted):
        train(run, Saves(5, lambda: os.kill(os.getpid(), signum)))
    assert inspect(run.checkpoints / "last.ckpt") in (5, 6)
    assert "status" not in run.summary()


def test_the_state_is_saved_before_and_after_a_validation(tmp_path):
    saves = Saves()
    train(new_run(tmp_path, *NEVER, "trainer.val_every=5"), saves)
    assert saves.steps == [5, 5, 10, 10, 12]


@pytest.mark.parametrize("keep", [1, 3])
def test_so_many_are_kept_of_each_kind(tmp_path, keep):
    run = new_run(tmp_path, f"trainer.keep={keep}", "trainer.checkpoint_every=1", "trainer.val_every=2")
    train(run)
    for kind in ("last", "best"):
        assert len(list(run.checkpoints.glob(f"{kind}*.ckpt"))) == keep


def test_a_checkpoint_says_what_it_is(tmp_path):
    run = new_run(tmp_path)
    train(run)
    content = torch.load(run.checkpoints / "last.ckpt", weights_only=True)
    assert differing(content["config"], run.plain_config()) == []
    assert content["versions"]["torch"] == torch.__version__
    assert {"python", "lightning", "git_commit"} <= set(content["versions"])
    assert not [name for name in content["state_dict"] if "_orig_mod" in name]
    assert content["loops"] and content["lr_schedulers"] and content["optimizer_states"][0]["state"]


@pytest.mark.slow
def test_checkpoints_alone_serve_eval_and_sample(tmp_path):
    """Nothing is left of a run but its checkpoints, and the newest of those is damaged."""
    run = new_run(tmp_path)
    train(run)
    figure = run.summary()["test/bits_per_byte"]
    alone = tmp_path / "saved"
    alone.mkdir()
    run.checkpoints.rename(alone / "checkpoints")
    os.truncate(alone / "checkpoints" / "last.ckpt", 5000)
    corpus(tmp_path)
    done = command("eval", f"run={alone}", folder=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert summary(alone)["test/bits_per_byte"] == figure
    assert "config.yaml is missing: taken from" in done.stderr
    (alone / "config.yaml").write_text("damaged: [")
    done = command("sample", f"run={alone}", "length=8", "batch=1", folder=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "config.yaml is damaged" in done.stderr


def test_a_signal_that_comes_twice_at_once_is_one_request(tmp_path):
    """A wrapper forwards it, and the process group gets it."""

    def twice():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    run = new_run(tmp_path, *NEVER)
    with pytest.raises(Interrupted):
        train(run, Saves(5, twice))
    assert inspect(run.checkpoints / "last.ckpt") in (5, 6)
