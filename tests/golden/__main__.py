"""Compare the golden losses of all experiments, or store them anew.

python -m tests.golden            a table of the greatest differences
python -m tests.golden --write    after a change that is meant to change losses: say in the commit why
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

from tests.golden import EXPERIMENTS, TOLERANCE, greatest_difference, losses, make_data, store, stored


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="store today's losses")
    parser.add_argument("experiments", nargs="*", metavar="EXPERIMENT", help="default: all")
    options = parser.parse_args()
    failed = False
    with tempfile.TemporaryDirectory() as name:
        make_data(Path(name))
        print("| experiment | last loss, bits per byte | greatest difference | seconds |\n| --- | ---: | ---: | ---: |")
        for experiment in options.experiments or EXPERIMENTS:
            began = time.monotonic()
            found = losses(experiment, Path(name), Path(name) / "runs")
            if options.write:
                store(experiment, found)
            difference = greatest_difference(found, stored(experiment))
            failed |= difference > TOLERANCE
            print(f"| {experiment} | {found['train'][-1]:.4f} | {difference:.1e} | {time.monotonic() - began:.1f} |")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
