"""Time patterns of all kinds on this machine's GPU: the general kernel, FlexAttention, the special kernels, dense.

    python -m scripts.bench.patterns                                  # all patterns, 12,288 and 65,536 positions
    python -m scripts.bench.patterns --pattern local --n 12288

The general kernel walks lists of tiles and takes any key set (``src.attention.tiled``). FlexAttention's best is the
fastest of its default and of blocks that PyTorch's autotuning works with. Every result is checked against float64
before it is timed. Times are medians of graph replays, forward and forward + backward.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch.nn.attention import SDPBackend

from scripts.bench import attention_rows
from scripts.bench.attention import Result, header, matrix_rate, time_row
from scripts.bench.attention_rows import Call, Problem
from src.attention.chosen import Alike
from src.attention.key_sets import PAPER
from src.attention.other_key_sets import BigBird, Local, WindowAndFirst
from src.attention.patterns import HeadPattern, Pattern

PATTERNS: dict[str, HeadPattern] = {
    "local": Alike("local", Local(256)),
    "longformer": Alike("longformer", WindowAndFirst(256, 64)),
    "bigbird": Alike("bigbird", BigBird(64, 3, 1, 3)),
    "fixed": Pattern("fixed", 128, 32),
    "strided": Pattern("strided", 128),
}
WORDS = {
    "local": "window 256",
    "longformer": "window 256, first 64",
    "bigbird": "blocks of 64: 3 near, the first, 3 random",
    "fixed": "l 128, c 32",
    "strided": "l 128",
}
BATCH = {12_288: 4, 65_536: 1}
FLEX = {"default": None, "128x64": (128, 64), "128x32": (128, 32), "64x64": (64, 64)}  # its blocks, with autotuning
NAMES = ("dense, SDPA cuDNN", "FlexAttention, default", "FlexAttention, best", "general kernel", "special kernel")


def main() -> None:
    """Bench what the command line asks for."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.bench.patterns",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--pattern", choices=PATTERNS, action="append", help="default: all")
    parser.add_argument("--n", type=int, choices=BATCH, action="append", help="positions (default: both)")
    parser.add_argument("--row", choices=NAMES, action="append", metavar="NAME", help="implementations (default: all)")
    parser.add_argument("--block", choices=FLEX, action="append", help="of FlexAttention's best (default: all)")
    parser.add_argument("--output", type=Path, default=Path("patterns.md"), help="where the table goes")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("scripts.bench.patterns needs a CUDA GPU, found none")
    found: dict[str, dict[str, Result]] = {}
    peak = matrix_rate()
    for n in options.n or BATCH:
        dense = _timed(_dense, Problem(Pattern("dense"), BATCH[n], 8, n, 64, 64))
        for name in options.pattern or PATTERNS:
            rows = found[f"{name} {n}"] = dict(_rows(name, n, options.row or list(NAMES), options.block or list(FLEX)))
            if isinstance(dense, Result):
                rows["dense, SDPA cuDNN"] = dense
            options.output.write_text(
                "\n".join([header(peak, "Patterns", "scripts.bench.patterns"), *table(found)]) + "\n"
            )
    raw = {key: {name: row._asdict() for name, row in rows.items()} for key, rows in found.items()}
    options.output.with_suffix(".json").write_text(json.dumps(raw, indent=1) + "\n")
    print(f"wrote {options.output}")


def table(found: dict[str, dict[str, Result]]) -> list[str]:
    """The lines of Markdown: times in ms, and how many times as fast as the others the general kernel is."""
    lines = [
        "\nMilliseconds, forward / forward + backward; 8 heads of 64, bf16.\n",
        "| pattern | n, batch | pairs kept | " + " | ".join(NAMES) + " | to Flex's best | to dense |",
        "| --- | --- | ---: |" + " ---: |" * (len(NAMES) + 2),
    ]
    for key, rows in found.items():
        name, n = key.split()
        kept = PATTERNS[name].pairs(int(n), 8, 1) / (4 * int(n) * (int(n) + 1))
        times = [f"{rows[one].forward:.3f} / {rows[one].both:.3f}" if one in rows else "" for one in NAMES]
        ratios = [_ratio(rows, NAMES[2]), _ratio(rows, NAMES[0])]
        place = f"{name}: {WORDS[name]} | {int(n):,}, {BATCH[int(n)]} | {kept:.1%}"
        lines.append(f"| {place} | " + " | ".join(times + ratios) + " |")
    return lines


def _ratio(rows: dict[str, Result], other: str) -> str:
    if other not in rows or "general kernel" not in rows:
        return ""
    ours = rows["general kernel"]
    return f"{rows[other].forward / ours.forward:.2f} / {rows[other].both / ours.both:.2f}"


def _rows(name: str, n: int, wanted: list[str], blocks: list[str]) -> Iterator[tuple[str, Result]]:
    problem = Problem(PATTERNS[name], BATCH[n], 8, n, 64, 64)
    builders: dict[str, list[Callable[[Problem], Call]]] = {
        "FlexAttention, default": [attention_rows.flex],
        "general kernel": [_general],
    }
    if isinstance(problem.layer[0], PAPER):
        builders["special kernel"] = [attention_rows.ROWS["Triton"]]  # type: ignore[list-item]
    best = [lambda p, block=block: attention_rows.flex(p, FLEX[block], autotune=True) for block in blocks]
    builders["FlexAttention, best"] = [*builders["FlexAttention, default"], *best]
    timed = cache(partial(_timed, problem=problem))  # the default is tried for two rows
    for row, tried in builders.items():
        if row in wanted:
            results = [timed(build) for build in tried]
            for number, result in enumerate(results):
                said = f"{result.forward:.3f} / {result.both:.3f} ms" if isinstance(result, Result) else result
                print(f"{name} {n} {row} ({number}): {said}", flush=True)
            good = [one for one in results if isinstance(one, Result)]
            if good:
                yield row, min(good, key=lambda one: one.both)


def _timed(build: Callable[[Problem], Call], problem: Problem) -> Result | str:
    """Check and time one implementation, or say why it has no time."""
    torch.cuda.empty_cache()
    try:
        return time_row(build(problem), problem)
    except Exception as error:  # out of memory, a block it cannot do, a wrong result
        torch.cuda.synchronize()
        return f"{type(error).__name__}: {str(error).strip().splitlines()[0][:150]}" if str(error).strip() else "failed"


def _dense(p: Problem) -> Call:
    return attention_rows.sdpa(SDPBackend.CUDNN_ATTENTION)(p)


def _general(p: Problem) -> Any:
    from src.attention.tiled_operator import tiled_attention

    return lambda: tiled_attention(p.q, p.k, p.values, p.layer, "triton", p.qk**-0.5)


if __name__ == "__main__":
    main()
