"""Pictures, runs and checkpoints that are not as they should be: what the table of bad inputs is made of."""

from __future__ import annotations

import functools
import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import OmegaConf
from PIL import Image

from src.config.schema import Config
from src.jobs import build
from src.models.build import network
from tests.data.picture_files import batch, cifar, planes, png, tar
from tests.tiny_runs import TINY, composed

CIFAR = ("experiment=cifar10", "data.allow_partial=true", "paths.data_dir=data")
IMAGENET = ("experiment=imagenet64", "data.allow_partial=true", "paths.data_dir=data")
PNG, SMALL = png(), png(32)
Case = tuple[str, tuple[str, ...], Callable[[Path], Any], str]


def archive(folder: Path, **changes: bytes) -> Path:
    files = {f"cifar-10-batches-py/{name}": raw for name, raw in cifar(**changes).items() if raw != b"left out"}
    return tar(folder / "data" / "cifar-10-python-part.tar.gz", files, "w:gz")


def cut(path: Path, share: float = 0.5) -> None:
    raw = path.read_bytes()
    path.write_bytes(raw[: int(len(raw) * share)])


def used(folder: Path) -> Path:
    """Data that were used before, with the mapped file that this left."""
    archive(folder)
    build.data_module(composed(*CIFAR, f"paths.data_dir={folder / 'data'}")).prepare_data()
    (path,) = (path for path in (folder / "data" / "cifar10").glob("*.npy") if "counts" not in path.name)
    return path


class Evil:
    def __reduce__(self) -> Any:
        return os.system, ("touch ran",)


def tars(folder: Path, picture: bytes = PNG, count: int = 5) -> None:
    files = {f"train_64x64/{n}.png": png(seed=n) for n in range(count)} | {"train_64x64/x.png": picture}
    tar(folder / "train_64x64.tar", files)
    tar(folder / "valid_64x64.tar", {"valid_64x64/0.png": PNG})


def prepared(folder: Path) -> None:
    out = folder / "data" / "imagenet64"
    out.mkdir(parents=True)
    tars(folder)
    np.save(out / "train.npy", planes(3, 64))
    cut(out / "train.npy")
    known = json.dumps({"label": "x", "pictures": 3, "official": 3, "skipped": [], "release": "png", "sha256": "0"})
    for name in ("train", "validation"):
        (out / f"{name}.json").write_text(known)
    np.save(out / "validation.npy", planes(3, 64))


def a_run(folder: Path, *changes: str) -> Path:
    """A run directory with an untrained model, as training leaves it."""
    run = folder / "run"
    (run / "checkpoints").mkdir(parents=True)
    for name, content in _untrained(changes).items():
        (run / name).write_bytes(content)
    return run


@functools.cache
def _untrained(changes: tuple[str, ...]) -> dict[str, bytes]:
    """The files of such a run; each row of the tables gets a copy."""
    config: Config = composed(*TINY, "data.path=corpus.txt", *changes)
    checkpoint = io.BytesIO()
    torch.save({"state_dict": {f"model.{name}": x for name, x in network(config).state_dict().items()}}, checkpoint)
    text = OmegaConf.to_yaml(OmegaConf.structured(config))
    return {"config.yaml": text.encode(), "checkpoints/best.ckpt": checkpoint.getvalue()}


def pictures_run(folder: Path) -> Path:
    used(folder)
    shape = ("model.depth=1", "model.positions=image", "model.row=32", "attention=strided")
    return a_run(folder, "data=cifar10", *CIFAR[1:], "data.context=3072", "data.path=null", *shape)


def of_text(change: Callable[[Path], Any] = lambda folder: None) -> Callable[[Path], None]:
    """A run on text, and then ``change``."""

    def prepare(folder: Path) -> None:
        a_run(folder)
        change(folder)

    return prepare


def of_pictures(name: str = "", raw: bytes = b"") -> Callable[[Path], None]:
    """A run on pictures, and a file beside it."""

    def prepare(folder: Path) -> None:
        pictures_run(folder)
        if name:
            (folder / name).write_bytes(raw)

    return prepare


def written(name: str, raw: bytes) -> Callable[[Path], None]:
    def prepare(folder: Path) -> None:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(raw)

    return prepare


def evil_checkpoint(folder: Path) -> None:
    torch.save({"state_dict": Evil()}, folder / "run/checkpoints/best.ckpt")


def of_another_model(folder: Path) -> None:
    path = folder / "run/checkpoints/best.ckpt"
    state = torch.load(path)
    state["state_dict"] = {name: x[..., :1] for name, x in state["state_dict"].items()}
    torch.save(state, path)


def rgba(folder: Path) -> None:
    pictures_run(folder)
    Image.fromarray(np.zeros((32, 32, 4), np.uint8)).save(folder / "mine.png")


def no_rows(folder: Path) -> None:
    a_run(folder, "model.positions=image", "model.row=5")


def on_cifar(prepare: Callable[[Path], Any], sentence: str) -> Case:
    return "baseline", CIFAR, prepare, sentence


def on_tars(prepare: Callable[[Path], Any], sentence: str) -> Case:
    return "prepare", (".", "--allow-partial"), prepare, sentence


def on_text(arguments: str, sentence: str) -> Case:
    return "sample", ("run=run", *arguments.split()), of_text(), sentence


def on_pictures(arguments: str, sentence: str) -> Case:
    return "sample", ("run=run", *arguments.split()), of_pictures(), sentence


def on_mine(prepare: Callable[[Path], Any], sentence: str) -> Case:
    return "sample", ("run=run", "pictures.given=0.5", "pictures.file=mine.png"), prepare, sentence


BEST = "run/checkpoints/best.ckpt"
PART = "data/cifar-10-python-part.tar.gz"
SIZE = "mine.png must be an 8-bit RGB PNG of 32 x 32 pixels, and"
TRUNCATED = batch(10)[:9000]
ROWS = np.zeros((10, 3071), np.uint8)
