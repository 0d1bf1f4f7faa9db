"""Golden losses: the first steps of every experiment file, cut down to a size for tests, against stored values.

``python -m tests.golden`` compares, ``python -m tests.golden --write`` stores the losses of today's code anew.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import platform
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from src.jobs.training import train_run
from src.runs.log import quiet_libraries
from src.runs.run import Run
from tests.data.picture_files import batch, tar
from tests.data.test_prepare_imagenet64 import prepare
from tests.tiny_runs import composed

FOLDER = Path(__file__).parent
STEPS = 12
TOLERANCE = 2e-5
"""Relative, of a loss against the stored one. Other machines and numbers of threads sum in another order: with one
thread and without AVX losses differ by up to 2e-7 from those with two threads and AVX; a hundred times that is allowed.
A mistake in model, data order, schedule or dropout moves losses by much more, as ``test_golden`` shows."""
LITTLE = (
    "precision=fp32", "deterministic=true", "logger=csv", "logger.sample_bytes=0", "logger.sample_pictures=0",
    "logger.attention_picture=false", "data.workers=0", "data.allow_partial=true", "data.micro_batch=null",
    "data.eval_batch_size=null", "data.batch_size=2", "model.depth=2", "model.width=32", "model.heads=2",
    "optimizer.warmup_steps=4", "optimizer.learning_rate=0.01", f"trainer.max_steps={STEPS}", "trainer.log_every=1",
    f"trainer.val_every={STEPS}", "trainer.checkpoint_every=null", "trainer.checkpoint_minutes=null",
    "trainer.accelerator=cpu", "trainer.progress=false",
)  # fmt: skip
SHORT = ("data.context=256", "attention.stride=16", "attention.summary=4")
EXPERIMENTS: dict[str, tuple[str, ...]] = {
    "enwik8": SHORT,
    "quickstart": ("data=bytes", "data.path={bytes}", *SHORT),  # this Python's own sources are not everybody's
    "cifar10": ("model.depth=1", "model.width=16"),
    "pictures_small": ("model.depth=1", "model.width=16"),
    "imagenet64": ("model.depth=1", "model.width=16", "data.batch_size=1"),
    "text_short": SHORT,
    "pictures_short": ("model.depth=1", "model.width=16"),
    "long": ("data.path={bytes}", "data.context=1024", "attention.stride=32"),
    "long_1m": ("data.path={bytes}", "data.context=4096", "attention.stride=64", "data.batch_size=1"),
}
"""Every file of conf/experiment, with what cuts it down: its pattern, model, positions, dropout and data stay. Behind a
hyphen: the same with another recipe."""
PAPER = ("recipe=paper", "model.init_scale=8")
EXPERIMENTS |= {
    **{f"{name}-paper": (*EXPERIMENTS[name], "recipe=paper") for name in ("enwik8", "cifar10", "imagenet64")},
    "quickstart-paper": (*EXPERIMENTS["quickstart"], *PAPER),
    "pictures_small-paper": (*EXPERIMENTS["pictures_small"], "recipe=paper"),
    "text_short-paper": (*EXPERIMENTS["text_short"], *PAPER, "optimizer.short_context_steps=1500"),
    "pictures_short-paper": (
        *EXPERIMENTS["pictures_short"], *PAPER, "model.dropout=0.1", "optimizer.short_context=96",
        "optimizer.short_context_steps=500",
    ),
}  # fmt: skip


def make_data(folder: Path) -> None:
    """Make small archives in the official formats, and a file of bytes; the same on every machine."""
    draw = random.Random(0)
    words = [bytes(draw.choices(b"etaoinshrdlu", k=draw.randrange(2, 9))) for _ in range(200)]
    text = b" ".join(draw.choices(words, k=12_000))
    (folder / "bytes").write_bytes(text)
    beginning = b'<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.3/">'
    (folder / "enwik8_part").write_bytes(beginning + text[:30_000])
    names = [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]
    pictures = {name: batch(10, data=_few_shades((10, 3072), seed)) for seed, name in enumerate(names)}
    archive = {f"cifar-10-batches-py/{name}": raw for name, raw in pictures.items()}
    tar(folder / "cifar-10-python.tar.gz", archive, "w:gz")
    for split, count in (("train", 12), ("valid", 2)):
        files = {f"{split}_64x64/{n}.png": _png(_few_shades((64, 64, 3), n)) for n in range(count)}
        tar(folder / "archives" / f"{split}_64x64.tar", files)
    prepare(folder / "archives", folder / "imagenet64")


def _few_shades(shape: tuple[int, ...], seed: int) -> Any:
    """Noise of eight shades: something to learn."""
    return np.random.default_rng(seed).integers(0, 8, shape, dtype=np.uint8) * 16


def _png(pixels: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def losses(experiment: str, data: Path, folder: Path, *changes: str) -> dict[str, Any]:
    """Train an experiment's first steps; gives ``train`` and ``val`` losses in bits per byte."""
    places = (f"paths.data_dir={data}", f"paths.output_dir={folder}")
    own = [change.format(bytes=data / "bytes") for change in EXPERIMENTS[experiment]]
    name = experiment.partition("-")[0]
    run = Run.create(composed(f"experiment={name}", *LITTLE, *own, *places, *changes))
    quiet_libraries()
    try:
        with contextlib.redirect_stdout(None):
            train_run(run)
    finally:
        torch.use_deterministic_algorithms(False)
    with (run.path / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    return {
        name: [float(row[f"{name}/bits_per_byte"]) for row in rows if row[f"{name}/bits_per_byte"]]
        for name in ("train", "val")
    }


def stored(experiment: str) -> dict[str, Any]:
    """Read the stored losses."""
    content: dict[str, Any] = json.loads((FOLDER / f"{experiment}.json").read_text())
    return content


def store(experiment: str, found: dict[str, Any]) -> None:
    """Write losses with what made them."""
    made = {"torch": torch.__version__, "python": platform.python_version(), "machine": platform.machine()}
    changes = list(EXPERIMENTS[experiment])
    content = {"experiment": experiment, "changes": changes, "steps": STEPS, "made_with": made, **found}
    (FOLDER / f"{experiment}.json").write_text(json.dumps(content, indent=1) + "\n")


def greatest_difference(found: dict[str, Any], golden: dict[str, Any]) -> float:
    """Give the greatest relative difference of all losses.

    Raises:
        ValueError: there are not as many.
    """
    pairs = [pair for name in ("train", "val") for pair in zip(found[name], golden[name], strict=True)]
    return max(abs(ours - theirs) / abs(theirs) for ours, theirs in pairs)
