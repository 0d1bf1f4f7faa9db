"""Ranks hear at once that the process of another one is gone, and end by themselves, but not when one is only done."""

import time
from pathlib import Path
from subprocess import CompletedProcess
from types import SimpleNamespace
from typing import Any, cast

from src.callbacks.lost_rank import LostRank
from tests.callbacks.lost_ranks import DRAFT, PATIENCE
from tests.tiny_runs import command


def ranks(kind: str, count: int, folder: Path) -> CompletedProcess[str]:
    """Let so many ranks lose one of them; gives what their supervisor ends with."""
    return command("tests.callbacks.lost_ranks", kind, str(count), folder=folder)


def test_ranks_that_wait_for_a_killed_one_say_so_and_end(tmp_path):
    """When nothing is being written, and long before they would be ended; the third one listens to the first."""
    (tmp_path / DRAFT).touch()
    began = time.monotonic()
    done = ranks("killed", 3, tmp_path)
    assert done.returncode == 137, done.stderr
    assert time.monotonic() - began < PATIENCE - 20
    assert done.stderr.count("another rank is gone; go on with:  python -m src.train resume=runs/mine") == 2
    assert (tmp_path / DRAFT).with_suffix(".written").exists()


def test_a_rank_may_be_lost_between_two_passes(tmp_path):
    began = time.monotonic()
    done = ranks("between", 3, tmp_path)
    assert done.returncode == 137, done.stderr
    assert time.monotonic() - began < PATIENCE - 20
    assert done.stderr.count("another rank is gone; go on with") == 2


def test_ranks_that_stop_may_go_at_different_times(tmp_path):
    done = ranks("stopped", 2, tmp_path)
    assert done.returncode == 0, done.stderr
    assert "gone" not in done.stdout + done.stderr


def test_a_rank_that_failed_is_gone_for_the_others(tmp_path):
    done = ranks("failed", 2, tmp_path)
    assert done.returncode == 1, done.stderr
    assert done.stderr.count("another rank is gone; go on with") == 1


def test_a_single_device_listens_to_nobody():
    watch, trainer = LostRank(lambda: None), cast(Any, SimpleNamespace(world_size=1))
    watch.setup(trainer, trainer, "fit")
    watch.teardown(trainer, trainer, "fit")
