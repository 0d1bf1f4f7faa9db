"""The scaling bench: what it would run, and that a row that does not train as one device does shows no time."""

import gc
import json
import math
import signal
import subprocess
import sys
import time
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback
from torch.autograd import DeviceType

from scripts.bench.scaling import configured, made_text, planned
from scripts.bench.scaling_rank import covered, shares, trained
from scripts.bench.scaling_table import Row, disagreement, efficiency, refusal, report
from src.training.language_model import LanguageModel
from tests.tiny_runs import environment

FOUND = {
    "losses": [8.0, 7.0],
    "norms": [1.0, 2.0],
    "seconds": 0.5,
    "share": None,
    "alone": None,
    "peak_gib": 1,
}


def options(**changes) -> Namespace:
    asked = {
        "model": ["tiny"],
        "devices": "1,2,4",
        "strategy": None,
        "compression": None,
        "scaling": None,
        "device": "cpu",
    }
    return Namespace(**{**asked, **changes})


def rows(compression: str = "none", **second) -> list[Row]:
    """One device with batches 2 and 4, and two devices with 4."""
    return [
        Row("tiny", 1, "one", "none", 2, found=FOUND),
        Row("tiny", 1, "one", "none", 4, found={**FOUND, "seconds": 1.0}),
        Row(
            "tiny", 2, "ddp", compression, 4, found={**FOUND, "seconds": 0.625, "share": 0.25, "alone": 0.125, **second}
        ),
    ]


def test_the_plan_has_a_reference_for_every_batch_and_times_what_is_compared():
    found = planned(options())
    alone = {row.batch: row.timed for row in found if row.devices == 1}
    assert alone == {2: True, 8: True, 4: False}
    assert len([row for row in found if row.devices == 2]) == 4  # two strategies, weak and strong
    assert len([row for row in found if row.devices == 4]) == 2  # the largest is both
    halves = planned(options(compression=["none", "fp16"], strategy=["ddp"], scaling=["weak"], devices="2"))
    assert [row.name for row in halves] == [
        "tiny-1-one-none-2", "tiny-1-one-none-4", "tiny-2-ddp-none-4", "tiny-2-ddp-fp16-4",
    ]  # fmt: skip


def test_weak_and_strong_efficiency():
    found = rows()
    assert efficiency(found[2], found, "weak") == pytest.approx(0.5 / 0.625)
    assert efficiency(found[2], found, "strong") == pytest.approx(1.0 / 0.625 / 2)
    text = report(found, options(devices="1,2"))
    assert "| 2 | ddp | none | 4 | 625.0 | 0.00 | 80% | 25% (12%) | 1.00 | 0 | 0 |" in text


@pytest.mark.parametrize(
    ("second", "reason"),
    [
        ({"losses": [8.0, 7.01]}, "not as one device: loss off by 0.01 bits per byte, gradient norm by 0"),
        ({"norms": [1.0, 2.1]}, "not as one device: loss off by 0 bits per byte, gradient norm by 0.05"),
        ({"losses": [8.0, 7.0005]}, "not as one device: loss off by 0.0005 bits per byte, gradient norm by 0"),
        ({"losses": [8.0, math.nan]}, "not as one device: loss off by inf bits per byte, gradient norm by 0"),
        ({"error": "out of memory"}, "out of memory"),
    ],
)
def test_a_row_that_differs_from_one_device_shows_no_time(second, reason):
    found = rows(**second)
    assert refusal(found[2], found) == reason
    assert "625" not in report(found, options(devices="1,2"))
    assert refusal(found[0], found) is None


@pytest.mark.parametrize("compression", ["bf16", "fp16"])
def test_half_precision_gradients_may_differ_by_more(compression):
    found = rows(compression, losses=[8.0, 7.0005], norms=[1.0, 2.004])
    assert refusal(found[2], found) is None
    assert disagreement(found[2].found, found[1].found) == pytest.approx((0.0005, 0.002))
    forgotten = rows(compression, norms=[1.0, 2.08])  # 4%: a rank that knows its own gradients only
    assert "gradient norm by 0.04" in (refusal(forgotten[2], forgotten) or "")


class Event:
    def __init__(self, name: str, start: float, end: float, on_gpu: bool = True) -> None:
        self.name, self.time_range = name, Namespace(start=start, end=end)
        self.device_type = DeviceType.CUDA if on_gpu else DeviceType.CPU


def test_communication_is_told_from_work():
    assert covered([(0, 2), (1, 3), (5, 6)]) == 4
    kernels = [Event("ncclDevKernel_AllReduce", 0, 40), Event("gemm", 10, 30), Event("FSDP::all_gather", 0, 100)]
    assert shares(kernels, 100) == (0.4, 0.2)
    share, alone = shares([Event("gloo:all_reduce", 0, 10, on_gpu=False)], 100) or (0, 0)
    assert share == 0.1 and math.isnan(alone)
    assert shares([Event("gemm", 0, 10)], 100) is None


class Models(Callback):
    """Counts the models that are in memory when training begins."""

    def __init__(self, counts: list[int]) -> None:
        self.counts = counts

    def on_train_start(self, trainer, pl_module):
        self.counts.append(sum(type(thing) is LanguageModel for thing in gc.get_objects()))


def test_what_was_trained_first_takes_no_memory_from_the_next(tmp_path):
    small = options(overrides=["model.width=16", "trainer.log_every=1"])
    config = configured(rows()[0], small, made_text(tmp_path / "text", 100_000))
    counts: list[int] = []
    kept = [trained(config, tmp_path, 1, Models(counts)) for _ in range(3)]
    assert all(rows[0]["train/bits_per_byte"] == pytest.approx(8) for rows, _ in kept)
    assert counts == [counts[0]] * 3


def bench(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "scripts.bench.scaling", *arguments]
    return subprocess.run(line, cwd=folder, env=environment(), capture_output=True, text=True, timeout=240, check=False)


@pytest.mark.slow
def test_two_processes_are_measured_as_the_framework_runs_them(tmp_path):
    small = ("--device", "cpu", "--model", "tiny", "--steps", "2", "--warm", "1", "--strategy", "ddp", "model.width=16")
    done = bench(*small, "--output", "out.json", folder=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.rstrip().splitlines()[-1].startswith("| 2 | ddp | none | 4 | ")
    found = {"-".join(map(str, (row["model"], row["devices"], row["batch"]))): row["found"]
             for row in json.loads((tmp_path / "out.json").read_text())["rows"]}  # fmt: skip
    assert found["tiny-2-4"]["losses"] == pytest.approx(found["tiny-1-4"]["losses"], abs=1e-5)
    assert found["tiny-2-4"]["losses"] != pytest.approx(found["tiny-1-2"]["losses"], abs=1e-3)
    assert 0 < found["tiny-2-4"]["share"] < 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("signum", "moment"),
    [(signal.SIGINT, 0.5), (signal.SIGINT, 9), (signal.SIGTERM, 9)],
    ids=["Ctrl-C-while-ranks-start", "Ctrl-C-while-they-train", "SIGTERM-while-they-train"],
)
def test_a_signal_stops_the_bench_and_keeps_the_rows_that_were_done(tmp_path, signum, moment):
    line = [sys.executable, "-m", "scripts.bench.scaling", "--device", "cpu", "--model", "tiny", "--scaling", "weak",
            "--steps", "400", "--output", "out.json", "model.width=16"]  # fmt: skip
    with subprocess.Popen(line, cwd=tmp_path, env=environment(), text=True, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT) as running:  # fmt: skip
        assert "tiny-1-one-none-4: losses kept\n" in running.stdout  # reads that far
        time.sleep(moment)
        running.send_signal(signum)
        rest, _ = running.communicate(timeout=60)
    assert running.returncode == 130
    assert rest == "stopped: the rows that were done are in out.json\n"
    found = [row["found"] for row in json.loads((tmp_path / "out.json").read_text())["rows"]]
    assert [bool(row) for row in found] == [True, True, False, False]
    assert found[0]["seconds"] > 0


@pytest.mark.skipif(torch.cuda.is_available(), reason="there are GPUs")
def test_without_gpus_it_says_what_works(tmp_path):
    done = bench(folder=tmp_path)
    assert done.returncode == 2
    assert done.stderr == "error: scripts.bench.scaling needs CUDA GPUs, found none: see --device cpu --model tiny\n"
