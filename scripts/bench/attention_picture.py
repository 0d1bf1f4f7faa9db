"""The picture of ``scripts.bench.attention``: time against sequence length, beside the slopes n*sqrt(n) and n*n.

    python -m scripts.bench.attention_picture docs/benchmarks.md docs/attention_time.png --on "NVIDIA H200"

draws it again from a table that ``scripts.bench.attention`` wrote.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import torch

from scripts.bench.attention_rows import ROWS, Problem
from src.attention.patterns import Pattern

SHORTEST = 1024
HEADS, WIDTH = 8, 64


def draw(path: Path, longest: int, measure: Callable[[Callable[[], object]], float]) -> list[str]:
    """Time forward + backward of one sequence for doubling lengths, draw it log-log, and return the table's lines.

    Args:
        path: the PNG to write.
        longest: last length, a power of two.
        measure: times a call in milliseconds.
    """
    lengths = [SHORTEST * 2**i for i in range((longest // SHORTEST).bit_length())]
    series: dict[str, tuple[str, Callable[[int], Pattern]]] = {
        "dense, SDPA cuDNN": ("dense, SDPA cuDNN", lambda n: Pattern("dense")),
        "fixed, l = 128, c = 32": ("Triton", lambda n: Pattern("fixed", 128, 32)),
        "strided, l = 128": ("Triton", lambda n: Pattern("strided", 128)),
        "fixed, l near sqrt(n), c = 32": ("Triton", lambda n: Pattern("fixed", max(32, _root(n)), 32)),
        "strided, l near sqrt(n)": ("Triton", lambda n: Pattern("strided", _root(n))),
    }
    times: dict[str, list[float]] = {}
    for label, (row, pattern) in series.items():
        times[label] = []
        for n in lengths:
            problem = Problem(pattern(n), 1, HEADS, n, WIDTH, WIDTH)
            call = ROWS[row](problem)
            assert call is not None
            times[label].append(measure(lambda problem=problem, call=call: problem.run(call)))  # type: ignore[misc]
            del problem, call
            torch.cuda.empty_cache()
        print(label, [f"{ms:.3f}" for ms in times[label]], flush=True)
    plot(path, lengths, times, torch.cuda.get_device_name())
    head = "| | " + " | ".join(f"{n:,}" for n in lengths) + " |"
    rows = [f"| {label} | " + " | ".join(f"{ms:.3f}" for ms in row) + " |" for label, row in times.items()]
    return [
        f"\n### Time against length: one sequence, {HEADS} heads of {WIDTH}, forward + backward, ms\n",
        head, "| --- |" + " ---: |" * len(lengths), *rows, f"\n![time against length]({path.name})",
    ]  # fmt: skip


def _root(n: int) -> int:
    """The power of two nearest to sqrt(n), from above."""
    return 1 << ((n - 1).bit_length() + 1) // 2


def read(text: str) -> tuple[list[int], dict[str, list[float]]]:
    """Read the lengths and each row's times from the first table of times against lengths in Markdown text.

    Raises:
        ValueError: there is none.
    """
    lines = iter(text.splitlines())
    head = next((line for line in lines if line.startswith(f"| | {SHORTEST:,} |")), None)
    if head is None:
        raise ValueError(f"no table that begins with '| | {SHORTEST:,} |'")
    next(lines)
    times: dict[str, list[float]] = {}
    for line in lines:
        if not line.startswith("| "):
            break
        label, *cells = (cell.strip() for cell in line.strip("|").split("|"))
        times[label] = [float(cell) for cell in cells]
    return [int(cell.replace(",", "")) for cell in head.strip("| ").split("|")], times


def plot(path: Path, lengths: list[int], times: dict[str, list[float]], device: str) -> None:
    """Draw milliseconds against length, both logarithmic, and write a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 5.5))
    for label, row in times.items():
        axes.loglog(lengths, row, marker="o", label=label)
    last, n = lengths[-1], torch.tensor(lengths, dtype=torch.float64)
    slopes = ((1.5, ":", "n sqrt(n)", "strided, l near sqrt(n)"), (2.0, "--", "n²", "dense, SDPA cuDNN"))
    for power, style, label, anchor in slopes:
        axes.loglog(lengths, times[anchor][-1] * (n / last) ** power, style, color="grey", label=f"slope {label}")
    axes.set_xlabel("sequence length n")
    axes.set_ylabel("forward + backward, ms")
    axes.set_title(f"One sequence, {HEADS} heads of {WIDTH}, bf16, {device}")
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def main() -> None:
    """Draw the picture of a table."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.bench.attention_picture",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("table", type=Path, help="Markdown file with the table")
    parser.add_argument("picture", type=Path, help="PNG to write")
    parser.add_argument("--on", default="NVIDIA GPU", help="what it was measured on")
    options = parser.parse_args()
    try:
        lengths, times = read(options.table.read_text())
    except (OSError, ValueError) as error:
        parser.error(f"{options.table}: {error}")
    plot(options.picture, lengths, times, options.on)


if __name__ == "__main__":
    main()
