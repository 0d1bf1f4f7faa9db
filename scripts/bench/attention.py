"""Time attention side by side on this machine's GPU: dense, FlexAttention, the `torch` backend and the Triton kernels.

    python -m scripts.bench.attention                         # the paper's shapes, then the picture
    python -m scripts.bench.attention --shape enwik8 --no-picture

Every result is checked against float64 before it is timed, and a wrong one gets no time. Times are medians of graph
replays with the cache cleared between them, so every row is the GPU's work alone. TFLOP/s count the pairs that the
pattern keeps and no others; "rate" is their share of what a large bf16 matrix product reaches on the same GPU.
"""

from __future__ import annotations

import argparse
import datetime
import platform
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from scripts.bench.attention_rows import ROWS, Problem
from scripts.bench.check_attention import worst_error
from src.attention.patterns import Pattern

TOLERANCE = 1e-2  # relative error of bf16 results against float64; PyTorch's own attention makes 2e-3 to 5e-3


class Result(NamedTuple):
    """One row of the table: milliseconds, TFLOP/s over kept pairs, peak bytes of forward + backward, worst error."""

    forward: float
    both: float
    forward_rate: float
    both_rate: float
    peak: int
    error: float


SHAPES = {
    "enwik8": (4, 8, 12_288, 64, 64),
    "cifar10": (16, 2, 3_072, 64, 128),
    "imagenet64": (4, 16, 12_288, 32, 32),
    "long": (1, 8, 65_536, 64, 64),
}
PATTERNS = {"fixed": Pattern("fixed", 128, 32), "strided": Pattern("strided", 128)}


def main() -> None:
    """Bench what the command line asks for."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.bench.attention",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--shape", choices=SHAPES, action="append", help="shapes of the table (default: all)")
    parser.add_argument("--row", choices=ROWS, action="append", metavar="NAME", help="implementations (default: all)")
    parser.add_argument("--output", type=Path, default=Path("docs/benchmarks_gpu.md"), help="where the table goes")
    parser.add_argument("--picture", type=Path, default=Path("docs/attention_time.png"), help="where the picture goes")
    parser.add_argument("--no-picture", action="store_true", help="only the table")
    parser.add_argument("--longest", type=int, default=262_144, help="longest sequence of the picture")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("scripts.bench.attention needs a CUDA GPU, found none: see scripts.bench.factorized")
    peak = matrix_rate()
    lines = [header(peak)]
    for name in options.shape or SHAPES:
        lines += table(name, options.row or list(ROWS), peak)
        options.output.write_text("\n".join(lines) + "\n")
    if not options.no_picture:
        from scripts.bench.attention_picture import draw

        lines += draw(options.picture, options.longest, measure)
    options.output.write_text("\n".join(lines) + "\n")
    print(f"wrote {options.output}")


def table(shape: str, rows: list[str], peak: float) -> list[str]:
    """Time one shape and return its lines of Markdown."""
    batch, heads, n, qk, v = SHAPES[shape]
    lines = [
        f"\n### {shape}: batch {batch}, {heads} heads, n {n:,}, q/k {qk}, v {v}, l 128, c 32\n",
        "| | forward ms | forward + backward ms | TFLOP/s | rate | to cuDNN dense | peak GiB | error |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    dense: Result | None = None
    for name in rows:
        for pattern in [None] if name.startswith("dense") else list(PATTERNS):
            label = name if pattern is None else f"{pattern}, {name}"
            problem = Problem(PATTERNS[pattern] if pattern else Pattern("dense"), *SHAPES[shape])
            line, result = one_row(label, ROWS[name], problem, peak, dense)
            dense = dense or result
            lines.append(line)
            print(line, flush=True)
            del problem
            torch.cuda.empty_cache()
    return lines


def one_row(
    label: str,
    build: Callable[[Problem], Callable[[], Tensor] | None],
    problem: Problem,
    peak: float,
    dense: Result | None,
) -> tuple[str, Result | None]:
    """Check and time one implementation; a wrong or impossible one gets its reason instead of times."""
    try:
        call = build(problem)
        if call is None:
            return f"| {label} | no better setting than its default | | | | | | |", None
        result = time_row(call, problem)
    except Exception as error:  # out of memory, a shape it cannot do, a wrong result
        torch.cuda.synchronize()
        reason = str(error).strip().splitlines()[0][:90] if str(error).strip() else type(error).__name__
        return f"| {label} | {type(error).__name__}: {reason} | | | | | | |", None
    against = f"{dense.forward / result.forward:.2f} / {dense.both / result.both:.2f}" if dense else "1 / 1"
    return (
        f"| {label} | {result.forward:.3f} | {result.both:.3f} | {result.forward_rate:.0f} / {result.both_rate:.0f} "
        f"| {result.forward_rate / peak:.0%} / {result.both_rate / peak:.0%} | {against} "
        f"| {result.peak / 2**30:.2f} | {result.error:.1e} |"
    ), result


def time_row(call: Callable[[], Tensor], problem: Problem) -> Result:
    """Check, then time, forward alone and forward + backward."""
    out, gradients = problem.run(call)
    error = worst_error(problem, out, gradients)
    if not error <= TOLERANCE:
        raise ValueError(f"wrong: error {error:.1e} against float64, allowed {TOLERANCE:.0e}")
    del out, gradients
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    problem.run(call)
    peak = torch.cuda.max_memory_allocated() - before
    with torch.no_grad():
        forward = measure(call)
    both = measure(lambda: problem.run(call))
    pairs = problem.pairs()
    flops = 2 * pairs * (problem.qk + problem.v)
    all_flops = flops + 2 * pairs * (3 * problem.qk + 2 * problem.v)
    return Result(forward, both, flops / forward / 1e9, all_flops / both / 1e9, peak, error)


def measure(call: Callable[[], object]) -> float:
    """Median milliseconds of one call, replayed from a CUDA graph so that the CPU's share is left out."""
    from triton.testing import do_bench

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(2):
            call()
    torch.cuda.current_stream().wait_stream(side)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kept = call()  # its memory belongs to the graph
    time = float(do_bench(graph.replay, warmup=25, rep=100, return_mode="median"))
    del kept
    return time


def matrix_rate() -> float:
    """TFLOP/s of a large bf16 matrix product on this GPU."""
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    return 2 * 8192**3 / measure(lambda: a @ b) / 1e9


def header(peak: float, title: str = "Attention", script: str = "scripts.bench.attention") -> str:
    """What was measured on what, and when."""
    import triton

    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False).stdout
    return (
        f"## {title} on {torch.cuda.get_device_name()}\n\n"
        f"{datetime.date.today()}, commit {commit.strip() or 'unknown'}, "
        f"PyTorch {torch.__version__}, Triton {triton.__version__}, Python {platform.python_version()}, bf16, "
        f"merged heads. A bf16 matrix product of 8,192 reaches {peak:.0f} TFLOP/s. Pairs of figures are forward / "
        f"forward + backward.\n\nMade by `python -m {script}`."
    )


if __name__ == "__main__":
    main()
