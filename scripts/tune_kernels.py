"""Find the fastest tile sizes of every Triton kernel on this machine's GPU and store them.

    python -m scripts.tune_kernels                      # all shapes, writes src/attention/triton/tuning.json
    python -m scripts.tune_kernels --shape enwik8 --output /tmp/tuning.json

Every candidate is compiled first, in parallel, and then timed alone on real inputs; the fastest is stored under the
GPU's compute capability, the kernel, the kind of number and the head widths (and the length of a column where that
matters). Training never tunes: it reads the stored table.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import torch

from src.attention.patterns import Pattern
from src.attention.triton import passes, tuning
from src.attention.triton.tuning import Config


class Shape(NamedTuple):
    """One case to tune for: a pattern on (batch, heads, n, qk / v)."""

    pattern: Pattern
    batch: int
    heads: int
    n: int
    qk: int
    v: int


STRIDED, FIXED = Pattern("strided", 128), Pattern("fixed", 128, 32)
SHAPES = {
    "enwik8": Shape(FIXED, 4, 8, 12288, 64, 64),
    "enwik8-strided": Shape(STRIDED, 4, 8, 12288, 64, 64),
    "imagenet64": Shape(STRIDED, 4, 16, 12288, 32, 32),
    "imagenet64-fixed": Shape(FIXED, 4, 16, 12288, 32, 32),
    "cifar10": Shape(STRIDED, 16, 2, 3072, 64, 128),
    "cifar10-fixed": Shape(FIXED, 16, 2, 3072, 64, 128),
    "long": Shape(Pattern("strided", 256), 1, 8, 65536, 64, 64),
    "wide": Shape(STRIDED, 4, 4, 12288, 128, 128),
    "wide-fixed": Shape(FIXED, 4, 4, 12288, 128, 128),
}
# BM, BN, warps, stages[, registers[, per]] of each kernel; see tuning.Config
CANDIDATES = {
    "block_forward": (
        "64,64,4,2 64,64,4,3 64,64,4,3,128 64,64,4,3,144 64,64,4,4,128 128,64,8,3 128,64,8,3,128 "
        "128,64,4,3 128,64,4,4 128,128,8,2 64,32,4,4"
    ),
    "block_backward_queries": (
        "64,64,4,2 64,64,4,3 64,64,4,3,144 64,64,4,3,128 64,32,4,3 64,32,4,4 64,32,4,3,128 128,64,8,3 128,32,4,3"
    ),
    "block_backward_keys": (
        "64,64,4,2 64,64,4,3 64,64,4,3,224 64,64,4,3,168 64,64,4,2,168 32,64,4,3 32,64,4,4 "
        "32,64,4,3,168 32,64,4,3,128 32,64,4,4,168"
    ),
    "window_forward": (
        "64,32,4,3 64,32,4,4 64,64,4,2 64,64,4,3 64,64,4,3,120 64,64,4,3,128 64,64,4,3,136 "
        "64,64,4,4,128 64,64,4,2,128 128,64,8,3 64,32,4,4,96 64,64,4,3,168"
    ),
    "window_backward": (
        "64,64,4,1 64,64,4,2 64,64,4,3 64,64,4,3,224 64,64,4,3,200 64,64,4,2,168 64,64,4,3,168 "
        "64,32,4,2 64,32,4,3 64,32,4,3,168 128,64,8,2 128,64,8,1 32,32,4,2"
    ),
    "column_forward": (
        "128,32,2,1 128,32,4,1 128,32,2,2,0,8 128,32,2,2,0,16 128,32,2,2,200,8 128,32,2,2,0,12 "
        "128,32,2,3,0,8 128,32,4,2,0,8 128,64,4,1 32,32,1,2 32,32,2,2 32,32,2,3,0,8 "
        "128,16,1,2,0,8 64,64,4,2 64,32,4,2 128,64,4,2 128,128,8,2 128,64,8,2"
    ),
    "column_backward": (
        "128,32,4,1 128,32,4,2,0,8 128,32,4,2,0,16 128,32,4,3,0,8 128,32,8,2,0,8 128,16,2,2,0,8 "
        "128,16,2,2,0,16 128,16,1,2,0,8 128,16,2,1 128,64,4,1 64,32,4,1 64,32,4,1,168 32,32,4,1 "
        "32,32,1,1 32,32,1,2 64,64,4,2 64,64,4,1 128,64,8,2"
    ),
}


def main() -> None:
    """Tune what the command line asks for."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.tune_kernels",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--shape", choices=SHAPES, action="append", help="shapes to tune for (default: all)")
    parser.add_argument("--kernel", choices=CANDIDATES, action="append", help="kernels to tune (default: all)")
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float16", "float32"])
    parser.add_argument("--output", type=Path, default=tuning.TABLE, help="table to write; its other entries stay")
    parser.add_argument("--processes", type=int, default=os.cpu_count(), help="how many compile at once")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("tune_kernels needs a CUDA GPU, and this machine shows none")
    kernels, dtype = options.kernel or list(CANDIDATES), getattr(torch, options.dtype)
    shapes = {name: SHAPES[name] for name in options.shape or SHAPES}
    jobs = [
        (shape, kernel, config, options.dtype, torch.cuda.get_device_capability())
        for shape in shapes.values()
        for kernel in kernels
        for config in _candidates(kernel)
    ]
    with ProcessPoolExecutor(options.processes) as pool:
        failed = {job[:3] for job, error in zip(jobs, pool.map(_compile, jobs), strict=True) if error}
    table = stored(options.output)
    entries = table.setdefault(tuning.capability(torch.device("cuda")), {})
    for name, shape in shapes.items():
        for kernel in _kernels_of(shape):
            if kernel in kernels:
                times = _time_all(shape, kernel, dtype, failed)
                best: Config = min(times, key=lambda config: times[config])
                entries[_entry(kernel, shape, dtype)] = list(best)
                ranked = sorted(times.items(), key=lambda item: item[1])[:5]
                print(name, kernel, " | ".join(f"{tuple(c)} {ms:.4f} ms" for c, ms in ranked), flush=True)
    options.output.write_text(table_text(table))
    print(f"wrote {options.output}")


def stored(file: Path) -> dict[str, dict[str, list[int]]]:
    """Read the table that a tuner goes on with: that of ``file``, or else the project's."""
    found: dict[str, dict[str, list[int]]] = json.loads((file if file.exists() else tuning.TABLE).read_text())
    return found


def table_text(table: dict[str, dict[str, list[int]]]) -> str:
    """The table as JSON, one line an entry."""
    gpus = []
    for gpu, entries in sorted(table.items()):
        lines = ",\n".join(f"  {json.dumps(key)}: {json.dumps(config)}" for key, config in sorted(entries.items()))
        gpus.append(f' "{gpu}": {{\n{lines}\n }}')
    return "{\n" + ",\n".join(gpus) + "\n}\n"


def _candidates(kernel: str) -> list[Config]:
    return [Config(*(int(number) for number in text.split(","))) for text in CANDIDATES[kernel].split()]


def _kernels_of(shape: Shape) -> list[str]:
    kinds = ("block",) if shape.pattern.name == "fixed" else ("window", "column")
    return [kernel for kernel in CANDIDATES if kernel.startswith(kinds)]


def _entry(kernel: str, shape: Shape, dtype: torch.dtype) -> str:
    name = tuning.key(kernel, dtype.itemsize, shape.qk, shape.v)
    if kernel.startswith("column"):
        rows = -(-shape.n // shape.pattern.stride)
        return f"{name} rows {1 << (rows - 1).bit_length()}"
    return name


class _Only:
    """Stands in for ``passes.launch``: runs one kernel with one configuration and leaves out all others."""

    def __init__(self, kernel: str, run: Any) -> None:
        self.kernel, self.run = kernel, run

    def __call__(self, name: str, *arguments: Any) -> None:
        if name == self.kernel:
            self.run(name, *arguments)


def _with(kernel: str, config: Config, run: Any) -> None:
    """Make ``passes`` launch only ``kernel``, with ``config``, through ``run``."""
    setattr(passes, "launch", _Only(kernel, run))  # noqa: B010
    setattr(passes, "find", lambda *_: config)  # noqa: B010


def _tensors(shape: Shape, dtype: torch.dtype, device: str) -> dict[str, torch.Tensor]:
    """q, k, v as views of one fused projection, and the rest, as training has them."""
    from src.attention.triton.operator import unpack

    width = shape.heads * (2 * shape.qk + shape.v)
    make = torch.empty if device == "meta" else torch.randn
    named = {}
    for prefix in ("", "d"):
        matrix = make(shape.batch, shape.n, width, dtype=dtype, device=device)
        for name, x in zip("qkv", unpack(matrix, shape.heads, shape.qk, shape.v), strict=True):
            named[prefix + name] = x
        out = make(shape.batch, shape.n, shape.heads, shape.v, dtype=dtype, device=device)
        named[prefix + "out"] = out.transpose(1, 2)
    named["lse"] = make(shape.batch, shape.heads, shape.n, dtype=torch.float32, device=device) + 10
    return named


def _passes(shape: Shape, t: dict[str, torch.Tensor], forward: bool) -> None:
    layer, scale = shape.pattern.layer(shape.heads), shape.qk**-0.5
    if forward:
        passes.forward(t["q"], t["k"], t["v"], t["out"], t["lse"], layer, scale)
    else:
        passes.backward(t["q"], t["k"], t["v"], t["out"], t["lse"], t["dout"], t["dq"], t["dk"], t["dv"], layer, scale)


def _compile(job: tuple[Shape, str, Config, str, tuple[int, int]]) -> str:
    shape, kernel, config, dtype, capability = job

    def run() -> None:
        _passes(shape, _tensors(shape, getattr(torch, dtype), "meta"), "forward" in kernel)

    return compile_only(lambda launch: _with(kernel, config, launch), run, capability)


def compile_only(use: Callable[[Any], None], run: Callable[[], None], capability: tuple[int, int]) -> str:
    """Compile one candidate into Triton's cache on disk, in a process that needs no GPU; say what failed.

    Args:
        use: makes a function take the place of each launch.
        run: what launches.
        capability: of the GPU.
    """
    from triton.backends.compiler import GPUTarget
    from triton.runtime import driver

    class NoGPU:
        def get_current_target(self) -> Any:
            return GPUTarget("cuda", 10 * capability[0] + capability[1], 32)

        def get_current_device(self) -> int:
            return 0

        def get_current_stream(self, device: int) -> int:
            return 0

    def warm(
        name: str, function: Any, programs: int, c: Config, arguments: tuple[Any, ...], constants: dict[str, Any]
    ) -> None:
        function.warmup(*arguments, **constants, **passes.options(c), grid=(programs,))

    driver.set_active(NoGPU())
    use(warm)
    try:
        run()
    except Exception as error:  # a candidate that does not compile is no candidate
        return repr(error)[:200]
    return ""


_real_launch = passes.launch


def _time_all(shape: Shape, kernel: str, dtype: torch.dtype, failed: set[Any]) -> dict[Config, float]:
    """Median milliseconds of every candidate; launches are replayed from a graph, so the CPU's share is left out."""
    from triton.testing import do_bench

    tensors = _tensors(shape, dtype, "cuda")
    times = {}
    for config in _candidates(kernel):
        if (shape, kernel, config) in failed:
            continue
        _with(kernel, config, _real_launch)
        try:
            _passes(shape, tensors, "forward" in kernel)
            torch.cuda.synchronize()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                _passes(shape, tensors, "forward" in kernel)
            times[config] = do_bench(graph.replay, warmup=10, rep=40, return_mode="median")
        except Exception as error:  # too much shared memory for this GPU, say
            print(f"{kernel} {tuple(config)}: {str(error)[:100]}", flush=True)
    return times


if __name__ == "__main__":
    main()
