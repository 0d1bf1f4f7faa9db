"""A terminal that is closed, or a connection that breaks: what runs in it saves and stops, as on Ctrl-C."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from src.checkpoint.file import inspect
from tests import warm
from tests.tiny_runs import TINY, corpus, environment

LONG = ("trainer.max_steps=100000", "trainer.val_every=100000", "trainer.checkpoint_every=null",
        "trainer.checkpoint_minutes=null", "logger.kind=csv", "trainer.log_every=1")  # fmt: skip
HUNG_UP = 128 + signal.SIGHUP


def arguments(folder: Path, *more: str) -> list[str]:
    places = (f"data.path={corpus(folder)}", f"paths.output_dir={folder / 'runs'}")
    return [*TINY, *LONG, *places, *more]


def in_terminal(line: list[str], condition, keys: bytes = b"") -> int:
    """Train in a terminal, press keys or close that when ``condition`` is true; the command's exit code."""
    process, terminal = warm.in_terminal("train", tuple(line), Path.cwd(), {**environment(), "TERM": "xterm"})
    os.set_blocking(terminal, False)
    deadline = time.monotonic() + 120
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)
        with contextlib.suppress(OSError):  # nothing to read, or nobody left who writes
            os.read(terminal, 65_536)
    if keys:
        os.write(terminal, keys)
        os.set_blocking(terminal, True)
        with contextlib.suppress(OSError):
            while os.read(terminal, 65_536):
                pass
    os.close(terminal)
    return process.wait(30)


def rows(folder: Path) -> int:
    """Most rows of any metrics.csv below a folder."""
    return max((file.read_text().count("\n") for file in folder.rglob("metrics.csv")), default=0)


@pytest.mark.parametrize(
    "more",
    [("data.workers=2", "trainer.progress=true"), pytest.param(("trainer.devices=2",), marks=pytest.mark.slow)],
    ids=["workers", "devices"],
)
def test_a_run_whose_terminal_is_closed_saves_and_stops(more, tmp_path):
    code = in_terminal(arguments(tmp_path, *more), lambda: rows(tmp_path) > 4)
    (run,) = (tmp_path / "runs").iterdir()
    said = (run / "train.log").read_text()
    assert code == HUNG_UP, said
    assert "Traceback" not in said
    assert f"stopped by SIGHUP; go on with:  python -m src.train resume={run}" in said
    assert inspect(run / "checkpoints" / "last.ckpt") == rows(tmp_path) - 1


@pytest.mark.slow
def test_ctrl_c_in_a_terminal_leaves_the_processes_that_read_the_rest_of_the_step(tmp_path):
    """It reaches all processes of the command; a step of sixteen micro-batches is still read to its end."""
    line = arguments(tmp_path, "data.workers=2", "data.micro_batch=1", "data.batch_size=16")
    code = in_terminal(line, lambda: rows(tmp_path) > 4, keys=b"\x03")
    (run,) = (tmp_path / "runs").iterdir()
    assert code == 128 + signal.SIGINT, (run / "train.log").read_text()
    assert inspect(run / "checkpoints" / "last.ckpt") == rows(tmp_path) - 1


def test_a_sweep_whose_terminal_is_closed_lets_its_jobs_save(tmp_path):
    line = arguments(tmp_path, "-m", "seed=1,2", "hydra.launcher.slots=2", "hydra.launcher.name=s")
    code = in_terminal(line, lambda: len(list(tmp_path.rglob("metrics.csv"))) == 2 and rows(tmp_path) > 4)
    assert code == HUNG_UP
    sweep = tmp_path / "runs" / "sweeps" / "s"
    jobs = json.loads((sweep / "sweep.json").read_text())["jobs"]
    assert [job["state"] for job in jobs] == ["stopped", "stopped"]
    assert all(inspect(sweep / job["run"] / "checkpoints" / "last.ckpt") > 0 for job in jobs)


@pytest.mark.slow
def test_under_nohup_it_goes_on(tmp_path):
    line = arguments(tmp_path, "trainer.max_steps=60", "trainer.val_every=60")
    ignored = lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN)  # noqa: E731
    line = [sys.executable, "-m", "src.train", *line]
    with subprocess.Popen(line, env=environment(), stdout=subprocess.DEVNULL, preexec_fn=ignored) as process:  # noqa: PLW1509
        while not rows(tmp_path) and process.poll() is None:
            time.sleep(0.02)
        process.send_signal(signal.SIGHUP)
    assert process.returncode == 0
