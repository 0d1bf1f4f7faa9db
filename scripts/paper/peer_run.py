"""A job of another library's model: ``python -m scripts.paper.peer_run RUN_DIR`` trains x-transformers as RUN_DIR says.

It stands where ``src.job`` stands for a model of ours, and leaves what a report reads: metrics.csv, summary.json,
provenance.jsonl, train.log. The model and its steps are those of ``scripts.bench.quality``. A stop signal saves the
state, and the same command goes on from there.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import logging
import math
import os
import signal
import sys
import time
from dataclasses import asdict, dataclass, field
from types import FrameType

import torch
from torch import Tensor

from scripts.bench.quality_models import Peer, synchronize
from scripts.bench.quality_rows import PEER
from scripts.bench.quality_run import score, training
from src.callbacks.stop_signal import Interrupted
from src.config.command_line import say_error
from src.errors import UserError
from src.jobs import build, shared
from src.loggers.metrics_csv import MetricsCsv
from src.processes.ranks import STOPPED, TOLD, end_with_supervisor
from src.runs import lock
from src.runs.log import set_up_logging
from src.runs.provenance import append_provenance
from src.runs.run import Run
from src.system.atomic_files import written_whole
from src.system.signals import stops

STATE = "state.pt"  # in the run's folder of checkpoints, from a stop to the end
log = logging.getLogger("src.peer")


class LoggedPeer(Peer):
    """A peer that keeps the loss of its last step on the device."""

    last: Tensor

    def loss(self, x: Tensor) -> Tensor:
        """Mean over all bytes."""
        loss = super().loss(x)
        self.last = loss.detach()
        return loss


@dataclass
class Progress:
    """How far a run is.

    Args:
        step: optimizer steps done.
        seconds: of training.
        rows: of metrics.csv.
        best: lowest bits per byte of a validation.
        best_step: where that was.
        weights: of then, on the CPU.
    """

    step: int = 0
    seconds: float = 0.0
    rows: int = 0
    best: float = math.inf
    best_step: int = 0
    weights: dict[str, Tensor] = field(default_factory=dict)


class Stop:
    """Notes a stop signal; before there is anything to save the process ends at once."""

    def __init__(self) -> None:
        self.asked = 0
        self.training = False
        for signum in stops():
            signal.signal(signum, self._note)

    def _note(self, signum: int, frame: FrameType | None) -> None:
        if not self.training:
            os._exit(STOPPED + signum)
        self.asked = signum


class PeerRun:
    """One run: its steps, validations and files.

    Args:
        run: the run directory.
        stop: says whether to stop.

    Raises:
        UserError: the package or the data are missing.
    """

    def __init__(self, run: Run, stop: Stop) -> None:
        self.run, self.stop, self.config = run, stop, run.config()
        self.data = shared.prepared_data(self.config)
        self.device = torch.device("cuda" if build.on_gpu(self.config) else "cpu")
        torch.set_float32_matmul_precision("high")
        self.steps = self.config.trainer.max_steps or self.data.steps(self.config.trainer.epochs)
        self.step_bytes = self.config.data.batch_size * self.config.data.context
        self.model = LoggedPeer(self.device)
        self.model.begin(self.config, self.steps)
        self.file = run.checkpoints / STATE
        self.at = Progress()
        self.generators: list[Tensor] = []
        if self.file.is_file():
            self._load()
        self.csv = MetricsCsv(run.path / "metrics.csv", after_step=self.at.step, count=self.at.rows)
        self.logged, self.mark = self.at.step, 0.0
        """Step of the last entry of metrics.csv, and when the clock was last read."""

    def train(self) -> None:
        """Train to the end, then score the test split by the best weights, as ``src.job`` does.

        Raises:
            Interrupted: a signal asked to stop; the state is saved.
            UserError: the loss is not finite.
        """
        every, keys = self.config.trainer.log_every, self.config.trainer
        if self.at.step < self.steps:
            batches = training(self.data, self.config, self.steps, self.device, self.at.step)
            x = next(batches)
            self.model.ready(x)
        self._seed()
        self.stop.training, self.mark = True, time.perf_counter()
        while self.at.step < self.steps:
            if self.stop.asked:
                self._settle()
                self._save()
                raise Interrupted(self.stop.asked)
            self.model.step(self.at.step, x)
            self.at.step += 1
            due = self.at.step % keys.val_every == 0 or self.at.step == self.steps
            if self.at.step % every == 0 or due:
                self._log()
            if due:
                self._validate()
            if self.at.step < self.steps:
                x = next(batches)
        self._conclude()

    def _seed(self) -> None:
        torch.manual_seed(self.config.seed)
        if self.generators:
            torch.set_rng_state(self.generators[0])
        if len(self.generators) > 1:
            torch.cuda.set_rng_state(self.generators[1])

    def _settle(self) -> None:
        """Wait for the device, and count the time since the clock was last read."""
        synchronize(self.device)
        now = time.perf_counter()
        self.at.seconds, self.mark = self.at.seconds + now - self.mark, now

    def _spent(self) -> dict[str, float]:
        nbytes = float(self.at.step * self.step_bytes)
        return {"train/bytes_seen": nbytes, "train/seconds": round(self.at.seconds, 3)}

    def _log(self) -> None:
        """Log the training since the last entry."""
        before = self.at.seconds
        self._settle()
        bits, steps = float(self.model.last) / math.log(2), self.at.step - self.logged
        if not math.isfinite(bits):
            raise UserError(f"the loss is {bits} at step {self.at.step:,}: take a lower optimizer.learning_rate")
        per_step = max(self.at.seconds - before, 1e-9) / steps
        self.logged = self.at.step
        figures = {
            "train/bits_per_byte": bits, "train/learning_rate": self.model.optimizer.param_groups[0]["lr"],
            **self._spent(), "train/tokens_per_second": self.step_bytes / per_step, "train/step_ms": 1000 * per_step,
        }  # fmt: skip
        if (peak := self.model.peak_gib()) is not None:
            figures["train/peak_memory_gib"] = peak
        self.csv.log_metrics(figures, step=self.at.step)

    def _validate(self) -> None:
        """Score the validation split, with the clock stopped, and keep the best weights."""
        bits = score(self.model, self.data, "val")
        log.info("step %d of %d: val/bits_per_byte %.4f (%s)", self.at.step, self.steps, bits, self.data.label)
        row = {"val/bits_per_byte": bits, "data/partial": float(self.data.partial), **self._spent()}
        self.csv.log_metrics(row, step=self.at.step)
        if not math.isfinite(bits):
            raise UserError(f"the validation is {bits} at step {self.at.step:,}: take a lower optimizer.learning_rate")
        if bits < self.at.best:
            self.at.best, self.at.best_step = bits, self.at.step
            self.at.weights = {name: w.detach().cpu().clone() for name, w in self.model.network.state_dict().items()}
        self.mark = time.perf_counter()

    def _save(self) -> None:
        """Write down all that the next start needs."""
        self.csv.save()
        self.at.rows = self.csv.count
        generators = [torch.get_rng_state()]
        if self.device.type == "cuda":
            generators.append(torch.cuda.get_rng_state())
        model = self.model
        state = {
            "at": asdict(self.at), "network": model.network.state_dict(), "optimizer": model.optimizer.state_dict(),
            "schedule": model.schedule.state_dict(), "generators": generators,
        }  # fmt: skip
        with written_whole(self.file) as file:
            torch.save(state, file)

    def _load(self) -> None:
        """Take back what ``_save`` wrote."""
        state = torch.load(self.file, map_location="cpu", weights_only=True)
        self.model.network.load_state_dict(state["network"])
        self.model.optimizer.load_state_dict(state["optimizer"])
        self.model.schedule.load_state_dict(state["schedule"])
        self.at, self.generators = Progress(**state["at"]), state["generators"]
        log.info("going on from step %s", f"{self.at.step:,}")

    def _conclude(self) -> None:
        """Score the test split, and write summary.json."""
        self.model.network.load_state_dict(self.at.weights)
        test = score(self.model, self.data, "test")
        summary = {
            "status": "finished", "train/steps": self.at.step, "train/seconds": round(self.at.seconds, 1),
            "data/label": self.data.label, "data/partial": self.data.partial,
            "model/parameters": sum(p.numel() for p in self.model.network.parameters()),
            "val/bits_per_byte": self.at.best, "val/best_step": self.at.best_step,
            "test/bits_per_byte": test, "test/bytes": self.data.test_bytes, "peer/version": version(),
        }  # fmt: skip
        self.run.update_summary(summary)
        self.file.unlink(missing_ok=True)
        log.info("test/bits_per_byte %.4f; everything is in %s", test, self.run.path)


def version() -> str | None:
    """Version of the package; None where it does not say."""
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.version(PEER)
    return None


def main(arguments: list[str]) -> int:
    """Do the job of one run directory; its exit code, as of ``src.job``."""
    try:
        run = Run.find(arguments[0])
        lock.take(run.path)
        end_with_supervisor()
        stop = Stop()
        set_up_logging(run.path / "train.log")
        job = PeerRun(run, stop)
        append_provenance(run.provenance_file, job.data.facts())
        job.train()
    except UserError as error:
        say_error(error)
        return TOLD
    except Interrupted as interrupted:
        log.info("stopped by %s at a whole step; the same command goes on", interrupted)
        return STOPPED + interrupted.signum
    except Exception as error:
        return shared.failed(error, lambda: None, lambda found: log.error("the job failed", exc_info=found))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
