"""A disk that takes nothing ends no running job of a sweep; jobs that cannot be started wait for those that run."""

import errno
import io
import json
import os
import subprocess
import sys

import pytest
from rich.console import Console

from src.errors import UserError
from src.sweep.plan import Sweep
from src.sweep.runner import Runner
from src.sweep.slots import Slots
from src.sweep.view import View
from tests.sweep.test_view import sweep


class Disk:
    """What the disk refuses: while ``full``, sweep.json and new jobs."""

    full = False

    def check(self) -> None:
        if self.full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


class Sleepers(Runner):
    """Its jobs do nothing; the disk is full from the first start on, until the first job has ended."""

    def __init__(self, of: Sweep, disk: Disk) -> None:
        self.said = io.StringIO()
        super().__init__(of, Slots([], 2, 2), View(Console(file=self.said, width=200, color_system=None)))
        self.disk = disk

    def launch(self, job, environment):
        self.disk.check()
        self.disk.full = job.number == 0
        return subprocess.Popen([sys.executable, "-c", f"import time; time.sleep({0.5 * (job.number == 0)})"])

    def settle(self, process):
        super().settle(process)
        self.disk.full = False


@pytest.fixture
def disk(monkeypatch):
    disk, write = Disk(), Sweep.write
    monkeypatch.setattr(Sweep, "write", lambda of: disk.check() or write(of))
    return disk


def test_jobs_run_on_and_the_others_follow_when_there_is_room(tmp_path, disk):
    runner = Sleepers(sweep(tmp_path / "s", ["a", "b", "c"], ["waiting"] * 3), disk)
    assert runner.run() == 0
    written = json.loads((tmp_path / "s" / "sweep.json").read_text())["jobs"]
    assert [(job["name"], job["state"], job["run"]) for job in written] == [(x, "finished", x) for x in "abc"]
    said = runner.said.getvalue()
    assert said.count("sweep.json cannot be written (No space left on device): jobs run on") == 1
    assert said.count("b cannot be started (No space left on device): it is tried again while others run") == 1


def test_where_no_job_runs_the_sweep_ends_with_a_sentence_and_goes_on_later(tmp_path, disk):
    runner = Sleepers(sweep(tmp_path / "s", ["a", "b"], ["waiting"] * 2), disk)
    runner.launch = lambda job, environment: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left on device"))
    sentence = r"a cannot be started \(No space left on device\): mend that, then run the same command again"
    with pytest.raises(UserError, match=sentence):
        runner.run()
    assert runner.slots.take(runner.sweep.jobs[0].config) is not None
    written = json.loads((tmp_path / "s" / "sweep.json").read_text())["jobs"]
    assert [job["state"] for job in written] == ["waiting", "waiting"]
