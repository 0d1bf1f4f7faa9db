"""The commands as functions: what ``python -m src.NAME`` calls (one is of ``scripts``), reading ``sys.argv``."""

import sys
from collections.abc import Callable
from typing import Any

from scripts import draw_attention
from src import cli, job, train
from src.eval import evaluate
from src.sample import sample

PROGRAMS: dict[str, Callable[[], Any]] = {
    "train": train.main,
    "eval": lambda: cli.command("eval", evaluate),
    "sample": lambda: cli.command("sample", sample),
    "job": lambda: job.main(sys.argv[1:]),
    "draw_attention": draw_attention.main,
}
