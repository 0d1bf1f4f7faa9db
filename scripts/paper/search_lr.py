"""A short search for learning rate and batch: a grid of short runs that all see the same bytes, and a table.

    python -m scripts.paper.search_lr --text FILE --minutes 8
    python -m scripts.paper.search_lr --text FILE --megabytes 40 -- optimizer.muon_learning_rate=0.01,0.02

The grid is that of conf/sweep/lr.yaml, or of the values behind ``--``; its first values run first. A run has
MEGABYTES / (batch * context) steps, the experiment's share of them with a short context, and one validation at its end.
Started again it goes on.
The table goes to the terminal and to search.md in the folder of the runs.

Exit code: 0 when all runs are finished, 75 when the time is up and something is left, otherwise as of a sweep.
"""

from __future__ import annotations

import argparse
import itertools
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from scripts.paper import study, table2
from src.config.words import quoted
from src.errors import UserError, exit_code
from src.system.atomic_files import written_whole

RATE, BATCH = "optimizer.muon_learning_rate", "data.batch_size"


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line, run, print the table; the exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    wanted = parser().parse_args(given)
    codes: list[int] = []

    def work() -> None:
        if not wanted.megabytes > 0:
            raise UserError(f"--megabytes must be above 0, found {wanted.megabytes}")
        seconds = study.limits(wanted)
        found, values = jobs(wanted)
        codes.append(study.run(found, ["-m", "scripts.paper.search_lr", *given], wanted.name, seconds, wanted.slots))
        folder = Path(wanted.runs, "sweeps", wanted.name)
        text = table({name: figures(folder / name) for name in run_names(values)}, values)
        with written_whole(folder / "search.md") as file:
            file.write(text.encode())
        print(text)
        if wanted.pack is not None:
            study.pack([folder], wanted.pack)

    return exit_code(work) or max(codes, default=0)


def parser() -> argparse.ArgumentParser:
    """Build the parser of the command line."""
    found = argparse.ArgumentParser(
        prog="python -m scripts.paper.search_lr",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = found.add_argument
    add("--text", nargs="?", const=table2.OWN, default=table2.OWN, metavar="PATH", help="a file to train on")
    add("--size", choices=tuple(table2.SIZES), default="short", help="experiment, as of scripts.paper.table2")
    add("--megabytes", type=float, default=20.0, help="that each run is trained on (default: 20)")
    study.add_limits(found)
    add("--name", default="lr", help="of the folder in FOLDER/sweeps (default: lr)")
    add("--pack", type=Path, metavar="FILE.tar.gz", help="write the results, without checkpoints, into an archive")
    add("overrides", nargs="*", metavar="-- KEY=VALUE", help="of the configuration of every run")
    return found


def jobs(wanted: argparse.Namespace) -> tuple[list[tuple[dict[str, str], Any]], dict[str, list[str]]]:
    """Compose the jobs; they, and the values of the grid."""
    words = table2.overrides(wanted, "text")
    values = study.grid("lr", words)
    kept = [f"experiment={table2.experiment(wanted, 'text')}", *(w for w in words if w.partition("=")[0] not in values)]
    found = []
    for name, (batch, rate) in zip(run_names(values), itertools.product(values[BATCH], values[RATE]), strict=True):
        own = [f"{BATCH}={batch}", f"{RATE}={rate}", f"name={name}", f"paths.output_dir={quoted(wanted.runs)}"]
        config = study.runnable([*kept, *own])
        steps = max(1, round(1e6 * wanted.megabytes / (config.data.batch_size * config.data.context)))
        short = config.optimizer.short_context_steps / (config.trainer.max_steps or math.inf)
        config.optimizer.short_context_steps = round(min(1.0, short) * steps)
        config.trainer.max_steps = config.trainer.val_every = steps
        found.append(({BATCH: batch, RATE: rate}, config))
    return found, values


def run_name(batch: str, rate: str) -> str:
    """Name one run of the grid."""
    return f"batch{batch}-lr{rate}"


def run_names(values: Mapping[str, Sequence[str]]) -> list[str]:
    """Name the runs, in their order."""
    return [run_name(batch, rate) for batch, rate in itertools.product(values[BATCH], values[RATE])]


def figures(folder: Path) -> dict[str, Any]:
    """Read the figures of a finished run; empty for others."""
    from src.runs.run import Run

    summary = Run(folder).summary()
    return summary if summary.get("status") == "finished" else {}


def table(found: Mapping[str, Mapping[str, Any]], values: Mapping[str, Sequence[str]]) -> str:
    """Lay validation bits per byte out by learning rate and batch; the best one stands out.

    Args:
        found: figures of each run by its name; empty where it is not finished.
        values: of the grid.
    """
    bits = {name: each["val/bits_per_byte"] for name, each in found.items() if each}
    best = min(bits, key=bits.__getitem__, default=None)

    def cell(batch: str, rate: str) -> str:
        name = run_name(batch, rate)
        if name not in bits:
            return "not yet run"
        text = f"{bits[name]:.4f}"
        return f"**{text}**" if name == best else text

    batches, rates = (sorted(values[key], key=float) for key in (BATCH, RATE))
    lines = ["| learning rate | " + " | ".join(f"batch {batch}" for batch in batches) + " |",
             "| ---: |" + " ---: |" * len(batches)]  # fmt: skip
    lines += [f"| {rate} | " + " | ".join(cell(batch, rate) for batch in batches) + " |" for rate in rates]
    some = next((each for each in found.values() if each), None)
    if some is not None:
        label = str(some["data/label"]) + (" (part of the official set)" if some["data/partial"] else "")
        lines += ["", f"Bits per byte of the whole validation split of {label}, after equally many bytes."]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
