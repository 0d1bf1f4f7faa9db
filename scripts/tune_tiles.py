"""Find tile sizes and configurations of the kernels for any key set (``src.attention.triton.tiled``) on this GPU.

    python -m scripts.tune_tiles                        # heads of 64 and 128, writes src/attention/triton/tuning.json
    python -m scripts.tune_tiles --widths 64 --output /tmp/tuning.json

Each kernel is timed in each size of tiles on two patterns of the same extent, one whose tiles are full and one whose
tiles all have a mask, and on a short window, where a list has few tiles. The table keeps the configuration of each size
that is best in their sum, and what a score costs in a full tile and in one with a mask, and a query beside its scores,
in thousandths of a picosecond, so that the size that costs least can be chosen for any pattern.
"""

from __future__ import annotations

import argparse
import os
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from scripts.tune_kernels import compile_only, stored, table_text
from src.attention.key_sets import KeySet
from src.attention.other_key_sets import Local
from src.attention.tiled.layout import Size, layout
from src.attention.tiled.plan import Choice, plan
from src.attention.triton import passes, tiled_passes, tuning
from src.attention.triton.tuning import Config

KERNELS = ("tiled_forward", "tiled_backward_queries", "tiled_backward_keys")
SIZES = ((128, 128), (128, 64), (64, 128), (64, 64), (64, 32), (32, 64))
WARPS, STAGES, REGISTERS = (4, 8), (2, 3, 4), (0, 96, 128, 168)
FULL, MASKED, SHORT = Local(2048), Local(1024, 2), Local(256)
BATCH, HEADS, N = 2, 8, 12_288
KEPT = 2.5  # a size is stored if no kind of tile costs more than so many times what it costs in the best size


class Job(NamedTuple):
    """One candidate."""

    kernel: str
    config: Config
    width: int
    dtype: str


def main() -> None:
    """Tune what the command line asks for."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.tune_tiles", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--widths", type=int, nargs="+", default=[64, 128], help="of heads")
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float16", "float32"])
    parser.add_argument("--output", type=Path, default=tuning.TABLE, help="table to write; its other entries stay")
    parser.add_argument("--processes", type=int, default=os.cpu_count(), help="how many compile at once")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("tune_tiles needs a CUDA GPU, and this machine shows none")
    jobs = [
        Job(kernel, c, width, options.dtype) for width in options.widths for kernel in KERNELS for c in candidates()
    ]
    with ProcessPoolExecutor(options.processes) as pool:
        capability = [torch.cuda.get_device_capability()] * len(jobs)
        good = [job for job, failed in zip(jobs, pool.map(_compile, jobs, capability), strict=True) if not failed]
    print(f"{len(good)} of {len(jobs)} candidates compile", flush=True)
    table = stored(options.output)
    entries = table.setdefault(tuning.capability(torch.device("cuda")), {})
    dtype = getattr(torch, options.dtype)
    for width in options.widths:
        for kernel in KERNELS:
            name = tuning.key(kernel, dtype.itemsize, width, width)
            for old in [key for key in entries if key.startswith(f"{name} tile")]:
                del entries[old]
            entries.update(_best(name, [job for job in good if (job.kernel, job.width) == (kernel, width)]))
    options.output.write_text(table_text(table))
    print(f"wrote {options.output}")


def candidates() -> list[Config]:
    """Every size in every configuration that might do."""
    return [
        Config(*size, warps, stages, registers)
        for size in SIZES
        for warps in WARPS
        for stages in STAGES
        for registers in REGISTERS
        if size[0] * size[1] // warps in range(512, 4097) and (not registers or warps == 4)
    ]


def _best(name: str, jobs: list[Job]) -> dict[str, list[int]]:
    """Time the candidates of one kernel and width; entries of the sizes that are worth it."""
    best: dict[tuple[int, int], tuple[tuple[float, ...], Config]] = {}
    for job in jobs:
        try:
            costs = tuple(_cost(job, keys) for keys in (FULL, MASKED, SHORT))
        except Exception as error:  # too much shared memory for this GPU, say
            print(f"{name} {tuple(job.config)}: {str(error)[:100]}", flush=True)
            continue
        size = job.config[:2]
        if size not in best or sum(costs) < sum(best[size][0]):
            best[size] = costs, job.config
    found = {}
    for size, (costs, config) in best.items():
        place = f"{name} tile {size[0]}x{size[1]}"
        full, masked, short = map(round, costs)
        print(f"{place}: {list(config[:5])}, full {full}, masked {masked}, short {short}", flush=True)
        if all(one <= KEPT * min(b[0][i] for b in best.values()) for i, one in enumerate(costs[:2])):
            found[place] = [*config[:5], full, masked, _beside(Size(*size), full, masked, short)]
    return found


def _cost(job: Job, keys: KeySet) -> float:
    """Thousandths of a picosecond a score."""
    from triton.testing import do_bench

    tensors = _tensors(job, N, "cuda")
    _with(job, _real_launch)
    _run(job, tensors, keys)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        _run(job, tensors, keys)
    time = do_bench(graph.replay, warmup=5, rep=20, return_mode="median")
    size = Size(*job.config[:2])
    scores = BATCH * plan((keys,) * HEADS, N, N, 0, torch.device("cuda", 0), (Choice(size),)).scores
    return float(time) * 1e12 / scores


def _beside(size: Size, full: int, masked: int, short: int) -> int:
    """What a query costs beside its scores: what these do not explain of the short window."""
    found = layout(SHORT, N, N, 0, size, torch.device("cpu"))
    return max(0, round((short * found.scores - found.cost(full, masked, 0)) / N))


def _tensors(job: Job, n: int, device: str) -> list[Tensor]:
    """q, k, v and the gradient of the output."""
    dtype = getattr(torch, job.dtype)
    shape = (BATCH, n, HEADS, job.width)
    return [torch.randn(shape, device=device, dtype=dtype).transpose(1, 2) for _ in range(4)]


def _run(job: Job, tensors: list[Tensor], keys: KeySet) -> None:
    q, k, v, dout = tensors
    layer, scale = (keys,) * HEADS, job.width**-0.5
    out, lse = torch.empty_like(q), torch.full(q.shape[:3], 10.0, device=q.device)
    if job.kernel == "tiled_forward":
        tiled_passes.forward(q, k, v, None, out, lse, layer, 0, scale)
    else:
        tiled_passes.backward(dout, q, k, v, None, out, lse, layer, 0, scale)


def _with(job: Job, run: Any) -> None:
    """Make ``tiled_passes`` launch only the job's kernel, with its configuration, through ``run``."""

    def launch(name: str, *arguments: Any) -> None:
        if name == job.kernel:
            run(name, *arguments)

    setattr(passes, "launch", launch)  # noqa: B010
    setattr(tuning, "tiled_sizes", lambda *_: (Choice(Size(*job.config[:2])),))  # noqa: B010
    setattr(tuning, "tiled", lambda *_: job.config)  # noqa: B010


def _compile(job: Job, capability: tuple[int, int]) -> str:
    torch.set_num_threads(1)
    return compile_only(
        lambda launch: _with(job, launch), lambda: _run(job, _tensors(job, 2048, "cpu"), FULL), capability
    )


_real_launch = passes.launch


if __name__ == "__main__":
    main()
