"""The rows of ``scripts.bench.scaling``: which may show a time, and their tables."""

from __future__ import annotations

import argparse
import datetime
import math
import subprocess
import sys
from dataclasses import dataclass, field
from typing import Any

PAPER = {"enwik8": 2, "cifar10": 4, "imagenet64": 2}  # sequences a device takes at once: 8 have the paper's batch
CONTEXT = {"enwik8": 12_288, "cifar10": 3_072, "imagenet64": 12_288, "tiny": 256}
# Allowed, in bits per byte and relative gradient norm: sums over devices come in another order, and half-precision
# gradients are rounded on the wire. Ranks that forget each other's gradients are off by 0.05 in norm.
EXACT, ROUNDED = (1e-4, 1e-3), (1e-3, 5e-3)


@dataclass
class Row:
    """A model on some devices.

    Args:
        model: whose size.
        devices: processes.
        strategy: ``ddp`` or ``fsdp2``; ``one`` for a single device.
        compression: number format of gradients on the wire.
        batch: sequences of a step over all devices.
        timed: whether it is more than a reference for the losses of others.
        found: what ``scripts.bench.scaling_rank`` measured; ``error`` where it failed.
    """

    model: str
    devices: int
    strategy: str
    compression: str
    batch: int
    timed: bool = True
    found: dict[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> tuple[str, int, str, str, int]:  # noqa: D102
        return self.model, self.devices, self.strategy, self.compression, self.batch

    @property
    def name(self) -> str:  # noqa: D102
        return "-".join(map(str, self.key))


def disagreement(ours: dict[str, Any], reference: dict[str, Any]) -> tuple[float, float]:
    """Give the largest difference of losses (bits per byte) and of gradient norms (relative) over the checked steps."""
    losses = [abs(a - b) for a, b in zip(ours["losses"], reference["losses"], strict=True)]
    norms = [abs(a / b - 1) for a, b in zip(ours["norms"], reference["norms"], strict=True)]
    return _largest(losses), _largest(norms)


def _largest(values: list[float]) -> float:
    """The largest, or infinity where one is no number."""
    return max((math.inf if math.isnan(value) else value for value in values), default=math.inf)


def one_device(row: Row, rows: list[Row], batch: int) -> dict[str, Any]:
    """What one device did with a model and a global batch; empty if it failed or was not asked."""
    return next(
        (r.found for r in rows if (r.model, r.devices, r.batch) == (row.model, 1, batch) and "error" not in r.found), {}
    )


def refusal(row: Row, rows: list[Row]) -> str | None:
    """Say why no time of a row may be shown; None if it trains as one device does."""
    if "error" in row.found or not row.found:
        return row.found.get("error", "not measured")
    reference = one_device(row, rows, row.batch)
    if not reference:
        return "one device did not train this batch"
    loss, norm = disagreement(row.found, reference)
    most_loss, most_norm = EXACT if row.compression == "none" else ROUNDED
    if loss <= most_loss and norm <= most_norm:
        return None
    return f"not as one device: loss off by {loss:.2g} bits per byte, gradient norm by {norm:.2g}"


def verdict(row: Row, rows: list[Row]) -> str:
    """One line on a row that is done."""
    if (reason := refusal(row, rows)) is not None:
        return reason
    loss, norm = disagreement(row.found, one_device(row, rows, row.batch))
    same = "" if row.devices == 1 else f"as one device (loss within {loss:.1g}, gradient norm within {norm:.1g}), "
    return f"{same}{1000 * row.found['seconds']:,.1f} ms a step" if row.timed else "losses kept"


def speed(row: Row) -> float:
    """Bytes a second over all devices."""
    return row.batch * CONTEXT[row.model] / float(row.found["seconds"])


def efficiency(row: Row, rows: list[Row], kind: str) -> float | None:
    """Speed against that of one device, over the number of devices; None where one device has no time."""
    batch = row.batch // row.devices if kind == "weak" else row.batch
    base = one_device(row, rows, batch)
    if "seconds" not in base:
        return None
    return speed(row) / row.devices / (batch * CONTEXT[row.model] / float(base["seconds"]))


def report(rows: list[Row], options: argparse.Namespace) -> str:
    """The tables, in Markdown."""
    lines = [f"\n{machine(options)}\n`python -m scripts.bench.scaling {' '.join(sys.argv[1:])}`"]
    head = ("devices", "strategy", "gradients", "batch", "ms a step", "MB/s", "efficiency", "communication (alone)",
            "peak GiB", "loss off by", "norm off by")  # fmt: skip
    for model in dict.fromkeys(row.model for row in rows):
        for kind in options.scaling or ("weak", "strong"):
            lines += [f"\n**{model}**, {kind} scaling, sequences of {CONTEXT[model]:,} bytes\n"]
            lines += [f"| {' | '.join(head)} |", f"| ---: | --- | --- |{' ---: |' * (len(head) - 3)}"]
            lines += [line(row, rows, kind) for row in rows if row.model == model and row.timed and of(row, rows, kind)]
    return "\n".join(lines)


def of(row: Row, rows: list[Row], kind: str) -> bool:
    """Whether a row belongs to weak or to strong scaling; those of the most devices may belong to both."""
    batches = [r.batch for r in rows if r.model == row.model]
    return row.batch == (max(batches) if kind == "strong" else PAPER.get(row.model, 2) * row.devices)


def line(row: Row, rows: list[Row], kind: str) -> str:
    """A line of a table."""
    start = f"| {row.devices} | {row.strategy} | {row.compression} | {row.batch} |"
    if (reason := refusal(row, rows)) is not None:
        return f"{start} {reason} | | | | | | |"
    loss, norm = disagreement(row.found, one_device(row, rows, row.batch))
    share, alone, gained = row.found["share"], row.found["alone"], efficiency(row, rows, kind)
    talk = "" if share is None else f"{share:.0%}" + ("" if math.isnan(alone) else f" ({alone:.0%})")
    cells = (
        f"{1000 * row.found['seconds']:,.1f}", f"{speed(row) / 1e6:,.2f}", "" if gained is None else f"{gained:.0%}",
        talk, f"{row.found['peak_gib'] or 0:.2f}", f"{loss:.1g}", f"{norm:.1g}",
    )  # fmt: skip
    return f"{start} {' | '.join(cells)} |"


def machine(options: argparse.Namespace) -> str:
    """Name what was measured on, with what, when."""
    import torch

    names = (
        [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if options.device == "cuda" else []
    )
    what = f"{len(names)} x {names[0]}" if names else f"CPU, {torch.get_num_threads()} threads"
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    today = datetime.datetime.now().strftime("%Y-%m-%d")
    return f"{what}, PyTorch {torch.__version__}, {today}, commit {commit.stdout.strip() or 'unknown'}"
