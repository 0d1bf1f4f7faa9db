"""The same sweep twice, one job at a time and as many as there are GPUs: how much sooner it ends.

    python -m scripts.bench.sweep                              # 8 small jobs over all GPUs, each on one of its own
    python -m scripts.bench.sweep --jobs 16 --slots 4 trainer.max_steps=2000
    python -m scripts.bench.sweep --device cpu --slots 2 --jobs 4   # on processors

Other arguments are KEY=VALUE, as for src.train. The jobs differ in their seed; on a GPU each trains for half a minute,
since one of seconds would measure how long Python imports. Both sweeps must give the same test figures before a time
is shown. Seconds are those of the whole command, with starting and testing; a short job before them, which is not
counted, finds the disk cold and kernels not compiled.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from scripts.bench.scaling import made_text
from src.config.command_line import CONF
from src.errors import UserError, exit_code
from src.system.gpus import gpu_count

SMALL = (
    "experiment=quickstart", "data=bytes", "model.width=128", "model.depth=4", "trainer.log_every=50", "logger=csv",
    "logger.sample_bytes=0", "logger.attention_picture=false", "data.workers=0",
)  # fmt: skip
STEPS = {"cuda": 5000, "cpu": 200}
SAME = 1e-3  # bits per byte by which the figures of two runs of a job may differ: threads and GPUs sum in other orders


@dataclass(frozen=True)
class Done:
    """A finished sweep: seconds of the whole command, of its jobs, and their test figures, by name."""

    seconds: float
    jobs: dict[str, float]
    figures: dict[str, float]


def main() -> int:
    """Run both sweeps; the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.bench.sweep", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="configuration of all jobs, as for src.train")
    parser.add_argument("--jobs", type=int, default=8, help="default: %(default)s")
    parser.add_argument("--slots", type=int, help="jobs at a time in the second sweep (default: the GPUs)")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="default: %(default)s")
    parser.add_argument("--output", type=Path, help="folder to keep the sweeps in (default: they are removed)")
    options = parser.parse_args()
    return exit_code(lambda: print(compared(options)))


def compared(options: argparse.Namespace) -> str:
    """Run both sweeps and give the table.

    Raises:
        UserError: a number that cannot be, a sweep that failed, or figures that differ.
    """
    slots = slots_of(options)
    with tempfile.TemporaryDirectory(prefix="sweeps-") as made:
        folder = options.output or Path(made)
        text = made_text(Path(made) / "text", size=1_000_000)
        swept(Path(made) / "first", 1, str(options.jobs + 1), text, options, *steps(20))
        seeds = f"range(1,{options.jobs + 1})"
        alone, together = swept(folder, 1, seeds, text, options), swept(folder, slots, seeds, text, options)
    return report(alone, together, slots, options.device)


def slots_of(options: argparse.Namespace) -> int:
    """Give the jobs at a time of the second sweep.

    Raises:
        UserError: none were named, and there are not several GPUs.
    """
    if options.jobs < 2 or (options.slots is not None and options.slots < 2):
        raise UserError(f"--jobs and --slots must be at least 2, found {options.jobs} and {options.slots}")
    if options.device == "cpu":
        return options.slots or 2
    count = gpu_count()
    if count < 2:
        raise UserError(f"scripts.bench.sweep needs several GPUs, found {count}: take --device cpu --slots 2")
    return min(options.slots or count, count)


def swept(folder: Path, slots: int, seeds: str, text: Path, options: argparse.Namespace, *more: str) -> Done:
    """Run the sweep over seeds on a text, with so many jobs at a time and more overrides than those of the options.

    Raises:
        UserError: it failed.
    """
    name = f"slots{slots}"
    line = [
        sys.executable, "-m", "src.train", "-m", *SMALL, *steps(STEPS[options.device]),
        f"trainer.accelerator={'gpu' if options.device == 'cuda' else 'cpu'}",
        f"paths.output_dir={folder}", f"data.path={text}",
        f"seed={seeds}",
        f"hydra.launcher.slots={slots}", f"hydra.launcher.name={name}", *options.overrides, *more,
    ]  # fmt: skip
    one_core = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")} if options.device == "cpu" else {}
    began = time.monotonic()
    if subprocess.run(line, cwd=CONF.parent, env={**os.environ, **one_core}, check=False).returncode:
        raise UserError(f"the sweep with {slots} jobs at a time failed: see above")
    seconds = time.monotonic() - began
    sweep = folder / "sweeps" / name
    jobs = json.loads((sweep / "sweep.json").read_text())["jobs"]
    figures = {j["name"]: json.loads((sweep / j["run"] / "summary.json").read_text()) for j in jobs}
    return Done(
        seconds,
        {job["name"]: job["seconds"] for job in jobs},
        {job: float(figure["test/bits_per_byte"]) for job, figure in figures.items()},
    )


def steps(number: int) -> tuple[str, str]:
    """Train for so many steps, and look at the validation data after the last."""
    return f"trainer.max_steps={number}", f"trainer.val_every={number}"


def report(alone: Done, together: Done, slots: int, device: str) -> str:
    """The table, in Markdown.

    Raises:
        UserError: the sweeps do not agree.
    """
    off = max(abs(alone.figures[job] - together.figures[job]) for job in alone.figures)
    if off > SAME:
        raise UserError(f"the two sweeps differ by {off:.2g} bits per byte, which is no rounding: no time is shown")
    gained = alone.seconds / together.seconds
    what = "GPUs" if device == "cuda" else "processes on the same cores"
    return "\n".join((
        f"\n{len(alone.jobs)} jobs, test figures within {off:.1g} bits per byte of each other\n",
        "| jobs at a time | sweep s | a job s | times faster | of what is possible |",
        "| --- | ---: | ---: | ---: | ---: |",
        f"| 1 | {alone.seconds:.1f} | {mean(alone):.1f} | 1 | |",
        f"| {slots} ({what}) | {together.seconds:.1f} | {mean(together):.1f} | {gained:.2f} "
        f"| {gained / possible(len(alone.jobs), slots):.0%} |",
    ))  # fmt: skip


def possible(jobs: int, slots: int) -> float:
    """How much sooner equal jobs could end: rounds of one after the other over rounds of slots."""
    return jobs / -(-jobs // slots)


def mean(done: Done) -> float:
    """Seconds of a job."""
    return sum(done.jobs.values()) / len(done.jobs)


if __name__ == "__main__":
    sys.exit(main())
