"""Time attention whose heads share keys, and attention within documents, on this machine's GPU.

    python -m scripts.bench.shared                    # 12,288 positions, 8 heads of 64, batch 2
    python -m scripts.bench.shared --n 65536 --batch 1

Shared keys: 8 heads of queries on 8, 4, 2 and 1 heads of keys and values (``model.kv_heads``). Documents: all of one
length, which patterns see through lists of tiles (``data.documents``). Times are medians of graph replays.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from scripts.bench import attention
from scripts.bench.attention import header, matrix_rate, measure
from src.attention.backends import attend
from src.attention.key_sets import KeySet
from src.attention.patterns import Pattern, shared_layer

PATTERNS = {"dense": Pattern("dense"), **attention.PATTERNS}
HEADS, WIDTH = 8, 64
KV_HEADS = (8, 4, 2, 1)
DOCUMENTS = (500, 3_000)


def main() -> None:
    """Bench what the command line asks for."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.bench.shared", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--n", type=int, default=12_288, help="positions (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=2, help="sequences (default: %(default)s)")
    parser.add_argument("--output", type=Path, default=Path("shared.md"), help="where the table goes")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("scripts.bench.shared needs a CUDA GPU, found none")
    lines = [
        header(matrix_rate(), "Shared keys and documents", "scripts.bench.shared"),
        f"\nMilliseconds, forward / forward + backward; {options.batch} x {options.n:,} positions, {HEADS} heads of "
        f"{WIDTH}.\n",
        "| pattern | " + " | ".join(columns()) + " |",
        "| --- |" + " ---: |" * len(columns()),
    ]
    for name, pattern in PATTERNS.items():
        lines.append(f"| {name} | " + " | ".join(times(pattern, options.batch, options.n)) + " |")
        print(lines[-1], flush=True)
        options.output.write_text("\n".join(lines) + "\n")
    print(f"wrote {options.output}")


def columns() -> list[str]:
    """Name what is timed of every pattern."""
    return [f"{count} heads of keys" for count in KV_HEADS] + [f"documents of {length:,}" for length in DOCUMENTS]


def times(pattern: Pattern, batch: int, n: int) -> Iterator[str]:
    """Time one pattern; one figure a column."""
    for count in KV_HEADS:
        yield _timed(shared_layer(pattern, HEADS, count, 0), batch, n, count, None)
    for length in DOCUMENTS:
        documents = (torch.arange(n, device="cuda") // length).expand(batch, n)
        yield _timed(pattern.layer(HEADS), batch, n, HEADS, documents)


def _timed(layer: tuple[KeySet, ...], batch: int, n: int, count: int, documents: Tensor | None) -> str:
    torch.manual_seed(0)
    q, k, v, dout = (
        torch.randn(batch, n, heads, WIDTH, device="cuda", dtype=torch.bfloat16).transpose(1, 2)
        for heads in (HEADS, count, count, HEADS)
    )
    inputs = [x.requires_grad_() for x in (q, k, v)]

    def forward() -> Tensor:
        return attend(q, k, v, layer, documents=documents)

    with torch.no_grad():
        alone = measure(forward)
    both = measure(lambda: torch.autograd.grad(forward(), inputs, dout))
    return f"{alone:.3f} / {both:.3f}"


if __name__ == "__main__":
    main()
