"""Which rank a process is, and what becomes of the others when one fails: without torch, on small commands."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from src.errors import UserError
from src.processes import ranks
from src.processes.ranks import Place, check_ranks, lost_a_rank, place, supervise
from tests.subprocesses import alive

TORCHRUN = {"TORCHELASTIC_RUN_ID": "none", "RANK": "3", "LOCAL_RANK": "1", "WORLD_SIZE": "4"}
SRUN = {"SLURM_STEP_ID": "0", "SLURM_NTASKS": "8", "SLURM_PROCID": "5", "SLURM_LOCALID": "1"}


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, Place("none", 0, 0, 1)),
        (TORCHRUN, Place("torchrun", 3, 1, 4)),
        (SRUN, Place("srun", 5, 1, 8)),
        ({name: value for name, value in SRUN.items() if name != "SLURM_STEP_ID"}, Place("none")),  # a batch script
        ({**SRUN, "SLURM_JOB_NAME": "interactive"}, Place("none")),
        ({**SRUN, "SLURM_NTASKS": "1"}, Place("none")),
        ({"LOCAL_RANK": "1"}, Place("none")),  # says nothing by itself
    ],
)
def test_place_is_read_from_the_launcher_s_environment(environment, expected):
    assert place(environment) == expected


def test_devices_must_be_what_the_launcher_started():
    check_ranks(2, 2, Place("torchrun", 0, 0, 4))
    with pytest.raises(UserError, match=r"must be the 4 processes that torchrun started, found 1 \* 1"):
        check_ranks(1, 1, Place("torchrun", 0, 0, 4))


def test_srun_must_say_how_many_tasks_a_machine_has(monkeypatch):
    monkeypatch.delenv("SLURM_NTASKS_PER_NODE", raising=False)
    with pytest.raises(UserError, match="srun must be told --ntasks-per-node=2"):
        check_ranks(2, 2, Place("srun", 0, 0, 4))
    monkeypatch.setenv("SLURM_NTASKS_PER_NODE", "2")
    check_ranks(2, 2, Place("srun", 0, 0, 4))


def test_several_machines_need_a_meeting_place(monkeypatch):
    for name in ("MASTER_ADDR", "MASTER_PORT", "NODE_RANK"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(UserError, match="num_nodes=2 needs torchrun or srun, or MASTER_ADDR"):
        check_ranks(2, 2, Place("none"))


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def test_every_rank_knows_its_number(tmp_path):
    code = f"""
import os
from pathlib import Path
names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
Path({str(tmp_path)!r}, os.environ["RANK"]).write_text(",".join(os.environ[n] for n in names))
"""
    assert supervise(python(code), 3, 1, tmp_path / "log") == 0
    found = [(tmp_path / str(rank)).read_text().split(",") for rank in range(3)]
    assert [row[:4] for row in found] == [[str(rank), str(rank), "3", "127.0.0.1"] for rank in range(3)]
    assert len({row[4] for row in found}) == 1


def test_a_machine_of_several_says_where_it_waits_for_the_others(tmp_path, capfd, monkeypatch):
    for name, value in (("MASTER_ADDR", "node7"), ("MASTER_PORT", "29501"), ("NODE_RANK", "1")):
        monkeypatch.setenv(name, value)
    assert supervise(python("import os; print(os.environ['RANK'])"), 1, 3, tmp_path / "log") == 0
    assert capfd.readouterr().out.splitlines() == ["machine 2 of 3: meets the others at node7:29501", "1"]


def test_a_rank_that_fails_ends_those_that_wait_for_it(tmp_path, capsys):
    """The others neither end by themselves nor heed SIGTERM, as a process inside a collective operation."""
    code = f"""
import os, signal, sys, time
from pathlib import Path
if os.environ["RANK"] == "1":
    sys.exit(7)
signal.signal(signal.SIGTERM, signal.SIG_IGN)
Path({str(tmp_path)!r}, "pid" + os.environ["RANK"]).write_text(str(os.getpid()))
time.sleep(600)
"""
    began = time.monotonic()
    assert supervise(python(code), 3, 1, tmp_path / "log", grace=1.0) == 7
    assert time.monotonic() - began < 60
    assert "error: rank 1 ended with exit code 7, so all ranks were stopped: see" in capsys.readouterr().err
    assert not [file for file in tmp_path.glob("pid*") if alive(int(file.read_text()))]


def test_a_killed_rank_is_to_blame_and_the_others_say_their_own_sentence(tmp_path, capfd):
    """No signal comes between: what another rank says, and its wandb run, come to their end."""
    code = """
import os, signal, sys, time
if os.environ["RANK"] == "1":
    os.kill(os.getpid(), signal.SIGKILL)
time.sleep(1)
print("another rank is gone", flush=True)
sys.exit(1)
"""
    assert supervise(python(code), 2, 1, tmp_path / "log") == 137
    said = capfd.readouterr()
    assert "another rank is gone" in said.out
    assert "error: rank 1 ended with exit code 137, so all ranks were stopped" in said.err


def test_ranks_that_have_not_begun_end_soon_after_one_was_killed(tmp_path, monkeypatch):
    """They wait for it at their meeting place, where only a signal ends them."""
    monkeypatch.setattr(ranks, "GRACE", 0.5)
    code = """
import os, signal, time
if os.environ["RANK"] == "1":
    os.kill(os.getpid(), signal.SIGKILL)
time.sleep(600)
"""
    began = time.monotonic()
    assert supervise(python(code), 2, 1, tmp_path / "log") == 137
    assert time.monotonic() - began < 30


@pytest.mark.parametrize("launcher", ["supervise", "torchrun", "none"])
def test_a_lost_rank_is_told_from_other_errors(monkeypatch, launcher):
    for sign in (ranks.LAUNCHED, "TORCHELASTIC_RUN_ID"):
        monkeypatch.delenv(sign, raising=False)
    if launcher != "none":
        monkeypatch.setenv({"supervise": ranks.LAUNCHED, "torchrun": "TORCHELASTIC_RUN_ID"}[launcher], "1")
    gone = RuntimeError("[pair.cc:537] Read error [127.0.0.1]:1451: Connection reset by peer. This is typically")
    assert lost_a_rank(gone) is (launcher != "none")
    assert not lost_a_rank(RuntimeError("CUDA error: an illegal memory access was encountered"))
    assert not lost_a_rank(ConnectionResetError("Connection reset by peer"))


SLEEPERS = """
import os, sys
from pathlib import Path
from src.processes.ranks import end_with_supervisor, supervise
code = '''
import os, signal, sys, time
from pathlib import Path
from src.processes.ranks import end_with_supervisor
end_with_supervisor()
signal.signal(signal.SIGINT, lambda *_: sys.exit(130))
Path(os.environ["FOLDER"], os.environ["RANK"]).write_text(str(os.getpid()))
time.sleep(600)
'''
sys.exit(supervise([sys.executable, "-c", code], 2, 1, Path("log")))
"""


def test_ctrl_c_reaches_every_rank_once(tmp_path):
    process, pids = sleeping(tmp_path)
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 130
    assert not any(map(alive, pids))


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends children with their parent")
def test_no_rank_is_left_when_the_supervisor_is_killed(tmp_path):
    process, pids = sleeping(tmp_path)
    process.kill()
    process.wait(30)
    deadline = time.monotonic() + 10
    while any(map(alive, pids)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(alive, pids))


def sleeping(folder: Path) -> tuple[subprocess.Popen[bytes], list[int]]:
    """Start a supervisor of two ranks that only wait, and give it and their process ids."""
    root = Path(__file__).parents[2]
    env = {**os.environ, "FOLDER": str(folder), "PYTHONPATH": str(root)}
    process = subprocess.Popen(python(SLEEPERS), env=env, cwd=folder)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if all((file := folder / str(rank)).is_file() and file.read_text() for rank in range(2)):
            return process, [int((folder / str(rank)).read_text()) for rank in range(2)]
        time.sleep(0.05)
    raise AssertionError("the ranks never began")
