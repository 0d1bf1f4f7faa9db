"""Tiny real runs for tests: the commands as a user types them, on a small file of bytes."""

import copy
import functools
import itertools
import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import torch

from src.config.command_line import CONF
from src.config.composing import composed as composed_of
from src.config.schema import Config
from tests import warm

TINY = (
    "data=bytes",
    "data.context=64",
    "data.batch_size=4",
    "attention.stride=8",
    "attention.summary=2",
    "model.depth=2",
    "model.width=16",
    "model.heads=2",
    "model.dropout=0.2",
    "optimizer.warmup_steps=2",
    "trainer.max_steps=12",
    "trainer.val_every=5",
    "trainer.checkpoint_every=3",
    "trainer.log_every=1",
    "logger.kind=csv",
    "logger.sample_bytes=8",
    "logger.attention_picture=false",
)


def composed(*words: str) -> Config:
    """A configuration as src.train has it before its checks."""
    return copy.deepcopy(_composed(words))


@functools.cache
def _composed(words: tuple[str, ...]) -> Config:
    return composed_of(words, checked=False)


def environment(**changes: str) -> dict[str, str]:
    """What a user's shell would have, with this checkout first among the places to import from."""
    path = os.pathsep.join(filter(None, (str(CONF.parent), os.environ.get("PYTHONPATH"))))
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path, **changes}


def command(name: str, *arguments: str, folder: Path, **env: str) -> subprocess.CompletedProcess[str]:
    """Run what ``python -m src.NAME`` runs in ``folder`` to its end, in a process that has its imports already."""
    return warm.command(name, arguments, folder, environment(**env))


def cold_command(name: str, *arguments: str, folder: Path, **env: str) -> subprocess.CompletedProcess[str]:
    """Run ``python -m src.NAME`` in ``folder`` to its end."""
    line = [sys.executable, "-m", f"src.{name}", *arguments]
    return subprocess.run(
        line, cwd=folder, env=environment(**env), capture_output=True, text=True, timeout=240, check=False
    )


def started(name: str, *arguments: str, folder: Path) -> warm.Started:
    """Start what ``python -m src.NAME`` starts, in a process that has its imports already, and return at once."""
    return warm.started(name, arguments, folder, environment())


def cold_started(*arguments: str, folder: Path) -> subprocess.Popen[str]:
    """Start ``python -m src.train`` and return at once."""
    line = [sys.executable, "-m", "src.train", *arguments]
    return subprocess.Popen(
        line, cwd=folder, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def corpus(folder: Path, size: int = 20_000) -> Path:
    """A file of words in random order: something to learn, the same every time."""
    words = [b"sparse ", b"attention ", b"window ", b"column ", b"summary ", b"block "]
    path = folder / "corpus.txt"
    path.write_bytes(b"".join(random.Random(0).choices(words, k=size // 7))[:size])
    return path


def train_tiny(folder: Path, *changes: str, **env: str) -> Path:
    """Train to the end, without a library's warning on the terminal, and return the run directory."""
    done = command("train", *TINY, f"data.path={corpus(folder)}", *changes, folder=folder, **env)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Warning: " not in done.stderr, done.stderr
    return only_run(folder)


def only_run(folder: Path) -> Path:
    (run,) = (folder / "runs").iterdir()
    return run


def summary(run: Path) -> dict[str, object]:
    return json.loads((run / "summary.json").read_text())


def weights(run: Path, which: str = "last") -> dict[str, torch.Tensor]:
    return torch.load(run / "checkpoints" / f"{which}.ckpt", weights_only=True)["state_dict"]


FIGURES = ("val/bits_per_byte", "val/best_step", "test/bits_per_byte", "test/bytes", "train/steps")


def assert_same_outcome(run: Path, other: Path) -> None:
    """Two runs ended alike: figures to the last digit, weights to the last bit, the same curve."""
    ours, theirs = ({name: summary(of)[name] for name in FIGURES} for of in (run, other))
    assert ours == theirs, f"figures: {ours} and {theirs}"
    lines = [(a, b) for a, b in itertools.zip_longest(curve(run), curve(other)) if a != b]
    assert not lines, f"{len(lines)} lines of the curve, first {lines[0]}"
    for which in ("best", "last"):
        ours, theirs = weights(run, which), weights(other, which)
        assert ours.keys() == theirs.keys(), f"weights of {which}: {sorted(ours.keys() ^ theirs.keys())}"
        others = [name for name in ours if not torch.equal(ours[name], theirs[name])]
        assert not others, f"{len(others)} of {len(ours)} weights of {which}, first {others[0]}"


OF_THE_CLOCK = (
    "train/tokens_per_second", "train/step_ms", "train/data_wait", "train/seconds", "train/mfu",
    "train/mfu_dense_equivalent", "train/mfu_muon", "train/peak_rss_gib", "train/peak_memory_gib",
)  # fmt: skip


def curve(run: Path) -> list[tuple[str, ...]]:
    """Loss by step, without what depends on the clock or the machine."""
    lines = [line.split(",") for line in (run / "metrics.csv").read_text().splitlines()]
    kept = [i for i, name in enumerate(lines[0]) if name not in OF_THE_CLOCK]
    return [tuple(line[i] for i in kept) for line in lines]


def wait_for_step(folder: Path, step: int, process: subprocess.Popen[str]) -> None:
    """Return when the run that a process trains in ``folder`` has logged a step."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        assert process.poll() is None, process.stdout.read()
        logs = list((folder / "runs").glob("*/metrics.csv"))
        if logs and any(line.split(",")[0] == str(step) for line in logs[0].read_text().splitlines()):
            return
        time.sleep(0.02)
    raise AssertionError(f"step {step} was never logged")
