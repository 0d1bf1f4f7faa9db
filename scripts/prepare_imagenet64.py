"""Turn the archives of ImageNet 64x64 into one memory-mapped uint8 file for each split.

FOLDER holds train_64x64.tar and valid_64x64.tar (van den Oord et al. 2016), or train_data_batch_1.npz to _10.npz and
val_data.npz (Chrabaszcz et al. 2017). A run that was stopped goes on where it was with the same command.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path


def main() -> int:
    """Parse the command line and prepare both splits; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m scripts.prepare_imagenet64", description=__doc__)
    parser.add_argument("folder", type=Path, help="where the archives are")
    parser.add_argument("--out", type=Path, default=Path("data/imagenet64"), help="default %(default)s")
    parser.add_argument(
        "--on-bad", choices=("refuse", "skip"), default="refuse", help="damaged, non-RGB or wrong-size pictures"
    )
    parser.add_argument("--allow-partial", action="store_true", help="accept fewer pictures, labelled so")
    parser.add_argument(
        "--workers", type=int, default=len(os.sched_getaffinity(0)), help="processes (default: all cores)"
    )
    arguments = parser.parse_args()
    if arguments.workers < 1:
        parser.error(f"--workers must be at least 1, found {arguments.workers}")
    from src.errors import exit_code

    return exit_code(lambda: prepare(arguments), stopped="stopped; the same command goes on")


def prepare(arguments: argparse.Namespace) -> None:
    """Prepare each split that the folder has, and say what came of it.

    Raises:
        UserError: archives that are missing or damaged, or a place that cannot be written.
    """
    from src.data.picture_prepare import Preparation, find_splits

    for split in find_splits(arguments.folder):
        started = time.monotonic()
        known = Preparation(
            split,
            arguments.out,
            skip_bad=arguments.on_bad == "skip",
            allow_partial=arguments.allow_partial,
            workers=arguments.workers,
        ).run()
        seconds = time.monotonic() - started
        print(f"{arguments.out / split.name}.npy: {known['pictures']:,} pictures, {known['label']}, {seconds:.1f} s")
        for skipped in known["skipped"]:
            print(f"  skipped {skipped['member']}: it {skipped['reason']}")


if __name__ == "__main__":
    sys.exit(main())
