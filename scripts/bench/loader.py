"""Measure whether loading keeps up with training: batches a second, and the share of a step that waits for data.

    python -m scripts.bench.loader                                    # text: a file of random bytes is made for it
    python -m scripts.bench.loader experiment=cifar10 --step-ms 100   # any configuration whose data are there
    python -m scripts.bench.loader experiment=enwik8 data.batch_size=2 --step-ms 45

No model runs and no GPU is needed: a step keeps this process busy for --step-ms, while loader processes work beside it.
With a GPU batches also wait in pinned memory, fetched by a thread, so that the wait is shorter still. Other arguments
are KEY=VALUE, as for src.train.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from src.config.composing import composed
from src.data.base import ByteDataModule
from src.jobs import build

MADE = 100_000_000  # bytes of the file that is made, as enwik8 has


class Rate(NamedTuple):
    """What a loader does: batches and bytes a second at full speed, and the share of training time that waits."""

    batches: float
    bytes: float
    wait: float


def main() -> None:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.bench.loader",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="configuration, as for src.train")
    parser.add_argument("--step-ms", type=float, default=45, help="time of a training step (default: 45)")
    parser.add_argument("--steps", type=int, default=100, help="steps to measure (default: 100)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        overrides = options.overrides or made_text(Path(folder))
        config = composed(overrides)
        data = build.data_module(config)
        data.prepare_data()
        data.setup()
        rate = measure(data, options.steps, options.step_ms / 1000)
    size = config.data.batch_size * config.data.context
    print(
        f"{config.data.name}: {config.data.batch_size} x {config.data.context:,} bytes, {data.workers} loader processes"
    )
    print(f"at full speed      {rate.batches:10,.1f} batches/s {rate.bytes / 1e6:10,.2f} MB/s")
    print(f"training would ask {1000 / options.step_ms:10,.1f} batches/s {size / options.step_ms / 1e3:10,.2f} MB/s")
    print(f"waiting for data   {rate.wait:10.2%} of the time, steps of {options.step_ms:g} ms")


def made_text(folder: Path) -> list[str]:
    """Make a file of random bytes and give the overrides that train on it as the paper trains on enwik8, batch 2."""
    path = folder / "random.bin"
    path.write_bytes(np.random.default_rng(0).bytes(MADE))
    return ["experiment=enwik8", "data=bytes", f"data.path={path}", "data.batch_size=2"]


def measure(data: ByteDataModule, steps: int, step_seconds: float) -> Rate:
    """Time ``steps`` batches at full speed, and the waits of as many with a pause after each."""
    batches = _endless(data)
    first = next(batches)  # starts the loader processes, which training does once
    size = first.x.numel()
    for _ in range(10):
        next(batches)
    began = time.perf_counter()
    for _ in range(steps):
        next(batches)
    full = steps / (time.perf_counter() - began)
    waited = 0.0
    for _ in range(steps):
        _work(step_seconds)
        began = time.perf_counter()
        next(batches)
        waited += time.perf_counter() - began
    return Rate(full, full * size, waited / (waited + steps * step_seconds))


def _work(seconds: float) -> None:
    """Keep this process busy, as launching kernels does: one that slept would wake up slowly."""
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        pass


def _endless(data: ByteDataModule) -> Iterator[Any]:
    while True:
        yield from data.train_dataloader()


if __name__ == "__main__":
    main()
