"""Throughput figures: what is logged, when, and that nothing is read between two log entries."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from src.callbacks.figures import STATUS, Figures, LoaderClock
from src.callbacks.progress import short_figures
from src.training.flops import RunFlops, TrainingFlops
from src.training.language_model import LanguageModel
from src.training.step_guard import StepGuard

FLOPS = TrainingFlops(products=600, attention=400, dense_attention=1400, muon=500)


class Model(LanguageModel):
    """Counts how often its loss is read."""

    def __init__(self) -> None:
        torch.nn.Module.__init__(self)
        self.reads = 0
        self.guard = StepGuard()

    def step_bits_per_byte(self) -> torch.Tensor:
        self.reads += 1
        return torch.tensor(2.5)


class Logger:
    def __init__(self) -> None:
        self.rows: list[tuple[int, dict[str, float]]] = []

    def log_metrics(self, metrics: dict[str, float], step: int) -> None:
        self.rows.append((step, metrics))


def trainer(step: int = 0) -> Any:
    return SimpleNamespace(
        global_step=step,
        max_steps=100,
        profiler=None,
        lightning_module=Model(),
        loggers=[Logger()],
        strategy=SimpleNamespace(root_device=torch.device("cpu"), reduce=lambda value, reduce_op: value),
        optimizers=[SimpleNamespace(param_groups=[{"lr": 0.25}])],
        precision_plugin=None,
        callback_metrics={"val/bits_per_byte": torch.tensor(3.0)},
    )


def step(figures: Figures, t: Any, seconds: float = 0.0, waiting: float = 0.0) -> None:
    t.profiler.start("[_TrainingEpochLoop].train_dataloader_next")
    time.sleep(waiting)
    t.profiler.stop("[_TrainingEpochLoop].train_dataloader_next")
    figures.on_train_batch_start(t, t.lightning_module, None, 0)
    time.sleep(seconds)
    t.global_step += 1
    figures.on_train_batch_end(t, t.lightning_module, None, None, 0)


def test_nothing_is_read_between_log_entries():
    figures, t = Figures(5, 100, "toy", False), trainer()
    figures.on_train_start(t, t.lightning_module)
    for _ in range(12):
        step(figures, t)
    assert t.lightning_module.reads == 2
    assert [at for at, _ in t.loggers[0].rows] == [5, 10]


def test_speed_waiting_and_utilisation_are_of_the_steps_since_the_last_entry():
    figures, t = Figures(4, 1000, "toy", False, RunFlops(FLOPS), peak_flops=1e6), trainer()
    figures.on_train_start(t, t.lightning_module)
    for _ in range(4):
        step(figures, t)
    for _ in range(4):
        step(figures, t, seconds=0.015, waiting=0.005)
    row = t.loggers[0].rows[1][1]
    ms = row["train/step_ms"]
    assert 20 <= ms < 60  # sleeping may last longer, never shorter
    assert row["train/tokens_per_second"] == pytest.approx(1000 / (ms / 1000))
    assert row["train/mfu"] == pytest.approx(1000 / (ms / 1000) / 1e6)
    assert row["train/mfu_dense_equivalent"] == pytest.approx(2 * row["train/mfu"])
    assert row["train/mfu_muon"] == pytest.approx(row["train/mfu"] / 2)
    assert 5 / ms <= row["train/data_wait"] < 0.75
    assert row["train/bytes_seen"] == 8000


def test_no_utilisation_where_the_peak_is_not_known():
    figures, t = Figures(1, 1000, "toy", False, RunFlops(FLOPS), peak_flops=None), trainer()
    figures.on_train_start(t, t.lightning_module)
    step(figures, t)
    assert not [name for name in t.loggers[0].rows[0][1] if "mfu" in name]
    assert "train/peak_memory_gib" not in t.loggers[0].rows[0][1]


def test_validation_and_what_follows_it_are_no_training_time():
    figures, t = Figures(2, 1000, "toy", False), trainer()
    figures.on_train_start(t, t.lightning_module)
    step(figures, t)
    figures.on_validation_start(t, t.lightning_module)
    time.sleep(0.2)
    figures.on_validation_end(t, t.lightning_module)
    time.sleep(0.2)  # a sample, a checkpoint
    step(figures, t)
    assert t.loggers[0].rows[-1][1]["train/step_ms"] < 100


def test_seconds_of_training_leave_validation_out_and_go_on_with_the_run():
    """A second of sleep never counts where it is in a validation, always where it is in a step."""
    figures, t = Figures(1, 1000, "toy", False), trainer()
    figures.on_train_start(t, t.lightning_module)
    step(figures, t, seconds=0.1)
    figures.on_validation_start(t, t.lightning_module)
    time.sleep(0.3)
    figures.on_validation_end(t, t.lightning_module)
    saved = figures.state_dict()
    trained, validated = (row for _, row in t.loggers[0].rows)
    assert 0.1 <= trained["train/seconds"] <= validated["train/seconds"] < 0.4
    assert validated["train/seconds"] == pytest.approx(saved["seconds"], abs=1e-3)
    assert trained["train/bytes_seen"] == validated["train/bytes_seen"] == 1000
    resumed, t = Figures(1, 1000, "toy", False), trainer(step=1)
    resumed.load_state_dict(saved)
    resumed.on_train_start(t, t.lightning_module)
    step(resumed, t, seconds=0.1)
    assert round(saved["seconds"] + 0.1, 3) <= t.loggers[0].rows[0][1]["train/seconds"] < 0.6
    assert resumed.whole()["train/step_ms"] < 300  # the speed is of this process alone


def test_a_checkpoint_in_the_middle_of_a_row_holds_the_seconds_until_then():
    figures, t = Figures(10, 1000, "toy", False), trainer()
    figures.on_train_start(t, t.lightning_module)
    step(figures, t, seconds=0.1)
    assert figures.state_dict()["seconds"] >= 0.1


def test_on_a_processor_memory_is_that_of_the_process():
    figures, t = Figures(1, 1000, "toy", False), trainer()
    figures.on_train_start(t, t.lightning_module)
    step(figures, t)
    row = t.loggers[0].rows[0][1]
    if not STATUS.exists():
        assert "train/peak_rss_gib" not in row
        return
    assert 0.05 < row["train/peak_rss_gib"] < 64  # Python and PyTorch alone take more than the first
    step(figures, t)
    assert figures.whole()["train/peak_rss_gib"] == t.loggers[0].rows[1][1]["train/peak_rss_gib"]


def test_the_run_s_speed_leaves_compiling_out():
    """Until the first log entry kernels are compiled; a run that ends before one counts them all the same."""
    figures, t = Figures(2, 1000, "toy", False), trainer()
    assert figures.whole() == {}
    figures.on_train_start(t, t.lightning_module)
    step(figures, t, seconds=0.3)
    figures.on_train_end(t, t.lightning_module)
    assert 0 < figures.whole()["train/tokens_per_second"] <= 1000 / 0.3
    for _ in range(5):
        step(figures, t, seconds=0.01)
    figures.on_train_end(t, t.lightning_module)
    assert figures.whole()["train/tokens_per_second"] > 1000 / 0.1


def test_only_the_training_loader_counts():
    clock = LoaderClock()
    for name in ("[_EvaluationLoop].val_next", "run_training_batch"):
        clock.start(name)
        time.sleep(0.01)
        clock.stop(name)
    assert clock.waited == 0


def test_figures_on_the_bar():
    figures = {
        "train/bits_per_byte": 1.03214,
        "train/tokens_per_second": 412_345.0,
        "train/step_ms": 59.61,
        "val/bits_per_byte": 1.0512,
        "train/mfu": 0.412,
        "train/learning_rate": 0.1,
    }
    assert short_figures(figures) == "1.032 bits/byte · 412 kB/s · 59.6 ms · MFU 41% · val 1.051"
    assert short_figures({}) == ""
