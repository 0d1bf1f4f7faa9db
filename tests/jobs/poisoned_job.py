"""``src.job`` where one rank's loss is NaN in some steps: torchrun starts ``-m tests.jobs.poisoned_job RUN_DIR``."""

import sys

from src import job
from src.jobs import build
from src.processes.ranks import place
from tests.in_process import Poison

POISONED = (3, 4, 8)

if __name__ == "__main__":
    built = build.callbacks
    build.callbacks = lambda *arguments: [Poison(POISONED if place().rank == 1 else ()), *built(*arguments)]
    sys.exit(job.main(sys.argv[1:]))
