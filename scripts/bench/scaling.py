"""Weak and strong scaling of the paper's models over the devices of this machine.

    python -m scripts.bench.scaling                                        # all three models, DDP and FSDP2, all GPUs
    python -m scripts.bench.scaling --model enwik8 --strategy ddp --compression none --compression bf16
    python -m scripts.bench.scaling --device cpu --model tiny --devices 1,2   # anywhere, in a minute or two
    python -m scripts.bench.scaling --model cifar10 model.recompute=none    # KEY=VALUE as for src.train
    python -m scripts.bench.scaling --plan                                 # which rows that would be

Each row is trained by the framework's own trainer, one process a device. First its loss and gradient norm, without
dropout, are compared with those of one device on the same global batch; a row that differs gets no time. Weak scaling:
every device has the same batch. Strong scaling: all devices share one global batch, which one device takes in so many
passes. Efficiency is the speed against one device's, over the number of devices.

Communication is measured in a profile of 3 steps of the first device: the share of time in which NCCL's kernels run
(waiting for slower devices included), and behind it that in which no other kernel runs. The table comes last; with
--output FILE it is written as JSON too, after every row.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from scripts.bench.scaling_table import CONTEXT, PAPER, Row, machine, refusal, report, verdict
from src.errors import UserError, exit_code
from src.processes.ranks import ASKED, GRACE, supervise
from src.system.gpus import gpu_count

TINY = ("experiment=quickstart", "model.depth=2", "model.width=64", "model.heads=2")
MOST = 8  # devices that share the batch of strong scaling at most


def main() -> int:
    """Bench what the command line asks for; the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.bench.scaling", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument(
        "overrides", nargs="*", metavar="KEY=VALUE", help="configuration of every row, as for src.train"
    )
    parser.add_argument("--model", choices=(*PAPER, "tiny"), action="append", help="default: the paper's three")
    parser.add_argument("--devices", help="numbers of devices, such as 1,2,4 (default: powers of two that there are)")
    parser.add_argument("--strategy", choices=("ddp", "fsdp2"), action="append", help="default: both")
    parser.add_argument("--compression", choices=("none", "bf16", "fp16"), action="append", help="default: none")
    parser.add_argument("--scaling", choices=("weak", "strong"), action="append", help="default: both")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="default: %(default)s")
    parser.add_argument("--steps", type=int, default=30, help="timed steps of each row (default: %(default)s)")
    parser.add_argument("--warm", type=int, default=10, help="steps before them (default: %(default)s)")
    parser.add_argument("--check", type=int, default=3, help="steps whose loss is compared (default: %(default)s)")
    parser.add_argument("--output", type=Path, help="file for the figures as JSON")
    parser.add_argument("--plan", action="store_true", help="print the rows and measure nothing")
    options = parser.parse_args()
    rows: list[Row] = []
    kept = f": the rows that were done are in {options.output}" if options.output else ""
    code = exit_code(lambda: rows.extend(benched(options)), f"stopped{kept}")
    if code or options.plan:
        return code
    print(report(rows, options))
    return 0 if all(not row.found.get("error") and refusal(row, rows) is None for row in rows) else 1


def benched(options: argparse.Namespace) -> list[Row]:
    """Measure the rows that are asked for, or print them if only the plan is.

    Raises:
        UserError: what is asked for cannot run.
        KeyboardInterrupt: it was asked to stop.
    """
    rows = planned(options)
    if options.plan:
        print("\n".join(row.name + ("" if row.timed else "  (for its losses)") for row in rows))
        return rows
    with tempfile.TemporaryDirectory(prefix="scaling-") as folder:
        measure(rows, options, Path(folder))
    return rows


def planned(options: argparse.Namespace) -> list[Row]:
    """Lay out the rows, those of one device first.

    Raises:
        UserError: numbers of devices that are none, or more than there are.
    """
    counts = device_counts(options)
    rows: dict[tuple[Any, ...], Row] = {}
    for model in options.model or PAPER:
        each, whole = PAPER.get(model, 2), PAPER.get(model, 2) * max(MOST if options.device == "cuda" else 1, *counts)
        for devices in counts:
            batches = {"weak": each * devices, "strong": whole}
            for batch in sorted({batches[kind] for kind in options.scaling or batches}):
                reference = Row(model, 1, "one", "none", batch, timed=False)
                rows.setdefault(reference.key, reference)
                rows[reference.key].timed |= devices == 1
                for strategy in (options.strategy or ("ddp", "fsdp2")) if devices > 1 else ():
                    for compression in options.compression or ("none",):
                        row = Row(model, devices, strategy, compression, batch)
                        rows[row.key] = row
    return sorted(rows.values(), key=lambda row: row.devices)


def device_counts(options: argparse.Namespace) -> list[int]:
    """Read the numbers of devices; 1 is always among them, as what the others are measured against."""
    there = gpu_count() if options.device == "cuda" else MOST
    if there == 0:
        raise UserError("scripts.bench.scaling needs CUDA GPUs, found none: see --device cpu --model tiny")
    default = [1, 2] if options.device == "cpu" else [n for n in (1, 2, 4, 8) if n <= there]
    words = options.devices.split(",") if options.devices else [str(number) for number in default]
    if not all(word.isdecimal() and 0 < int(word) <= there for word in words):
        raise UserError(f"--devices must be numbers from 1 to {there}, such as 1,2, found {options.devices}")
    return sorted({1, *map(int, words)})


def measure(rows: list[Row], options: argparse.Namespace, folder: Path) -> None:
    """Measure all rows, with one set of processes for each number of devices; a failed row costs a new set.

    Raises:
        UserError: a configuration that cannot run.
        KeyboardInterrupt: its processes were asked to stop.
    """
    if options.device == "cpu":
        os.environ.setdefault("OMP_NUM_THREADS", "1")  # a device is a core, for one process as for several
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # or the profiler talks on the terminal
    asked = requests(rows, options, folder)
    for devices in sorted({row.devices for row in rows}):
        left = [row for row in rows if row.devices == devices]
        while left:
            (folder / "request.json").write_text(json.dumps([asked[row.name] for row in left]))
            code = supervise([sys.executable, "-m", "scripts.bench.scaling_rank", str(folder)], devices, 1, grace=GRACE)
            done = [row for row in left if (folder / f"{row.name}.json").is_file()]
            for row in done:
                row.found = json.loads((folder / f"{row.name}.json").read_text())
            left = [row for row in left if row not in done]
            if left and code not in ASKED and not any("error" in row.found for row in done):
                left[0].found = {"error": f"its processes ended with exit code {code}"}
                done.append(left.pop(0))
            if options.output is not None:  # before a row is said to be done
                options.output.write_text(json.dumps(figures(rows, options), indent=2) + "\n")
            for row in done:
                print(f"{row.name}: {verdict(row, rows)}", flush=True)
            if code in ASKED:
                raise KeyboardInterrupt


def requests(rows: list[Row], options: argparse.Namespace, folder: Path) -> dict[str, dict[str, Any]]:
    """Lay out each row's run directory, and give what its processes are asked to do, by name.

    Raises:
        UserError: a configuration that cannot run.
    """
    from src.runs.run import Run

    text = made_text(folder / "text")
    asked = {}
    for row in rows:
        config = configured(row, options, text)
        Run(folder / row.name).checkpoints.mkdir(parents=True)
        Run(folder / row.name).write_config(config)
        asked[row.name] = {"run": row.name, "check": options.check, "warm": options.warm,
                           "steps": options.steps if row.timed else 0}  # fmt: skip
    return asked


def configured(row: Row, options: argparse.Namespace, text: Path) -> Any:
    """Compose and check the configuration of a row.

    Raises:
        UserError: it cannot run, or not on this machine.
    """
    from src.config.composing import composed
    from src.jobs.machine import check_machine

    each = min(PAPER.get(row.model, 2), row.batch // row.devices)
    on_gpu = options.device == "cuda"
    config = composed([
        *(TINY if row.model == "tiny" else (f"experiment={row.model}", "recipe=paper")),
        "data=bytes", f"data.path={text}", f"data.context={CONTEXT[row.model]}", f"data.batch_size={row.batch}",
        f"data.micro_batch={each}", f"data.workers={2 if on_gpu else 0}", f"precision={'bf16' if on_gpu else 'fp32'}",
        f"trainer.accelerator={'gpu' if on_gpu else 'cpu'}", f"trainer.devices={row.devices}",
        f"trainer.strategy={'auto' if row.strategy == 'one' else row.strategy}",
        f"trainer.gradient_compression={row.compression}", "trainer.progress=false", "trainer.val_every=1000000",
        "optimizer.warmup_steps=1", "logger=none", *options.overrides,
    ])  # fmt: skip
    check_machine(config)
    return config


def made_text(path: Path, size: int = 16_000_000, patch: int = 1024) -> Path:
    """Make a file in which every stretch has words of its own: batches whose gradients are not alike.

    Where ranks forgot each other's gradients, or saw each other's sequences, the loss would tell.
    """
    draw = random.Random(0)
    words = [bytes(draw.choices(b"etaoinshrdlucmfw", k=draw.randrange(2, 9))) + b" " for _ in range(400)]
    with path.open("wb") as file:
        for _ in range(size // patch):
            file.write(b"".join(draw.choices(draw.sample(words, 3), k=patch // 2))[:patch])
    return path


def figures(rows: list[Row], options: argparse.Namespace) -> dict[str, Any]:
    """All that was measured, for --output."""
    return {"machine": machine(options), "command": sys.argv[1:], "rows": [asdict(row) for row in rows]}


if __name__ == "__main__":
    sys.exit(main())
