"""Ranks hear at once that the process of another one is gone, and end by themselves, but not when one is only done."""

import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from src.callbacks.lost_rank import LostRank
from src.processes import ranks
from src.processes.ranks import supervise

RANK = """
import os, signal, sys, time
from functools import partial
from pathlib import Path
from types import SimpleNamespace
import torch.distributed as dist
from src.callbacks.lost_rank import LostRank
from src.callbacks.stop_signal import Interrupted
from src.processes.ranks import say_lost
rank = int(os.environ["RANK"])
dist.init_process_group("gloo")
draft = Path(os.environ["DRAFT"])
watch = LostRank(partial(say_lost, Path("runs/mine")), draft.exists, patience=0.2)
trainer = SimpleNamespace(world_size=dist.get_world_size())
watch.setup(trainer, None, "fit")
"""
KILLED = """
if rank == 1:
    os.kill(os.getpid(), signal.SIGKILL)
if rank == 0:
    time.sleep(3)
    draft.rename(draft.with_suffix(".written"))
time.sleep(600)  # as in a library that waits for the GPU
"""
FAILED = """
signal.signal(signal.SIGTERM, signal.SIG_IGN)
if rank == 1:
    watch.on_exception(trainer, None, ValueError())
    os._exit(1)
time.sleep(600)
"""
STOPPED = """
time.sleep(rank)
watch.on_exception(trainer, None, Interrupted(signal.SIGTERM))  # and so it tells the others, as at the end of all steps
if rank == 0:
    os._exit(0)  # the other one is still at it
time.sleep(1)
"""


def python(code: str) -> list[str]:
    return [sys.executable, "-c", RANK + code]


@pytest.fixture(autouse=True)
def draft(tmp_path, monkeypatch) -> Path:
    """What is being written while it is there."""
    monkeypatch.setenv("DRAFT", str(tmp_path / "last.ckpt"))
    return tmp_path / "last.ckpt"


def test_ranks_that_wait_for_a_killed_one_say_so_and_end(tmp_path, draft, capfd, monkeypatch):
    """When nothing is being written, and long before they would be ended; the third one listens to the first."""
    monkeypatch.setattr(ranks, "GRACE", 60.0)
    draft.touch()
    began = time.monotonic()
    assert supervise(python(KILLED), 3, 1, tmp_path / "log") == 137
    assert time.monotonic() - began < 40
    said = capfd.readouterr().err
    assert said.count("another rank is gone; go on with:  python -m src.train resume=runs/mine") == 2
    assert draft.with_suffix(".written").exists()


def test_ranks_that_stop_may_go_at_different_times(tmp_path, capfd):
    assert supervise(python(STOPPED), 2, 1, tmp_path / "log") == 0
    assert "gone" not in "".join(capfd.readouterr())


def test_a_rank_that_failed_is_gone_for_the_others(tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(ranks, "GRACE", 60.0)
    assert supervise(python(FAILED), 2, 1, tmp_path / "log") == 1
    assert capfd.readouterr().err.count("another rank is gone; go on with") == 1


def test_a_single_device_listens_to_nobody():
    watch, trainer = LostRank(lambda: None), cast(Any, SimpleNamespace(world_size=1))
    watch.setup(trainer, trainer, "fit")
    watch.teardown(trainer, trainer, "fit")
