"""One process of ``scripts.bench.scaling``: trains each row of a request as the framework does, and measures it.

``python -m scripts.bench.scaling_rank FOLDER`` reads FOLDER/request.json, a list of rows; ``src.processes.ranks``
starts one process a device. The first one writes FOLDER/ROW.json for every row that is done.
"""

from __future__ import annotations

import signal

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # there is nothing to save, and its parent says that it stopped

import gc
import json
import os
import sys
import time
from argparse import Namespace
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import Logger
from torch.profiler import ProfilerActivity, profile

from src.callbacks.figures import Figures
from src.callbacks.stop_signal import StopSignal
from src.config.command_line import say_error
from src.config.schema import Config
from src.errors import UserError
from src.jobs import build
from src.jobs.shared import SAME_MISTAKE, prepared_data
from src.processes.ranks import STOPPED, end_with_supervisor, first_process
from src.runs.log import quiet_libraries
from src.runs.run import Run, write_atomically
from src.training import build_model

TRACED = 3  # steps whose communication is looked at
COMMUNICATION = ("nccl", "gloo")
NO_WORK = ("nccl:", "fsdp::", "profilerstep", "optimizer.", "record_param_comms")  # spans that only name others


class Keep(Logger):
    """Keeps what is logged."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[dict[str, float]] = []

    @property
    def name(self) -> str:  # noqa: D102
        return "kept"

    @property
    def version(self) -> str:  # noqa: D102
        return ""

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:  # noqa: D102
        self.rows.append(dict(metrics))

    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:  # noqa: D102
        pass


class Agreement(StopSignal):
    """Lets ranks agree after every batch as in training, where a signal stops all of them; here it ends each at once.

    Without it Lightning would wait for the device at every batch, to the same end.
    """

    def signals(self) -> list[int]:
        """Give none."""
        return []

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take SIGTERM from Lightning, which would end training as if all were well."""
        super().on_train_start(trainer, pl_module)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


class Clock(Callback):
    """Times the steps from ``warm`` on until ``last``, and traces the communication of a few more on the first process.

    Args:
        warm: optimizer steps that compile, capture and warm up.
        last: optimizer step with which the time ends.
    """

    def __init__(self, warm: int, last: int) -> None:
        self.warm, self.last = warm, last
        self.seconds = 0.0
        self.communication: tuple[float, float] | None = None
        """Share of the traced time in which devices exchange, and in which they do nothing else; None if unknown."""
        self._began = 0.0
        self._tracer: profile | None = None

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Look at the clock after the steps that matter."""
        if (batch_idx + 1) % trainer.accumulate_grad_batches:
            return
        step = trainer.global_step
        if step == self.warm:
            self._began = now(trainer)
        elif step == self.last:
            self.seconds = now(trainer) - self._began
            if first_process() and trainer.world_size > 1:
                on_gpu = trainer.strategy.root_device.type == "cuda"
                self._tracer = profile(activities=[ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU])
                self._tracer.start()
            self._began = now(trainer)
        elif step == self.last + TRACED and self._tracer is not None:
            spent = now(trainer) - self._began
            self._tracer.stop()
            self.communication = shares(self._tracer.events() or [], spent * 1e6)


def now(trainer: Trainer) -> float:
    """Wait for the device and read the clock."""
    if trainer.strategy.root_device.type == "cuda":
        torch.cuda.synchronize(trainer.strategy.root_device)
    return time.perf_counter()


def shares(events: Iterable[Any], microseconds: float) -> tuple[float, float] | None:
    """Give the share of a time in which devices exchange, and in which they exchange and compute nothing.

    Args:
        events: of a profile: those of the GPU if there are any, else of the processor.
        microseconds: how long the profile took.
    """
    from torch.autograd import DeviceType

    found = list(events)
    on_gpu = [event for event in found if event.device_type == DeviceType.CUDA]
    used = on_gpu or found
    spans = [(event.time_range.start, event.time_range.end, event.name.lower()) for event in used]
    talk = [span[:2] for span in spans if any(mark in span[2] for mark in COMMUNICATION)]
    if not talk:
        return None
    if not on_gpu:  # gloo's threads: what the cores do meanwhile is not seen beside them
        return covered(talk) / microseconds, float("nan")
    work = [span[:2] for span in spans if not any(mark in span[2] for mark in COMMUNICATION)
            and not span[2].startswith(NO_WORK)]  # fmt: skip
    alone = covered(talk + work) - covered(work)
    return covered(talk) / microseconds, alone / microseconds


def covered(spans: list[tuple[float, float]]) -> float:
    """Length of the union of spans."""
    total, reached = 0.0, float("-inf")
    for start, end in sorted(spans):
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total


def trained(
    config: Config, folder: Path, steps: int, *callbacks: Callback
) -> tuple[list[dict[str, float]], dict[str, float]]:
    """Train a new model for some steps with the framework's own trainer; what it logged, and the latest figures."""
    gc.collect()  # what was trained before: trainer, data and model hold each other
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    environment = dict(os.environ)  # Lightning takes WORLD_SIZE out of it at the end
    data = prepared_data(config)
    figures = Figures(
        config.trainer.log_every, config.data.batch_size * config.data.context, data.label, data.partial,
        build_model.run_flops(config), build.peak_flops(config),
    )  # fmt: skip
    kept = Keep()
    trainer = build.trainer(
        config, Run(folder), steps, data.micro_batches(config.trainer.devices), logger=[kept],
        callbacks=[Agreement(), figures, *callbacks], enable_checkpointing=False,
    )  # fmt: skip
    trainer.fit(build_model.language_model(config, steps), datamodule=data)
    os.environ.update(environment)
    return kept.rows, figures.latest


def measured(config: Config, folder: Path, row: dict[str, Any]) -> dict[str, Any]:
    """Check and, if asked, time one row.

    Returns:
        losses, norms: bits per byte and gradient norm of the first steps without dropout.
        seconds: of a step; share, alone: see ``shares``; peak_gib: memory; all of them only for rows to be timed.
    """
    dropout, config.model.dropout = config.model.dropout, 0.0  # masks differ between numbers of devices
    config.trainer.log_every = 1
    rows, _ = trained(config, folder, row["check"])
    found: dict[str, Any] = {
        "losses": [entry["train/bits_per_byte"] for entry in rows],
        "norms": [entry["train/gradient_norm"] for entry in rows],
    }
    if row["steps"]:
        config.model.dropout = dropout
        last = row["warm"] + row["steps"]
        config.trainer.log_every = last  # an entry for the memory, when the time has been taken
        clock = Clock(row["warm"], last)
        _, latest = trained(config, folder, last + TRACED, clock)
        found |= {
            "seconds": clock.seconds / row["steps"],
            "share": clock.communication and clock.communication[0],
            "alone": clock.communication and clock.communication[1],
            "peak_gib": latest.get("train/peak_memory_gib", latest.get("train/peak_rss_gib")),
        }
    return found


def main(arguments: list[str]) -> int:
    """Measure the rows of a request; the exit code."""
    end_with_supervisor()
    quiet_libraries()
    folder = Path(arguments[0])
    for row in json.loads((folder / "request.json").read_text()):
        try:
            found = measured(Run(folder / row["run"]).config(), folder, row)
        except (UserError, torch.OutOfMemoryError) as error:
            if not first_process():
                time.sleep(SAME_MISTAKE)
            told = error if isinstance(error, UserError) else UserError(str(error).splitlines()[0])
            if first_process():
                write_atomically(folder / f"{row['run']}.json", json.dumps({"error": str(told)}))
            say_error(told)
            return 2
        except SystemExit:  # Lightning's, on a SIGTERM before the first step
            return STOPPED + signal.SIGTERM
        if first_process():
            write_atomically(folder / f"{row['run']}.json", json.dumps(found))
            print(f"{row['run']} is done", flush=True)
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
