"""One job at a time on a run directory, and the kernel gives it back whatever becomes of the job."""

import os
import signal
import subprocess
import sys
import time

import pytest

from src.errors import UserError
from src.processes.ranks import LAUNCHED, stands_for_job
from src.runs import lock
from tests.bad.door import Bad
from tests.bad.test_run_directories import a_begun_run
from tests.tiny_runs import environment

HOLD = """
import os, sys, time
from pathlib import Path
from src.runs import lock
lock.take(Path(sys.argv[1]))
{then}
print("held", flush=True)
time.sleep(600)
"""
FORK = "os.fork() == 0 and (time.sleep(600), os._exit(0))"  # as a loader worker: it must not hold the directory
BECOME = """
if len(sys.argv) == 2:
    os.execv(sys.executable, [sys.executable, sys.argv[0], sys.argv[1], "again"])
"""  # as src.train becomes src.job
IN_USE = r"run is in use by process \d+ on \S+ since [0-9 :-]+: wait for its end or stop it, then go on"


def holder(folder, then="pass"):
    """Another process that works on the run, once it says so."""
    program = folder / "hold.py"
    program.write_text(HOLD.format(then=then))
    line = [sys.executable, str(program), str(folder / "run")]
    process = subprocess.Popen(line, env=environment(), stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    return process


@pytest.fixture
def others():
    processes = []
    yield processes
    for process in processes:
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
        process.wait()
        process.stdout.close()


TABLE = {
    "a second job": "job run",
    "a second resume": "train resume=run",
    "a second resume with other keys": "train resume=run trainer.max_steps=99",
}


@pytest.mark.parametrize("name", TABLE)
def test_is_refused_in_a_sentence_and_damages_nothing(name, refused, others):
    def prepare(folder):
        a_begun_run(folder)
        others.append(holder(folder))

    refused(Bad(TABLE[name], IN_USE, prepare), name)


def test_a_resume_is_refused_while_the_job_that_holds_it_was_another_program_before(refused, others):
    """The lock outlives ``exec``: between src.train and src.job nobody comes in between."""

    def prepare(folder):
        a_begun_run(folder)
        others.append(holder(folder, BECOME))

    refused(Bad("train resume=run", IN_USE, prepare), "a resume while a job takes over")


def test_a_killed_job_gives_the_directory_back_though_its_children_live(tmp_path, others):
    (tmp_path / "run").mkdir()
    process = holder(tmp_path, FORK)
    others.append(process)
    with pytest.raises(UserError, match="is in use by process"):
        lock.take(tmp_path / "run")
    process.kill()
    process.wait()
    deadline = time.monotonic() + 60
    while True:  # the kernel is a moment behind `wait`
        try:
            return lock.take(tmp_path / "run")
        except UserError:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        finally:
            lock.release(tmp_path / "run")


def test_one_process_may_take_it_twice_and_give_it_back(tmp_path, others):
    (tmp_path / "run").mkdir()
    lock.take(tmp_path / "run")
    lock.take(tmp_path / "." / "run")
    lock.release(tmp_path / "run")
    others.append(holder(tmp_path))


@pytest.mark.parametrize(
    ("env", "stands"),
    [
        ({}, True),
        ({"NODE_RANK": "0"}, True),
        ({"NODE_RANK": "1"}, False),  # another machine's part of the same job
        ({LAUNCHED: "1", "RANK": "0", "WORLD_SIZE": "2"}, False),  # the process that started the ranks has it
        ({"TORCHELASTIC_RUN_ID": "x", "RANK": "0", "WORLD_SIZE": "2"}, True),
        ({"TORCHELASTIC_RUN_ID": "x", "RANK": "1", "WORLD_SIZE": "2"}, False),
    ],
)
def test_the_ranks_of_one_job_are_one_job(env, stands, monkeypatch):
    for name in ("NODE_RANK", LAUNCHED, "TORCHELASTIC_RUN_ID", "SLURM_STEP_ID", "RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    assert stands_for_job() is stands
