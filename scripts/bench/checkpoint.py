"""What checkpoints cost a training run: the time that training stands still for one, and how far writing slows steps.

    python -m scripts.bench.checkpoint                      # the paper's enwik8 model (95M), on whatever is here
    python -m scripts.bench.checkpoint --folder /scratch --saves 8

Trains on random bytes through the framework's own trainer and callbacks, and saves whenever the checkpoint before has
been on the disk for a few steps. Training waits for the copy of the state alone (on a GPU not even for that); a thread
writes it to the disk meanwhile. Sequences are short, so that steps pass on a CPU too: the state, which is what is
copied and written, is that of the whole model.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer

from src.callbacks.checkpoints import Checkpoints
from src.callbacks.stop_signal import StopSignal
from src.checkpoint.background import BackgroundWriter
from src.config.composing import composed
from src.jobs import build
from src.runs.log import quiet_libraries
from src.runs.run import Run
from src.training import build_model

ALONE = 8  # steps beside which nothing is written, between two saves
FOR_EVER = 10**6
GIB = 2**30


class TimedWriter(BackgroundWriter):
    """Also notes how long the thread took for each checkpoint, in seconds."""

    def __init__(self, keep: int) -> None:
        super().__init__(keep)
        self.seconds: list[float] = []

    def _work(self, snapshot: dict[str, Any], complete: Callable[[], None], paths: tuple[Path, ...]) -> None:
        began = time.perf_counter()
        super()._work(snapshot, complete, paths)
        self.seconds.append(time.perf_counter() - began)


class TimedCheckpoints(Checkpoints):
    """Also notes how long each save kept training waiting, in seconds; the wait for the one before is not a save's."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.writer: TimedWriter = TimedWriter(keep=1)
        self.stalls: list[float] = []

    def _save(self, trainer: Any, *names: str) -> None:
        self._finish_writing()
        began = time.perf_counter()
        super()._save(trainer, *names)
        self.stalls.append(time.perf_counter() - began)


class Steps(Callback):
    """Notes each step's seconds, and whether a checkpoint was being written at its beginning; asks for the saves.

    Args:
        writer: of the checkpoints.
        stop: takes the wish for a save.
        saves: to ask for before training ends.
    """

    def __init__(self, writer: BackgroundWriter, stop: StopSignal, saves: int) -> None:
        self.writer = writer
        self.stop = stop
        self.left = saves
        self.alone: list[float] = []
        self.beside: list[float] = []
        self._quiet = 0

    def on_train_batch_start(self, *arguments: Any) -> None:
        """Start the clock, behind whatever the device still does."""
        _synchronize()
        self._busy, self._began = self.writer.busy, time.perf_counter()

    def on_train_batch_end(self, trainer: Trainer, *arguments: Any) -> None:
        """Stop it; saves come later, as the last of all callbacks."""
        _synchronize()
        (self.beside if self._busy else self.alone).append(time.perf_counter() - self._began)
        self._quiet = 0 if self._busy else self._quiet + 1
        if self._quiet == ALONE:
            self._quiet = 0
            self.stop.save_asked = self.left > 0
            trainer.should_stop = self.left == 0
            self.left -= 1


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.bench.checkpoint",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--saves", type=int, default=5, help="checkpoints that count (default: 5)")
    parser.add_argument("--context", type=int, default=256, help="bytes of a sequence (default: 256)")
    parser.add_argument("--minutes", type=float, default=5.0, help="between two checkpoints of a run (default: 5)")
    parser.add_argument("--folder", help="disk to write to (default: that of temporary files)")
    options = parser.parse_args()
    quiet_libraries()
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        checkpoints, steps, parameters, size = measured(Path(name), options.saves, options.context)
    report(checkpoints, steps, parameters, size, 60 * options.minutes)


def measured(folder: Path, saves: int, context: int) -> tuple[TimedCheckpoints, Steps, int, int]:
    """Train with a first save, whose memory is new, and ``saves`` more; also gives parameters and bytes of a file."""
    (folder / "bytes").write_bytes(os.urandom(64 * context))
    config = composed(
        ["experiment=enwik8", "recipe=paper", "data=bytes", f"data.path={folder / 'bytes'}", f"data.context={context}",
         "data.batch_size=1", "data.workers=0", f"paths.output_dir={folder}", "trainer.progress=false",
         "trainer.checkpoint_every=null", "trainer.checkpoint_minutes=null", f"trainer.val_every={FOR_EVER}"]
    )  # fmt: skip
    run, stop = Run.create(config), StopSignal()
    about = {"config": run.plain_config()}
    checkpoints = TimedCheckpoints(run.checkpoints, None, None, 1, stop, about)
    steps = Steps(checkpoints.writer, stop, saves + 1)
    data = build.data_module(config)
    data.setup()
    model = build_model.language_model(config, FOR_EVER)
    trainer = build.trainer(
        config, run, FOR_EVER, 1, logger=False, callbacks=[stop, steps, checkpoints], limit_val_batches=1
    )
    trainer.fit(model, datamodule=data)
    size = (run.checkpoints / "last.ckpt").stat().st_size
    del checkpoints.stalls[saves + 1 :], checkpoints.writer.seconds[saves + 1 :]  # behind them, those at the end
    return checkpoints, steps, model.model.parameter_count(), size


def report(checkpoints: TimedCheckpoints, steps: Steps, parameters: int, size: int, interval: float) -> None:
    """Print what was measured and where."""
    first, *stalls = checkpoints.stalls
    writing = checkpoints.writer.seconds[1:]
    alone = statistics.median(steps.alone)
    slowed = sum(max(0.0, step - alone) for step in steps.beside) / len(checkpoints.stalls)
    stall = statistics.median(stalls)
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {os.cpu_count()} cores"
    print(f"{gpu}, {platform.machine()}, torch {torch.__version__}, commit {commit.stdout.strip() or 'unknown'}")
    print(f"{parameters / 1e6:.1f}M parameters, {size / GIB:.2f} GiB a file, {len(stalls)} saves behind the first")
    print("| | seconds | share of training, one every " + f"{interval / 60:g} minutes |")
    print("| --- | ---: | ---: |")
    rows = {
        "training stands still for a save (median)": stall,
        "most of all saves": max(stalls),
        "the first save of a process, whose memory is new": first,
        "steps beside the writing thread take longer by, in all": slowed,
        "both together (median save)": stall + slowed,
    }
    for name, seconds in rows.items():
        print(f"| {name} | {seconds:.3f} | {seconds / interval:.3%} |")
    print(f"| the writing thread's own time (median) | {statistics.median(writing):.2f} | none: beside training |")
    print(f"a step alone: {alone:.3f} s")


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
