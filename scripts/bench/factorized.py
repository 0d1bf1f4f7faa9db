"""Measure the `torch` backend on a CPU: growth with the sequence length, and speed against dense attention.

Growth: n = 1k, 4k, 16k with l = 32, 64, 128 (sqrt(n)) and c = 8; every point in a process of its own, time and peak
memory of forward and backward above the baseline. Speed: the paper's enwik8 attention (n = 12,288, 8 heads of 64,
l = 128, c = 32) against PyTorch's dense causal scaled_dot_product_attention, in turns on the same machine.
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

GROWTH = ((1_024, 32), (4_096, 64), (16_384, 128))


def main() -> None:
    """Parse the command line, measure, print Markdown."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.bench.factorized",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--part", choices=("all", "growth", "speed"), default="all", help="default %(default)s")
    parser.add_argument("--repeats", type=int, default=5, help="timed runs of each row (default %(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (default %(default)s)")
    parser.add_argument("--point", help=argparse.SUPPRESS)  # one point of the growth part, in its own process
    arguments = parser.parse_args()
    import torch

    torch.set_num_threads(arguments.threads)
    if arguments.point:
        name, n, stride = arguments.point.split(",")
        print(json.dumps(measure_point(name, int(n), int(stride), arguments.repeats)))
        return
    print(
        f"{cpu_name()}, {arguments.threads} threads, PyTorch {torch.__version__}, {datetime.date.today()}, "
        f"`python -m scripts.bench.factorized --part {arguments.part} --repeats {arguments.repeats} "
        f"--threads {arguments.threads}`\n"
    )
    if arguments.part in ("all", "growth"):
        print_growth(arguments.repeats, arguments.threads)
    if arguments.part in ("all", "speed"):
        print_speed(arguments.repeats)


def print_growth(repeats: int, threads: int) -> None:
    """Print time and peak memory against n, and the exponents of their growth."""
    print("| pattern | n | l | forward + backward ms | peak MiB above the inputs | growth of time | of memory |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    for name in ("strided", "fixed", "dense"):
        before: dict[str, float] = {}
        for n, stride in GROWTH:
            command = [sys.executable, "-m", "scripts.bench.factorized", "--point", f"{name},{n},{stride}"]
            command += ["--repeats", str(repeats), "--threads", str(threads)]
            found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            exponents = "| | |"
            if before:
                time_, memory = (math.log(found[key] / before[key], n / before["n"]) for key in ("ms", "mib"))
                exponents = f"| n^{time_:.2f} | n^{memory:.2f} |"
            label = f"{name} (SDPA)" if name == "dense" else name
            print(f"| {label} | {n:,} | {stride} | {found['ms']:.1f} | {found['mib']:.1f} {exponents}", flush=True)
            before = {**found, "n": n}
    print("\nn*sqrt(n) is n^1.50, n*n is n^2.00.\n")


def measure_point(name: str, n: int, stride: int, repeats: int) -> dict[str, float]:
    """Time one length, and take the process's peak resident memory above what it held with the inputs in place."""
    # a small run first: libraries, threads and code are loaded before the baseline is taken
    step_of(name, 256, 16, 8, heads=4)()
    step = step_of(name, n, stride, 8, heads=4)
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak that the kernel keeps
    baseline = resident("VmRSS")
    step()
    peak = resident("VmHWM") - baseline
    return {"ms": median(seconds(step) for _ in range(repeats)) * 1e3, "mib": peak / 1024}


def print_speed(repeats: int) -> None:
    """Print the enwik8 shape against dense attention, measured in turns."""
    steps = {name: step_of(name, 12_288, 128, 32, heads=8) for name in ("dense", "fixed", "strided")}
    times: dict[str, list[float]] = {name: [] for name in steps}
    for step in steps.values():
        step()  # warm-up
    for _ in range(repeats):
        for name, step in steps.items():
            times[name].append(seconds(step))
    print("| n = 12,288, 8 heads of 64, fp32, batch 1 | forward + backward s | times faster than dense |")
    print("| --- | ---: | ---: |")
    labels = {
        "dense": "dense causal, scaled_dot_product_attention",
        "fixed": "fixed merged, l = 128, c = 32",
        "strided": "strided merged, l = 128",
    }
    for name, label in labels.items():
        ratio = median(dense / own for dense, own in zip(times["dense"], times[name], strict=True))
        print(f"| {label} | {median(times[name]):.3f} | {ratio:.1f} |")


def step_of(name: str, n: int, stride: int, summary: int, heads: int) -> Callable[[], None]:
    """Prepare one forward and backward pass of a pattern on random inputs of 64 features a head."""
    import torch

    from src.attention.backends import attend
    from src.attention.patterns import Pattern, PatternName

    names: dict[str, PatternName] = {"dense": "dense", "strided": "strided", "fixed": "fixed"}
    layer = Pattern(names[name], stride, summary).layer(heads)
    q, k, v = (torch.randn(1, heads, n, 64, requires_grad=True) for _ in range(3))
    gradient = torch.randn(1, heads, n, 64)

    def step() -> None:
        torch.autograd.grad(attend(q, k, v, layer, "torch"), (q, k, v), gradient)

    return step


def seconds(step: Callable[[], None]) -> float:
    """Time one call on the wall clock."""
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


def resident(key: str) -> int:
    """Read VmRSS or VmHWM of this process, in KiB (Linux)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key):
            return int(line.split()[1])
    raise RuntimeError(f"/proc/self/status has no {key}")


def cpu_name() -> str:
    """Name the processor as the system does."""
    information = Path("/proc/cpuinfo")
    if information.is_file():
        for line in information.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


if __name__ == "__main__":
    main()
