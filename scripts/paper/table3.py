"""The paper's table 3 for a run of yours: bits per byte by the least context that every scored byte has.

    python -m scripts.paper.table3 run=runs/NAME
    python -m scripts.paper.table3 run=runs/NAME split=test data.eval_batch_size=32 trainer.devices=2

Takes what ``python -m src.eval`` takes. Without ``eval.min_context`` the rows are those of the paper, in proportion to
the run's context. Every byte of the split is scored once a row; the first row, without overlap, is the cheapest one, a
row of least context M costs context / (context - M) times as much. The table goes to the terminal and to
RUN_DIR/table3.md.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from src.config.command_line import say_error
from src.errors import UserError
from src.runs.run import Run
from src.system.atomic_files import written_whole

CONTEXT = 12_288
PAPER = {6144: 0.9952, 9216: 0.9936, 10752: 0.9932, 11904: 0.9930, 12096: 0.9922, 12160: 0.9908}
"""Least context: bits per byte of the paper's model on the test split of enwik8 (table 3)."""


def main(arguments: Sequence[str]) -> int:
    """Evaluate, print and write the table; the exit code."""
    if not arguments or {"-h", "--help"} & set(arguments):
        print(__doc__)
        return 0 if arguments else 2
    given = dict(word.partition("=")[::2] for word in arguments)
    try:
        if "run" not in given:
            raise UserError("run has no value: give it as run=RUN_DIR")
        run = Run.find(given["run"])
        context = run.config().data.context
        rows = [0, *scaled(context)]
        asked = [f"split={given.get('split', 'validation')}", *(word for word in arguments if word[:6] != "split=")]
        if "eval.min_context" not in given:
            asked.append(f"eval.min_context=[{','.join(map(str, rows))}]")
        if code := subprocess.run([sys.executable, "-m", "src.eval", *asked], check=False).returncode:
            return code
        figures = Run.find(given["run"]).summary()
    except UserError as error:
        say_error(error)
        return 2
    prefix = ("last/" if given.get("checkpoint") == "last" else "") + ("test" if asked[0] == "split=test" else "val")
    text = table(figures, prefix, context)
    with written_whole(run.path / "table3.md") as file:
        file.write(text.encode())
    print(text)
    return 0


def scaled(context: int) -> list[int]:
    """The paper's least contexts for another context, each once: 6,144 of 12,288 is 512 of 1,024."""
    return sorted({least * context // CONTEXT for least in PAPER} - {0})


def table(figures: dict[str, Any], prefix: str, context: int) -> str:
    """Lay the rows that a run's figures have out as Markdown, beside the paper's.

    Args:
        figures: of summary.json.
        prefix: which of them: ``val``, ``test``, ``last/val`` or ``last/test``.
        context: of the run, bytes.
    """
    label = str(figures["data/label"]) + (" (partial)" if figures["data/partial"] else "")
    split = "test" if prefix.endswith("test") else "validation"
    start = f"{prefix}/bits_per_byte@min_context="
    found = {int(name.removeprefix(start)): figures[name] for name in figures if name.startswith(start)}
    found[0] = figures.get(f"{prefix}/bits_per_byte")
    paper = {least * context // CONTEXT: (least, bits) for least, bits in PAPER.items()}
    lines = [
        f"{split} split of {label}, every byte scored once in each row; context {context:,}",
        "",
        "| least context | bits per byte | paper: least context of 12,288 | paper: bits per byte (enwik8, test) |",
        "| ---: | ---: | ---: | ---: |",
    ]
    for least in sorted(row for row in found if found[row] is not None):
        of, bits = paper.get(least, (None, None))
        beside = f"{of:,} | {bits:.4f}" if of is not None else "|"
        lines.append(f"| {least:,} | {found[least]:.4f} | {beside} |")
    if "enwik8" not in label or figures["data/partial"]:
        lines += ["", "Not the paper's data: its figures stand beside ours to compare the trend, not the values."]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
