"""Several devices are one: CPU processes (gloo) train what one process trains on the same global batch."""

import csv
import itertools
import shutil
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from src.config.schema import Config
from src.runs.run import Run
from tests.subprocesses import said_without_second_rank
from tests.tiny_runs import (
    TINY,
    cold_started,
    command,
    corpus,
    environment,
    only_run,
    started,
    summary,
    train_tiny,
    weights,
)
from tests.warm import Started

# No loader processes: forked beside the threads of gloo, one of them was once seen to hang (docs/log.md). Small initial
# weights: the gradient of a key's bias is 0, and with larger ones Adam makes steps of its rounding.
PLAIN = ("model.dropout=0", "model.init_scale=1", "precision=fp32", "logger.sample_bytes=0", "data.workers=0")
DDP = ("trainer.devices=2",)
FSDP = ("trainer.devices=2", "trainer.strategy=fsdp2")


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> Path:
    """A run of one process."""
    return train_tiny(tmp_path_factory.mktemp("alone"), *PLAIN)


def assert_same_training(run: Path, other: Path) -> None:
    """Equal but for the order of sums: weights, moments and figures."""
    assert summary(run)["train/steps"] == summary(other)["train/steps"]
    for name in ("val/bits_per_byte", "test/bits_per_byte"):
        assert summary(run)[name] == pytest.approx(summary(other)[name], abs=1e-5)
    ours, theirs = checkpoint(run), checkpoint(other)
    assert ours["state_dict"].keys() == theirs["state_dict"].keys()
    for name, weight in ours["state_dict"].items():
        torch.testing.assert_close(weight, theirs["state_dict"][name], atol=1e-4, rtol=1e-3)
    moments, others = (state["optimizer_states"][0]["state"] for state in (ours, theirs))
    assert moments.keys() == others.keys()
    for number, state in moments.items():
        assert state.keys() == others[number].keys()
        for name in state.keys() & {"exp_avg", "momentum_buffer"}:  # of AdamW, and of Muon
            torch.testing.assert_close(state[name], others[number][name], atol=1e-4, rtol=1e-2)


def assert_same_losses(run: Path, other: Path) -> None:
    """The same batches in the same order: each step logged once, with the other run's loss and gradient norm."""
    ours, theirs = losses(run), losses(other)
    assert [step for step, *_ in ours] == list(range(1, len(theirs) + 1))
    for (_, loss, norm), (_, expected, expected_norm) in zip(ours, theirs, strict=True):
        assert loss == pytest.approx(expected, abs=2e-5)
        assert norm == pytest.approx(expected_norm, rel=1e-3)
    steps = [abs(now[1] - before[1]) for before, now in itertools.pairwise(theirs)]
    assert statistics.median(steps) > 1e-3, "neighbouring batches must differ by more than rounding"


def losses(run: Path) -> list[tuple[int, float, float]]:
    """Step, bits per byte and gradient norm of each step in metrics.csv."""
    with (run / "metrics.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["train/bits_per_byte"]]
    return [(int(row["step"]), float(row["train/bits_per_byte"]), float(row["train/gradient_norm"])) for row in rows]


def checkpoint(run: Path) -> dict:
    return torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)


@pytest.mark.parametrize(
    "devices",
    [
        pytest.param((*DDP, "data.micro_batch=1"), id="ddp, 2 micro-batches each"),
        pytest.param(DDP, id="ddp", marks=pytest.mark.slow),
        pytest.param(FSDP, id="fsdp2"),
        pytest.param((*FSDP, "data.micro_batch=1"), id="fsdp2, 2 micro-batches each", marks=pytest.mark.slow),
        pytest.param(("trainer.devices=4",), id="ddp, 4 processes", marks=pytest.mark.slow),
        pytest.param((*FSDP[1:], "trainer.devices=4"), id="fsdp2, 4 processes", marks=pytest.mark.slow),
    ],
)
def test_several_processes_train_as_one(alone, tmp_path, devices):
    run = train_tiny(tmp_path, *PLAIN, *devices)
    assert_same_training(run, alone)
    assert_same_losses(run, alone)


@pytest.mark.slow
@pytest.mark.parametrize(
    "devices",
    [(*DDP, "data.micro_batch=1", "model.recompute=light"), (*FSDP, "model.recompute=block")],
    ids=["ddp", "fsdp2"],
)
def test_documents_are_those_of_one_process(tmp_path, devices):
    runs = []
    for name, changes in (("alone", ()), ("together", devices)):
        (tmp_path / name).mkdir()
        runs.append(train_tiny(tmp_path / name, *PLAIN, "data.documents=window ", *changes))
    assert_same_training(runs[1], runs[0])
    assert_same_losses(runs[1], runs[0])


@pytest.mark.slow
def test_gradients_in_half_precision_are_close_but_not_the_same(alone, tmp_path):
    run = train_tiny(tmp_path, *PLAIN, *DDP, "trainer.gradient_compression=fp16")
    assert summary(run)["test/bits_per_byte"] == pytest.approx(summary(alone)["test/bits_per_byte"], abs=1e-2)
    ours, theirs = weights(run), weights(alone)
    assert any(not torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.slow
@pytest.mark.parametrize("devices", [DDP, FSDP], ids=["ddp", "fsdp2"])
def test_a_run_goes_on_under_another_strategy(alone, tmp_path, devices):
    """From one process to two and from two to one: the weights and Adam's moments are those of a run of one process."""
    longer = tmp_path / "alone"
    shutil.copytree(alone, longer)
    go_on(longer, "trainer.max_steps=15")
    widened = tmp_path / "widened"
    shutil.copytree(alone, widened)
    go_on(widened, "trainer.max_steps=15", *devices)
    assert_same_training(widened, longer)
    (tmp_path / "two").mkdir()
    narrowed = train_tiny(tmp_path / "two", *PLAIN, *devices)
    go_on(narrowed, "trainer.max_steps=15", "trainer.devices=1", "trainer.strategy=auto")
    assert_same_training(narrowed, longer)


def go_on(run: Path, *changes: str) -> None:
    done = command("train", f"resume={run}", *changes, folder=run.parent)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_samples_are_drawn_from_weights_in_shares(tmp_path):
    run = train_tiny(
        tmp_path, *FSDP, "precision=fp32", "data.workers=0", "trainer.max_steps=6", "logger.sample_bytes=8"
    )
    assert {file.stem for file in (run / "samples").iterdir()} == {"step-0000005", "step-0000006"}
    figure = summary(run)["test/bits_per_byte"]
    done = command("eval", f"run={run}", folder=tmp_path)  # by one process
    assert done.returncode == 0, done.stdout + done.stderr
    assert summary(run)["test/bits_per_byte"] == pytest.approx(figure, abs=1e-5)


def torchrun(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *arguments]
    return subprocess.run(line, cwd=folder, env=environment(), capture_output=True, text=True, timeout=240, check=False)


@pytest.mark.slow
def test_torchrun_starts_the_job_of_a_run_directory(alone, tmp_path):
    config = OmegaConf.merge(OmegaConf.structured(Config), OmegaConf.load(alone / "config.yaml"))
    config.trainer.devices = 2
    config.paths.output_dir = str(tmp_path / "runs")
    run = Run.create(OmegaConf.to_object(config))
    done = torchrun("-m", "src.job", str(run.path), folder=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert_same_training(run.path, alone)


def test_torchrun_starts_one_run_from_the_command_line(alone, tmp_path):
    arguments = ("-m", "src.train", *TINY, *PLAIN, f"data.path={corpus(tmp_path)}")
    done = torchrun(*arguments, *DDP, folder=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert_same_training(only_run(tmp_path), alone)


@pytest.mark.slow
def test_torchrun_with_other_devices_is_refused_in_one_sentence(tmp_path):
    done = torchrun("-m", "src.train", *TINY, *PLAIN, f"data.path={corpus(tmp_path)}", folder=tmp_path)
    assert done.returncode != 0
    sentence = "error: trainer.devices * trainer.num_nodes must be the 2 processes that torchrun started, found 1 * 1"
    assert done.stderr.count(sentence) == 1
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_a_sweep_of_two_devices_each(tmp_path):
    few = ("trainer.max_steps=2", "logger.sample_bytes=0", "data.workers=0")
    path = corpus(tmp_path)
    done = command("train", "-m", *TINY, *few, *DDP, f"data.path={path}", "attention=fixed,strided", folder=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    runs = [file.parent for file in tmp_path.glob("runs/sweeps/*/*/summary.json")]
    assert [summary(run)["status"] for run in runs] == ["finished"] * 2


LONG = ("trainer.max_steps=100000", "trainer.val_every=100000", "trainer.checkpoint_every=100000")


def test_ctrl_c_stops_all_ranks_after_the_same_step_and_saves(tmp_path):
    process = started("train", *TINY, *LONG, *PLAIN, *DDP, f"data.path={corpus(tmp_path)}", folder=tmp_path)
    run = training(tmp_path, process)
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 130, said
    assert f"python -m src.train resume={run.relative_to(tmp_path)}" in said
    assert "Traceback" not in said
    assert checkpoint(run)["global_step"] > 0


FORTY = ("trainer.max_steps=40", "trainer.val_every=10")


@pytest.mark.parametrize(
    "devices",
    [pytest.param(DDP, id="ddp", marks=pytest.mark.slow), pytest.param(FSDP, id="fsdp2", marks=pytest.mark.slow)],
)
def test_a_run_that_loses_a_process_ends_and_goes_on_with_fewer(tmp_path, devices):
    """With the same global batch and data order: step for step the losses of a run of one process, never broken."""
    (tmp_path / "unbroken").mkdir()
    unbroken = train_tiny(tmp_path / "unbroken", *PLAIN, *FORTY)
    process = cold_started(*TINY, *PLAIN, *FORTY, *devices, f"data.path={corpus(tmp_path)}", folder=tmp_path)
    run = training(tmp_path, process, rows=8)
    said = said_without_second_rank(process)
    assert "error: rank 1 ended with exit code 137, so all ranks were stopped" in said
    assert f"another rank is gone; go on with:  python -m src.train resume={run.relative_to(tmp_path)}" in said
    assert "Traceback" not in said + (run / "train.log").read_text()
    assert len(losses(run)) < 40, "the kill came too late"
    go_on(run, "trainer.devices=1", "trainer.strategy=auto")
    assert "going on from step" in (run / "train.log").read_text()
    assert_same_losses(run, unbroken)
    assert_same_training(run, unbroken)


def training(folder: Path, process: subprocess.Popen[str] | Started, rows: int = 3) -> Path:
    """Wait until the run's first steps are logged and give its directory."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        assert process.poll() is None, process.stdout.read() if process.stdout else ""
        logs = list((folder / "runs").glob("*/metrics.csv"))
        if logs and len(logs[0].read_text().splitlines()) > rows:
            return logs[0].parent
        time.sleep(0.05)
    raise AssertionError("no step was ever logged")
