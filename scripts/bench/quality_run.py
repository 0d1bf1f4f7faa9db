"""A process of ``scripts.bench.quality``: it trains the rows that it is given on one device, one after another.

It reads jobs as lines of JSON and answers with lines {"said": TEXT} and, for every job, {"result": {...}}. After a row
that failed it ends, so that the next one begins with a clean device.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import json
import math
import os
import signal
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from scripts.bench.quality_models import Model, Ours, Peer, free, synchronize
from scripts.bench.quality_rows import PEER
from scripts.paper.study import runnable
from src.config.schema import Config
from src.data.base import ByteDataModule
from src.data.loading import TrainDataset, loader
from src.data.sampler import TrainBatchSampler, TrainOrder
from src.errors import UserError, of_the_machine
from src.jobs import build
from src.processes.ranks import end_with_parent
from src.runs.provenance import provenance
from src.training.bits_per_byte import BitsPerByte

WARM, TIMED = 10, 20  # steps that compile, and those that tell how many more are timed to plan a run
BLOCKS, SHARE = 3, 0.01  # the median of so many, each as long as this share of the run
POINTS = 8  # validations of a run
SCORED = 98_304  # bytes of a batch to score

Say = Callable[[str], None]


class Planned(NamedTuple):
    """Seconds of a step, by a few of them, and seconds until the first ones were compiled and done."""

    step: float
    compiled: float


class Training(NamedTuple):
    """A whole training: (seconds, bytes, bits per byte) of its validations, its seconds, peak GiB of its steps."""

    curve: list[tuple[float, int, float]]
    seconds: float
    peak: float | None


def answer(job: dict[str, Any], say: Say) -> dict[str, Any]:
    """Train a row; a failure is a sentence under ``error``."""
    began = time.perf_counter()
    result = {**job, "made": made()}
    try:
        for found in trained(job, say):
            result |= found
    except Exception as error:
        known = error if isinstance(error, UserError) else of_the_machine(error)
        if known is None:
            traceback.print_exc()
        said = (str(error).strip() or "no message").splitlines()[0][:200]
        result["error"] = str(known or f"{type(error).__name__}: {said}")
    return result | {"wall_seconds": round(time.perf_counter() - began, 1)}


def trained(job: dict[str, Any], say: Say) -> Iterator[dict[str, Any]]:
    """Train a row, and give its figures piece by piece: what is known when it fails is kept."""
    config = runnable(job["keys"])
    if config.precision.name not in ("bf16", "fp32"):
        raise UserError(f"precision.name must be bf16 or fp32 in scripts.bench.quality, found {config.precision.name}")
    device = torch.device("cuda" if build.on_gpu(config) else "cpu")
    torch.set_float32_matmul_precision("high")
    data = build.data_module(config)
    data.prepare_data()
    data.setup("fit")
    official = config.data.name in ("enwik8", "cifar10") and not data.partial
    yield {"label": data.label, "partial": data.partial, "official": official}
    model = Peer(device) if job["peer"] else Ours(device)
    seconds, batch = 60 * job["minutes"], config.data.batch_size * config.data.context
    say("compiling")
    planned = measured(model, config, data, seconds)
    if job["rates"]:
        steps = max(2, round(job["rate_share"] * seconds / planned.step))
        config, tried, step = best_rate(job, model, data, steps, say)
        planned = planned._replace(step=step)
        yield {"rates_tried": tried}
    steps = max(2, round(seconds / planned.step))
    done = train(model, config, data, steps, POINTS, job["val_bytes"], say)
    optimizer = config.optimizer
    yield {
        "rate": optimizer.learning_rate,
        "muon_rate": optimizer.muon_learning_rate if optimizer.name == "muon" else None,
        "parameters": sum(p.numel() for p in model.network.parameters()),
        "ms": round(1000 * done.seconds / steps, 3), "planned_ms": round(1000 * planned.step, 3), "steps": steps,
        "bytes": steps * batch, "seconds": round(done.seconds, 2), "compile_seconds": round(planned.compiled, 1),
        "peak_gib": done.peak, "curve": done.curve, **figures(model, data, job["kind"], done.curve[-1][2]),
    }  # fmt: skip


def figures(model: Model, data: ByteDataModule, kind: str, val: float) -> dict[str, float | None]:
    """Score the splits at the end of training."""
    if not math.isfinite(val):
        raise UserError("the weights are not finite numbers at the end: take a lower optimizer.learning_rate")
    text = kind == "text"
    half = score(model, data, "val", overlap=True) if text else None
    test = score(model, data, "test")
    return {"val_half": half, "test": test, "test_half": score(model, data, "test", overlap=True) if text else None,
            "val": val}  # fmt: skip


def measured(model: Model, config: Config, data: ByteDataModule, seconds: float) -> Planned:
    """Time a few steps, of those that see the whole context, for a run of ``seconds``."""
    far, most = 1 << 40, 1 << 20  # far: behind all steps with a short context
    model.begin(config, most)
    batches = training(data, config, most, model.device)

    def timed(count: int) -> float:
        began = time.perf_counter()
        for _ in range(count):
            model.step(far, next(batches))
        synchronize(model.device)
        return time.perf_counter() - began

    compiled, rough = timed(WARM), timed(TIMED) / TIMED
    count = max(TIMED, round(SHARE * seconds / rough))
    return Planned(statistics.median(timed(count) for _ in range(BLOCKS)) / count, compiled)


def best_rate(
    job: dict[str, Any], model: Model, data: ByteDataModule, steps: int, say: Say
) -> tuple[Config, dict[str, float | None], float]:
    """Try the rates in whole runs of ``steps``.

    Returns:
        The configuration of the best by validation, the figures of all, and the seconds that a step took.
    """
    tried: dict[str, float | None] = {}
    spent = 0.0
    for rate in job["rates"]:
        config = runnable([*job["keys"], f"optimizer.learning_rate={rate}"])
        done = train(model, config, data, steps, 1, None, functools.partial(_of_rate, say, rate))
        spent, bits = spent + done.seconds, done.curve[-1][2]
        tried[str(rate)] = bits if math.isfinite(bits) else None
    finite = {rate: bits for rate, bits in tried.items() if bits is not None}
    if not finite:
        raise UserError(f"no rate of {', '.join(tried)} trains to a finite figure: give lower ones as --rates")
    best = min(finite, key=lambda rate: finite[rate])
    return runnable([*job["keys"], f"optimizer.learning_rate={best}"]), tried, spent / steps / len(job["rates"])


def _of_rate(say: Say, rate: float, text: str) -> None:
    say(f"rate {rate:g}, {text}")


def train(
    model: Model, config: Config, data: ByteDataModule, steps: int, points: int, most: int | None, say: Say
) -> Training:
    """Train for ``steps``, with the clock stopped in ``points`` validations.

    Args:
        model: what to train, from new weights.
        config: how.
        data: on what.
        steps: of the run.
        points: validations, the last at the end and on the whole split.
        most: bytes that the others score at most; None: the whole split.
        say: told the figures.
    """
    model.begin(config, steps)
    batches = training(data, config, steps, model.device)
    first = next(batches)
    model.ready(first)
    torch.manual_seed(config.seed)
    stops = {round(steps * point / points) for point in range(1, points + 1)} - {0}
    batch, spent, peak = first.numel(), 0.0, None
    curve: list[tuple[float, int, float]] = []
    began = time.perf_counter()
    for number in range(steps):
        model.step(number, first if number == 0 else next(batches))
        if number + 1 in stops:
            synchronize(model.device)
            spent += time.perf_counter() - began
            peak = peak or model.peak_gib()
            bits = score(model, data, "val", most=None if number + 1 == steps else most)
            curve.append((round(spent, 2), (number + 1) * batch, bits))
            say(f"step {number + 1:,} of {steps:,}, {spent:.0f} s: {bits:.3f} bits per byte")
            began = time.perf_counter()
    return Training(curve, spent, peak)


def training(
    data: ByteDataModule, config: Config, steps: int, device: torch.device, start: int = 0
) -> Iterator[Tensor]:
    """Load the batches of a run on the device from step ``start`` on, in the order in which ``src.train`` has them."""
    sampler = TrainBatchSampler(data.batch_size, start_step=start, stop_step=steps)
    dataset = TrainDataset(data.splits.train, TrainOrder(data.train_sequences, config.seed))
    pinned = device.type == "cuda"
    for batch in loader("training", data.waits, dataset, sampler, data.workers, pin_memory=pinned):
        yield batch.x.to(device, non_blocking=True)


@torch.no_grad()
def score(model: Model, data: ByteDataModule, split: str, overlap: bool = False, most: int | None = None) -> float:
    """Give bits per byte of a split, each byte once; with ``overlap`` windows overlap by half, see ScoreWindows.

    Args:
        model: what is scored.
        data: holds the split.
        split: ``val`` or ``test``.
        overlap: score but the second half of every window, the first one aside.
        most: end when so many bytes are scored; None: the whole split.
    """
    metric = BitsPerByte().to(model.device)
    nbytes = data.val_bytes if split == "val" else data.test_bytes
    size, seen = max(1, min(SCORED, nbytes) // data.context), 0
    model.network.eval()
    for batch in data.score_dataloader(split, size, data.context // 2 if overlap else 0):
        x, length = batch.x.to(model.device), batch.length.to(model.device)
        position = torch.arange(x.shape[1], device=model.device)
        scored = position < length[:, None]
        if (first := getattr(batch, "first", None)) is not None:
            scored &= position >= first.to(model.device)[:, None]
        with model.autocast():  # batches are filled up, for another shape would be compiled anew
            nats = model.nats(F.pad(x, (0, 0, 0, size - len(x))))[: len(x)]
        metric.update(nats, scored)
        seen += x.numel()
        if most is not None and seen >= most:
            break
    model.network.train()
    return float(metric.compute())


def made() -> dict[str, Any]:
    """Say by what a result was made: card, packages, date and commit."""
    found = provenance()
    packages = {name: found["packages"][name] for name in ("torch", "triton")}
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        packages[PEER] = importlib.metadata.version(PEER)
    commit = (found["git_commit"] or "")[:7] + " with changes" * bool(found["git_commit"] and found["git_changed"])
    card = next(iter(found["gpus"]), f"CPU ({torch.get_num_threads()} threads)")
    return {"card": card, "packages": packages, "date": found["time"][:10], "commit": commit or "unknown"}


def main() -> None:
    """Answer jobs until there are no more, or one has failed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, which ends this process
    end_with_parent(int(sys.argv[1]))
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer

    def tell(message: dict[str, Any]) -> None:
        print(json.dumps(message), file=answers, flush=True)

    for line in sys.stdin:
        result = answer(json.loads(line), lambda text: tell({"said": text}))
        tell({"result": result})
        if "error" in result:
            return
        free(torch.device("cuda" if torch.cuda.is_available() else "cpu"))


if __name__ == "__main__":
    main()
