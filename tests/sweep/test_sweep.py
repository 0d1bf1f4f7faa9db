"""Sweeps as a user starts them: real jobs on two slots, crashes, kills, and starting again."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.subprocesses import children
from tests.tiny_runs import TINY, assert_same_outcome, command, corpus, environment, only_run, summary
from tests.wandb_files import sent

SMALL = ("logger.sample_bytes=0", "data.workers=0", "trainer.accelerator=cpu")
TWO = "hydra.launcher.slots=2"
LONG = ("trainer.max_steps=100000", "trainer.val_every=100000", "trainer.checkpoint_every=100")


def swept(folder: Path, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    return command("train", "-m", *TINY, f"data.path={corpus(folder)}", *SMALL, *arguments, folder=folder, **env)


def begun(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    line = [sys.executable, "-m", "src.train", "-m", *TINY, f"data.path={corpus(folder)}", *SMALL, *arguments]
    return subprocess.Popen(
        line, cwd=folder, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def sweep_folder(folder: Path) -> Path:
    (found,) = (folder / "runs" / "sweeps").iterdir()
    return found


def states(folder: Path) -> dict[str, str]:
    content = json.loads((sweep_folder(folder) / "sweep.json").read_text())
    return {job["name"]: job["state"] for job in content["jobs"]}


def wait_for(condition, process: subprocess.Popen[str], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.05)


def steps(folder: Path, name: str) -> int:
    file = folder / "runs" / "sweeps" / "s" / name / "metrics.csv"
    return len(file.read_text().splitlines()) if file.is_file() else 0


def alive(folder: Path) -> list[str]:
    """Processes that work on runs below a folder."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line, cwd = entry.read_bytes().replace(b"\0", b" ").decode(), str((entry.parent / "cwd").readlink())
        except OSError:
            continue
        if "src.job" in line and cwd.startswith(str(folder)):
            found.append(line)
    return found


def test_a_grid_runs_once(tmp_path):
    grid = ("attention=fixed,dense", "model.depth=1", TWO, "logger.kind=wandb")
    done = swept(tmp_path, *grid)
    assert done.returncode == 0, done.stdout + done.stderr
    assert set(states(tmp_path).values()) == {"finished"}
    folder = sweep_folder(tmp_path)
    assert {path.name for path in folder.iterdir()} >= {"bytes-fixed-d1-fp32", "bytes-dense-d1-fp32", "sweep.json"}
    ids = {(run / "wandb_id").read_text() for run in folder.glob("bytes-*[0-9]")}
    assert len(ids) == len(list(folder.glob("bytes-*/wandb/offline-run-*"))) == 2
    assert not list(tmp_path.rglob("multirun.yaml"))
    before = {file: file.stat().st_mtime_ns for file in folder.glob("*/checkpoints/*")}
    again = swept(tmp_path, *grid)
    assert again.returncode == 0
    assert "0 of 2 jobs to run" in again.stdout
    assert {file: file.stat().st_mtime_ns for file in folder.glob("*/checkpoints/*")} == before


def test_a_job_that_fails_leaves_the_others_alone(tmp_path):
    (tmp_path / "short.txt").write_bytes(b"too short" * 9)
    done = swept(tmp_path, f"data.path=short.txt,{tmp_path / 'corpus.txt'}", "hydra.launcher.name=s")
    assert done.returncode == 2, done.stdout + done.stderr
    assert sorted(states(tmp_path).values()) == ["failed", "finished"]
    assert "data.context must be at most" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("grid", "sentence"),
    [
        (
            ("model.depth=1,0",),
            "model.depth=0: model.depth must be at least 1, found 0",
        ),
        (
            ("attention=fixed,fixd",),
            "attention=fixd is no choice of conf/attention/: allowed are axial, bigbird, custom, dense, fixed",
        ),
        (
            ("resume=runs/x", "seed=1,2"),
            "resume=runs/x is for one run: a sweep that is started again goes on",
        ),
        (
            ("seed=1,2", "hydra.launcher.minutes=0"),
            "hydra.launcher.minutes must be a number of minutes above 0, found 0",
        ),
        (("seed=1,2", "hydra.launcher.slots=0"), "hydra.launcher.slots must be a whole number of at least 1, found 0"),
    ],
)
def test_a_wrong_job_is_refused_before_anything_is_written(tmp_path, grid, sentence):
    done = swept(tmp_path, *grid)
    assert done.returncode == 2
    assert sentence in done.stderr
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert {path.name for path in tmp_path.iterdir()} == {"corpus.txt"}


@pytest.mark.slow
def test_ctrl_c_saves_the_running_jobs_and_the_same_command_goes_on(tmp_path):
    grid = ("attention=fixed,dense", TWO, "hydra.launcher.name=s")
    process = begun(tmp_path, *grid, *LONG)
    wait_for(lambda: min(steps(tmp_path, f"bytes-{kind}-d2-fp32") for kind in ("fixed", "dense")) > 3, process)
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 130, said
    assert set(states(tmp_path).values()) == {"stopped"}
    assert not alive(tmp_path)
    at = max(steps(tmp_path, f"bytes-{kind}-d2-fp32") for kind in ("fixed", "dense")) + 20
    done = swept(tmp_path, *grid, *LONG, f"trainer.max_steps={at}")
    assert done.returncode == 0, done.stdout + done.stderr
    for run in sweep_folder(tmp_path).glob("bytes-*[0-9]"):
        assert summary(run)["train/steps"] == at
        assert "going on from step" in (run / "train.log").read_text()


@pytest.mark.slow
def test_a_killed_sweep_leaves_no_orphans_and_redoes_nothing(tmp_path):
    grid = ("model.depth=1,2", "trainer.max_steps=400", "trainer.checkpoint_every=20", "hydra.launcher.name=s")
    process = begun(tmp_path, *grid)
    wait_for(lambda: steps(tmp_path, "bytes-fixed-d2-fp32") > 60, process)
    process.kill()
    process.wait()
    deadline = time.monotonic() + 10
    while alive(tmp_path) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not alive(tmp_path)
    assert states(tmp_path) == {"bytes-fixed-d1-fp32": "finished", "bytes-fixed-d2-fp32": "running"}
    finished = sweep_folder(tmp_path) / "bytes-fixed-d1-fp32" / "checkpoints" / "last.ckpt"
    before = finished.stat().st_mtime_ns
    done = swept(tmp_path, *grid)
    assert done.returncode == 0, done.stdout + done.stderr
    assert finished.stat().st_mtime_ns == before
    (tmp_path / "alone").mkdir()
    alone = command("train", *TINY, f"data.path={corpus(tmp_path)}", *SMALL, "trainer.max_steps=400",
                    "trainer.checkpoint_every=20", folder=tmp_path / "alone")  # fmt: skip
    assert alone.returncode == 0, alone.stderr
    assert_same_outcome(sweep_folder(tmp_path) / "bytes-fixed-d2-fp32", only_run(tmp_path / "alone"))


@pytest.mark.slow
def test_a_killed_job_is_reported_and_the_others_go_on(tmp_path):
    process = begun(tmp_path, "model.depth=1,2", "trainer.max_steps=3000", "hydra.launcher.name=s")
    wait_for(lambda: steps(tmp_path, "bytes-fixed-d1-fp32") > 3, process)
    (job,) = children(process.pid)
    os.kill(job, signal.SIGKILL)
    said, _ = process.communicate(timeout=240)
    assert process.returncode == 1, said
    assert states(tmp_path) == {"bytes-fixed-d1-fp32": "failed", "bytes-fixed-d2-fp32": "finished"}
    assert "it was killed (exit code 137), as the system does when memory is full" in said


@pytest.mark.slow
def test_a_second_sweep_into_the_same_folder_is_refused(tmp_path):
    process = begun(tmp_path, "model.depth=1,2", *LONG, "hydra.launcher.name=s")
    wait_for(lambda: steps(tmp_path, "bytes-fixed-d1-fp32") > 1, process)
    second = swept(tmp_path, "model.depth=1,2", *LONG, "hydra.launcher.name=s")
    assert second.returncode == 2
    assert f"is in use by process {process.pid} " in second.stderr
    process.terminate()
    process.communicate(timeout=120)
    assert process.returncode == 143


@pytest.mark.slow
def test_two_devices_in_each_of_two_jobs(tmp_path):
    done = swept(tmp_path, "model.depth=1,2", "trainer.devices=2", "precision=fp32", "logger.kind=wandb", TWO)
    assert done.returncode == 0, done.stdout + done.stderr
    runs = list(sweep_folder(tmp_path).glob("bytes-*[0-9]"))
    assert len(runs) == 2
    assert len({(run / "wandb_id").read_text() for run in runs}) == 2
    made = [path for path in tmp_path.rglob("offline-run-*") if not path.is_symlink()]
    assert len(made) == 2, "a rank made a wandb run of its own"
    folders = [folder for run in runs for folder in run.glob("wandb/offline-run-*")]
    assert sorted((sent(folder).name, sent(folder).exit_code) for folder in folders) == [
        ("bytes-fixed-d1-fp32", 0), ("bytes-fixed-d2-fp32", 0),
    ]  # fmt: skip
    assert len({sent(folder).group for folder in folders}) == 1


@pytest.mark.slow
def test_a_search_survives_crashes_and_goes_on(tmp_path):
    search = ("sweep=search", "~hydra.sweeper.params", "optimizer.learning_rate=tag(log,interval(0.001,1e30))",
              "model.heads=2,3", TWO, "hydra.sweeper.patience=2")  # fmt: skip
    done = swept(tmp_path, *search, "hydra.sweeper.trials=6")
    assert "best: val/bits_per_byte" in done.stdout, done.stdout + done.stderr
    found = list(states(tmp_path).values())
    assert len(found) == 6
    assert "failed" in found and "finished" in found
    assert "model.heads must divide model.width (16), found 3" in done.stdout
    more = swept(tmp_path, *search, "hydra.sweeper.trials=8")
    assert more.returncode == 0, more.stdout + more.stderr
    assert list(states(tmp_path).values())[:6] == found
    assert len(states(tmp_path)) == 8
