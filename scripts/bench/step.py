"""Time whole training steps of the paper's models side by side on this machine's GPU.

    python -m scripts.bench.step                              # all three models, every row
    python -m scripts.bench.step --model enwik8 --row "ours, fixed" --profile

    python -m scripts.bench.step --model enwik8 --recipe paper --recipe modern

A step is forward, backward, clipping and optimizer of the recipe in bf16 on random bytes. Times are medians of steps
between CUDA events, launches and all. x-transformers, always with AdamW, is taken from PyPI if it is installed:
pip install x-transformers.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import statistics
import time
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from scripts.bench.attention import header, matrix_rate
from scripts.bench.step_rows import ROWS
from src.callbacks.profile import kind_of_work
from src.config.composing import composed
from src.config.schema import Config
from src.models.residual_block import SparseAttention
from src.training import build_model
from src.training.peak_tflops import peak_tflops

RECIPES = ("paper", "modern")
MODELS = {"enwik8": 2, "cifar10": 16, "imagenet64": 2}  # sequences of a step
BASE = "dense, SDPA cuDNN, blocks compiled"


class Step(NamedTuple):
    """Milliseconds of a step, bytes of memory at its peak, seconds until the first step was done."""

    milliseconds: float
    peak: int
    first: float


def main() -> None:
    """Bench what the command line asks for."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.bench.step",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", choices=MODELS, action="append", help="default: all")
    parser.add_argument("--row", choices=ROWS, action="append", metavar="NAME", help="default: all")
    parser.add_argument("--recipe", choices=RECIPES, action="append", help="one table each; default: paper")
    parser.add_argument("--batch", type=int, help="sequences of a step (default: 2, for cifar10 16)")
    parser.add_argument("--steps", type=int, default=15, help="timed steps of each row")
    parser.add_argument("--profile", action="store_true", help="also the step by kind of work")
    parser.add_argument("--output", type=Path, help="file for the table as well")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("scripts.bench.step needs a CUDA GPU, and this machine shows none")
    lines = [header(matrix_rate(), "Steps", "scripts.bench.step")]
    print(lines[0])
    for model, recipe in itertools.product(options.model or MODELS, options.recipe or ["paper"]):
        batch = options.batch or MODELS[model]
        keys = [f"experiment={model}", f"recipe={recipe}", f"data.batch_size={batch}", "data.micro_batch=null"]
        lines += table(keys, options.row or list(ROWS), options.steps, options.profile)
        if options.output is not None:
            options.output.write_text("\n".join(lines) + "\n")


def table(keys: list[str], rows: list[str], steps: int, profile: bool) -> list[str]:
    """Time the rows for one configuration and return the lines of its table."""
    config = composed(keys)
    n, batch = config.data.context, config.data.batch_size
    title = f"{keys[0]} {keys[1]}"
    lines = [
        f"\n### {title}: {config.model.depth} blocks of {config.model.width}, context {n:,}, batch {batch}\n",
        "| | ms a step | kB/s | to compiled dense | MFU, kept pairs | peak GiB | first step s |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    print(*lines, sep="\n", flush=True)
    base: float | None = None
    kinds: list[str] = []
    for name in rows:
        config = composed(keys)
        torch.manual_seed(0)
        torch.cuda.reset_peak_memory_stats()
        try:
            stepper = Stepper(ROWS[name](config), config)
            step = stepper.measure(steps)
        except Exception as error:  # out of memory, a package that is not there: the other rows go on
            line = f"| {name} | {type(error).__name__}: {str(error).strip().splitlines()[0][:90]} | | | | | |"
        else:
            base = step.milliseconds if name == BASE else base
            line = _line(name, step, batch * n, base, _share(config, name, step))
            if profile:
                kinds += [f"\n{title}, {name}:\n", *stepper.profile()]
            del stepper
        print(line, flush=True)
        lines.append(line)
        gc.collect()
        torch.cuda.empty_cache()
    print(*kinds, sep="\n", flush=True)
    return lines + kinds


def _line(name: str, step: Step, size: int, base: float | None, share: str) -> str:
    against = "" if base is None else f"{base / step.milliseconds:.2f}"
    speed = size / step.milliseconds
    return (
        f"| {name} | {step.milliseconds:.1f} | {speed:,.0f} | {against} | {share} "
        f"| {step.peak / 2**30:.2f} | {step.first:.1f} |"
    )


def _share(config: Any, name: str, step: Step) -> str:
    peak = peak_tflops(torch.cuda.get_device_name())
    if peak is None or not (name.startswith(("ours", "dense"))):
        return ""
    return f"{build_model.step_flops(config).kept / step.milliseconds / peak / 1e9:.0%}"


class Stepper:
    """A model, its optimizer and a batch of random bytes on the GPU."""

    def __init__(self, model: nn.Module, config: Config) -> None:
        self.model = model.cuda().train()
        settings = replace(build_model.optimizer_settings(config), learning_rate=1e-4, muon_learning_rate=1e-4)
        ours = any(isinstance(part, SparseAttention) for part in self.model.modules())
        self.optimizer = (settings if ours else replace(settings, name="adamw")).optimizer(self.model, fused=True)
        self.parameters = list(self.model.parameters())
        self.clip = config.trainer.clip
        self.x = torch.randint(256, (config.data.batch_size, config.data.context), dtype=torch.uint8, device="cuda")

    def step(self) -> None:
        """One training step."""
        with torch.autocast("cuda", torch.bfloat16, cache_enabled=False):
            loss = self.model(self.x)
        loss.backward()
        if self.clip:
            torch.nn.utils.clip_grad_norm_(self.parameters, self.clip)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def measure(self, steps: int) -> Step:
        """Time ``steps`` steps, after a few that compile and warm up; memory at its peak counts from the first."""
        began = time.perf_counter()
        self.step()
        torch.cuda.synchronize()
        first = time.perf_counter() - began
        for _ in range(4):
            self.step()
        marks = [torch.cuda.Event(enable_timing=True) for _ in range(steps + 1)]
        marks[0].record()
        for mark in marks[1:]:
            self.step()
            mark.record()
        torch.cuda.synchronize()
        times = [a.elapsed_time(b) for a, b in itertools.pairwise(marks)]
        return Step(statistics.median(times), torch.cuda.max_memory_allocated(), first)

    def profile(self, steps: int = 3) -> list[str]:
        """Say what the GPU spends a step on, by kind of work."""
        from torch.autograd import DeviceType
        from torch.profiler import ProfilerActivity
        from torch.profiler import profile as record

        with record(activities=[ProfilerActivity.CUDA]) as trace:
            for _ in range(steps):
                self.step()
            torch.cuda.synchronize()
        kinds: dict[str, list[float]] = defaultdict(lambda: [0.0, 0])
        names: dict[str, list[float]] = defaultdict(lambda: [0.0, 0])
        for event in trace.events():
            if event.device_type == DeviceType.CUDA:
                for found in (kinds[kind_of_work(event.name)], names[event.name[:90]]):
                    found[0] += event.device_time / 1000 / steps
                    found[1] += 1 / steps
        lines = ["| kind of work | ms a step | launches |", "| --- | ---: | ---: |"]
        lines += [f"| {kind} | {ms:.2f} | {count:.0f} |" for kind, (ms, count) in _ordered(kinds)]
        total = sum(ms for ms, _ in kinds.values())
        lines += [f"| all | {total:.2f} | |", "", "longest kernels:", ""]
        return lines + [f"    {ms:7.2f} ms {count:5.0f} x {name}" for name, (ms, count) in _ordered(names)[:24]]


def _ordered(found: dict[str, list[float]]) -> list[tuple[str, list[float]]]:
    return sorted(found.items(), key=lambda item: -item[1][0])


if __name__ == "__main__":
    main()
