"""The commands as functions: what ``python -m src.NAME`` calls (one is of ``scripts``), reading ``sys.argv``."""

import sys
from collections.abc import Callable
from typing import Any

from scripts.figures import draw_attention, draw_patterns
from src import job, train
from src.config import command_line
from src.eval import evaluate
from src.sample import sample

PROGRAMS: dict[str, Callable[[], Any]] = {
    "train": train.main,
    "eval": lambda: command_line.command("eval", evaluate),
    "sample": lambda: command_line.command("sample", sample),
    "job": lambda: job.main(sys.argv[1:]),
    "draw_attention": draw_attention.main,
    "draw_patterns": draw_patterns.main,
}
