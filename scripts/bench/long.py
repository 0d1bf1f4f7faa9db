"""Train on long sequences: speed and memory of experiment=long and long_1m, and the longest context of the 95M model.

    python -m scripts.bench.long                       # all of it, a few minutes on an 80 GB GPU
    python -m scripts.bench.long --part longest --budget-gib 80

Needs a CUDA GPU. Steps are whole training steps of one sequence (forward, backward, clipping, AdamW), in bf16 with
blocks recomputed, on random bytes. The longest context is found by doubling and then halving the gap, in multiples of
the stride, which grows with the square root of the context.
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import statistics
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from typing import NamedTuple

import torch

from src.config.composing import composed
from src.config.schema import Config
from src.jobs import build
from src.models.build import network
from src.training import build_model
from src.training.language_model import Batch, LanguageModel
from src.training.peak_tflops import peak_tflops

GIB = 2**30
DEVICE = "cuda"
PRECISION = 1.05  # the longest context is known once the next longer one that failed is within 5%


class Step(NamedTuple):
    """A training step: seconds (median) and peak bytes of memory."""

    seconds: float
    peak: int


def main() -> None:
    """Bench what the command line asks for."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.bench.long",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--part", choices=("long", "long_1m", "longest"), action="append", help="default: all three")
    parser.add_argument("--pattern", choices=("strided", "fixed"), default="strided", help="for the longest context")
    parser.add_argument("--start", type=int, default=65_536, metavar="BYTES", help="a context that is known to fit "
        "the 95M model, to look further from (default: 65536)")  # fmt: skip
    parser.add_argument("--budget-gib", type=float, help="memory that may be used (default: all of the GPU's)")
    parser.add_argument("--steps", type=int, default=3, help="timed steps of each run (default: 3)")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("scripts.bench.long needs a CUDA GPU, and this machine shows none")
    total = torch.cuda.get_device_properties(0).total_memory / GIB
    share = min(1.0, (options.budget_gib or total) / total)
    print(f"{torch.cuda.get_device_name()}, {share * total:.0f} GiB, bf16, 1 sequence")
    print("| model | pattern | context | l | ms a step | kB/s | MFU, kept pairs | peak GiB |")
    print("| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |", flush=True)
    for part in options.part or ("long", "long_1m", "longest"):
        if part == "longest":
            longest(options.pattern, options.start, options.steps, share)
        else:
            config = composed([f"experiment={part}", "data.path=none", "data.batch_size=1"])
            report(config, measure(config, options.steps, share))


def longest(pattern: str, start: int, steps: int, share: float) -> None:
    """Find and report the longest context on which the enwik8 model trains; each try is said on standard error."""
    fits, step, fails = start, None, None
    while True:
        tried = fits * 2 if fails is None else _multiple(round(math.sqrt(fits * fails)))
        if fails is not None and (fails / fits < PRECISION or tried in (fits, fails)):
            break
        began = time.perf_counter()
        found = measure(_enwik8(pattern, tried), 1, share)
        said = "does not fit" if found is None else f"fits, {found.peak / GIB:.1f} GiB"
        print(f"{tried:,} bytes: {said} ({time.perf_counter() - began:.0f} s)", file=sys.stderr, flush=True)
        if found is None:
            fails = tried
        else:
            fits, step = tried, found
    config = _enwik8(pattern, fits)
    report(config, measure(config, steps, share) if steps > 1 or step is None else step)
    print(f"longest context of the 95M model, {pattern}: {fits:,} bytes; {fails:,} do not fit")


def _enwik8(pattern: str, context: int) -> Config:
    stride = _stride(context)
    return composed(
        ["experiment=enwik8", "recipe=paper", f"attention={pattern}", f"attention.stride={stride}", "data=bytes",
         "data.path=none", f"data.context={context}", "data.batch_size=1", "model.recompute=block"]
    )  # fmt: skip


def _stride(context: int) -> int:
    """The power of 2 nearest to the square root of the context."""
    return int(2 ** round(math.log2(context) / 2))


def _multiple(context: int) -> int:
    return context // _stride(context) * _stride(context)


def measure(config: Config, steps: int, share: float) -> Step | None:
    """Time training steps of one sequence; None if that share of the memory does not suffice.

    In a process of its own, so that a step that did not fit leaves nothing behind in the memory.
    """
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as one:
        return one.submit(_measured, config, steps, share).result()


def _measured(config: Config, steps: int, share: float) -> Step | None:
    torch.cuda.set_per_process_memory_fraction(share)
    try:
        return _train(config, steps)
    except torch.cuda.OutOfMemoryError:
        return None


def _train(config: Config, steps: int) -> Step:
    torch.cuda.reset_peak_memory_stats()
    build.set_tf32(config.precision.tf32)
    model = build_model.language_model(config, max_steps=1000).to(DEVICE).train()
    optimizer = model.configure_optimizers()["optimizer"]
    n = config.data.context
    batch = Batch(torch.randint(256, (1, n), dtype=torch.uint8, device=DEVICE), torch.tensor([n], device=DEVICE))
    times = []
    for _ in range(steps + 1):  # the first compiles
        torch.cuda.synchronize()
        began = time.perf_counter()
        _step(model, batch, optimizer, config.trainer.clip)
        torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
    return Step(statistics.median(times[1:]), torch.cuda.max_memory_allocated())


def _step(model: LanguageModel, batch: Batch, optimizer: torch.optim.Optimizer, clip: float) -> None:
    with torch.autocast(DEVICE, torch.bfloat16, cache_enabled=False):
        loss = model.training_step(batch, 0)
    model.step_losses.clear()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
    optimizer.step()
    optimizer.zero_grad()


def report(config: Config, step: Step | None) -> None:
    """Print a line of the table."""
    model = network(config)
    start = f"| {model.parameter_count() / 1e6:.0f}M | {config.attention.pattern} | {config.data.context:,} | "
    start += f"{config.attention.stride:,} | "
    if step is None:
        print(start + "does not fit | | | |", flush=True)
        return
    peak = config.trainer.peak_tflops or peak_tflops(torch.cuda.get_device_name())
    share = f"{build_model.step_flops(config).kept / step.seconds / peak / 1e12:.0%}" if peak else ""
    speed = config.data.context / step.seconds / 1000
    print(f"{start}{step.seconds * 1000:,.0f} | {speed:,.0f} | {share} | {step.peak / GIB:.1f} |", flush=True)


if __name__ == "__main__":
    main()
