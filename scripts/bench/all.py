"""Every measurement of docs/benchmarks.md that needs one GPU, one after the other, into a folder.

    python -m scripts.bench.all                                    # all, about an hour
    python -m scripts.bench.all --only attention --only step --minutes 9 --output bench

Each writes FOLDER/NAME.txt. One that fails or runs out of time is reported and the next begins; with --minutes those
that no time is left for are left out. Exit code: 0 if all went through.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from src.errors import UserError, exit_code

BENCHES = {
    "attention": ("scripts.bench.attention", "--output", "FOLDER/attention.md", "--picture", "FOLDER/attention.png"),
    "patterns": ("scripts.bench.patterns", "--output", "FOLDER/patterns.md"),
    "shared": ("scripts.bench.shared", "--output", "FOLDER/shared.md"),
    "decode": ("scripts.bench.decode", "--every", "16"),
    "checkpoint": ("scripts.bench.checkpoint",),
    "step": ("scripts.bench.step", "--profile", "--output", "FOLDER/step.md"),
    "long": ("scripts.bench.long",),
    "loader": ("scripts.bench.loader",),
}
SHOWN = 12  # last lines of each that are repeated on the terminal


class Outcome(NamedTuple):
    """How one measurement ended: in words, and after how many seconds."""

    name: str
    ended: str
    seconds: float


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure what the command line asks for; the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.bench.all",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--only", choices=BENCHES, action="append", help="may be repeated (default: all, in this order)"
    )
    parser.add_argument("--minutes", type=float, help="for all together")
    parser.add_argument("--output", type=Path, default=Path("bench"), help="folder (default: bench)")
    wanted = parser.parse_args(arguments)
    outcomes: list[Outcome] = []

    def work() -> None:
        ends = None if wanted.minutes is None else time.monotonic() + 60 * wanted.minutes
        try:
            wanted.output.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"--output {wanted.output} cannot be made: {error.strerror}") from error
        for name in wanted.only or BENCHES:
            outcomes.append(measured(name, wanted.output, ends))
        print("\n".join(f"{name:12}{seconds:7.0f} s  {ended}" for name, ended, seconds in outcomes))

    return exit_code(work) or int(any(outcome.ended != "done" for outcome in outcomes))


def measured(name: str, folder: Path, ends: float | None) -> Outcome:
    """Run one measurement until it or the time ends, and show the last lines of what it said."""
    began = time.monotonic()
    if ends is not None and began >= ends:
        return Outcome(name, "left out: the time is up", 0.0)
    command = [sys.executable, "-m", *(word.replace("FOLDER", str(folder)) for word in BENCHES[name])]
    print(f"--- {name}: {' '.join(command[1:])}", flush=True)
    log = folder / f"{name}.txt"
    with log.open("w") as file:
        try:
            code = subprocess.run(
                command,
                stdout=file,
                stderr=subprocess.STDOUT,
                timeout=None if ends is None else ends - began,
                check=False,
            ).returncode
            ended = "done" if code == 0 else f"failed with exit code {code}, see {log}"
        except subprocess.TimeoutExpired:
            ended = f"cut off: the time is up, see {log}"
    print("\n".join(log.read_text(errors="replace").splitlines()[-SHOWN:]), flush=True)
    return Outcome(name, ended, time.monotonic() - began)


if __name__ == "__main__":
    sys.exit(main())
