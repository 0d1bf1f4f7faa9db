"""The paper's table 3 for a run of yours: bits per byte by the least context that every scored byte has.

    python -m scripts.paper.table3 RUN_DIR
    python -m scripts.paper.table3 RUN_DIR --split test --bytes 500000

All rows score the same bytes, each at the same place within its block of attention.stride bytes, so that they differ by
context alone (docs/evaluation.md). The rows are those of the paper and some below, in proportion to the run's context.
The work is shared out over the GPUs that CUDA_VISIBLE_DEVICES leaves. The table goes to the terminal and to
RUN_DIR/table3.md, its figures to RUN_DIR/table3.json.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from src.config.checks import PICTURE_SIDES
from src.config.schema import Config
from src.errors import UserError, exit_code
from src.processes.ranks import GRACE, supervise
from src.runs.run import Run, write_atomically
from src.system.gpus import ask, gpu_count

BYTES = 1_000_000


def main(arguments: Sequence[str]) -> int:
    """Score, print and write the table; the exit code."""
    ask()
    wanted = options(arguments)
    codes: list[int] = []
    return (
        exit_code(lambda: codes.append(made(wanted, ["python", "-m", "scripts.paper.table3", *arguments]))) or codes[0]
    )


def options(arguments: Sequence[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.paper.table3", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", metavar="RUN_DIR")
    parser.add_argument("--split", choices=("validation", "test"), default="validation")
    parser.add_argument("--checkpoint", choices=("best", "last"), default="best")
    parser.add_argument(
        "--bytes", type=_positive, default=BYTES, metavar="N", help=f"to score, about (default: {BYTES:,})"
    )
    parser.add_argument("--rows", type=_numbers, metavar="N,N,...", help="least contexts (default: as the paper's)")
    parser.add_argument("--batch-size", type=_positive, metavar="N", help="windows of a forward pass")
    parser.add_argument("--devices", type=_positive, metavar="N", help="processes (default: one a GPU, or one)")
    parser.add_argument("--data", metavar="FILE", help="data.path, where it is not that of the run")
    return parser.parse_args(arguments)


def made(wanted: argparse.Namespace, command: list[str]) -> int:
    """Make the table; the exit code.

    Raises:
        UserError: what the user can mend.
    """
    from scripts.paper.table3_plan import check_rows
    from scripts.paper.table3_text import scaled

    run = Run.find(wanted.run)
    config = run.config()
    run.checkpoint(wanted.checkpoint)
    if config.data.name in PICTURE_SIDES:
        raise UserError(f"table 3 is of text, found data.name={config.data.name} in {run.config_file}")
    context, stride = config.data.context, config.attention.stride
    least = scaled(context, stride) if wanted.rows is None else wanted.rows
    check_rows(least, context, stride)
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="table3-") as name:
        folder = Path(name)
        request = {
            "run": str(run.path), "checkpoint": wanted.checkpoint, "split": wanted.split, "least": least,
            "wanted": wanted.bytes, "batch": wanted.batch_size or 0, "path": wanted.data,
        }  # fmt: skip
        (folder / "request.json").write_text(json.dumps(request))
        count = devices(wanted.devices, config)
        code = supervise([sys.executable, "-m", "scripts.paper.table3_score", name], count, 1, grace=GRACE)
        if code:
            return code
        about: dict[str, Any] = json.loads((folder / "about.json").read_text())
        about |= {"command": command, "seconds": round(time.monotonic() - began, 1), "devices": count, **request}
        text, kept = outcome(folder, about, config)
    write_atomically(run.path / "table3.json", json.dumps(kept, indent=1) + "\n")
    write_atomically(run.path / "table3.md", text)
    print(text)
    print(f"written: {run.path / 'table3.md'} and {run.path / 'table3.json'}")
    return 0


def devices(asked: int | None, config: Config) -> int:
    """Give the number of processes.

    Raises:
        UserError: more than there are GPUs.
    """
    gpus = 0 if config.trainer.accelerator == "cpu" else gpu_count()
    if asked is not None and gpus and asked > gpus:
        raise UserError(f"--devices must be at most the {gpus} GPUs of this machine, found {asked}")
    return asked or gpus or 1


def outcome(folder: Path, about: dict[str, Any], config: Config) -> tuple[str, dict[str, Any]]:
    """Put together what the processes found.

    Args:
        folder: where they left it.
        about: what is known of data and machine.
        config: of the run.

    Returns:
        The table as Markdown, and what is kept of it as JSON.
    """
    import numpy as np

    from scripts.paper.table3_plan import plan
    from scripts.paper.table3_text import figures, report

    wanted = plan(about["size"], config.data.context, config.attention.stride, about["least"], about["wanted"])
    nats = np.load(folder / "0.npy")
    for rank in range(1, about["devices"]):
        other = np.load(folder / f"{rank}.npy")
        np.copyto(nats, other, where=np.isnan(nats))
    found = figures(nats, wanted)
    kept = {**about, "bytes": len(wanted.places), "rows": found}
    return report(found, about["least"], config, wanted, head(about, config)), kept


def head(about: dict[str, Any], config: Config) -> str:
    """Say of which run, data and machine the table is."""
    source = about["made"]
    commit = (source["git_commit"] or "unknown")[:7] + " with changes" * bool(
        source["git_commit"] and source["git_changed"]
    )
    machine = f"{about['devices']} × {source['gpus'][0]}" if source["gpus"] else "CPU"
    label = str(about["label"]) + (" (partial)" if about["partial"] else "")
    attention, model = config.attention, config.model
    lines = [
        f"{about['split'].capitalize()} split of {label}; {model.depth} blocks of {model.width}, {attention.pattern} "
        f"attention (stride {attention.stride}), context {config.data.context:,}; {machine}, {about['seconds']:.0f} s, "
        f"torch {source['packages']['torch']}, {source['time'][:10]}, commit {commit}: `{' '.join(about['command'])}`"
    ]
    if "enwik8" not in label or about["partial"]:
        lines += ["", "Not the paper's data: its figures stand beside ours to compare the trend, not the values."]
    return "\n".join(lines)


def _positive(text: str) -> int:
    if not text.isdecimal() or (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, found {text}")
    return number


def _numbers(text: str) -> list[int]:
    words = text.split(",")
    if not all(word.strip().isdecimal() for word in words):
        raise argparse.ArgumentTypeError(f"must be whole numbers such as 0,1024, found {text}")
    return sorted({int(word) for word in words})


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
