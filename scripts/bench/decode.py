"""Bytes a second of whole generated sequences: the paper's enwik8 model with dense, fixed and strided attention.

    python -m scripts.bench.decode                     # batch 1, 16 and 64; whole sequences of 12,288 bytes
    python -m scripts.bench.decode --batch 1 --length 2048
    python -m scripts.bench.decode --every 16          # every 16th position alone, in a sixteenth of the time
    python -m scripts.bench.decode --kernels           # each kind of kernel alone, products in several tilings

Weights are random: speed does not depend on them. Dense attention decodes with its full cache through the same kernels
and the same CUDA graph. Each model is first checked: its bf16 steps may be at most twice as far from the fp32 forward
pass as the bf16 forward pass is.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from typing import NamedTuple

import torch

from src.attention import Pattern
from src.decoding.cuda_graph import GraphedDecoder
from src.decoding.decoder import Decoder
from src.decoding.sampling import Draw, graphed
from src.models.sparse_transformer import SparseTransformer

PATTERNS = {"dense": Pattern("dense"), "fixed": Pattern("fixed", 128, 32), "strided": Pattern("strided", 128)}
CHECKED = 512  # positions of the correctness check
CHECKED_BATCHES = (2, 18)  # without and with tensor cores
KERNELS_DEPTH = 8  # blocks whose caches are read in turn where kernels are timed alone


class Row(NamedTuple):
    """One measurement."""

    pattern: str
    batch: int
    rate: float
    milliseconds: float
    cache: int


def main() -> None:
    """Check, measure, print a table."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.bench.decode",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--batch", type=int, action="append", help="sequences side by side (default: 1, 16, 64)")
    parser.add_argument("--pattern", choices=PATTERNS, action="append", help="patterns (default: all)")
    parser.add_argument("--length", type=int, default=12_288, help="bytes of a sequence")
    parser.add_argument("--depth", type=int, default=30, help="residual blocks")
    parser.add_argument("--every", type=int, default=1, help="time only every so many positions (default: 1, all)")
    parser.add_argument("--kernels", action="store_true", help="time each kind of kernel alone instead")
    parser.add_argument("--no-overlap", action="store_true", help="no kernel starts before the one before has ended")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("scripts.bench.decode needs a CUDA GPU, and this machine shows none")
    print(f"{torch.cuda.get_device_name()}, PyTorch {torch.__version__}, depth {options.depth}, n {options.length:,}")
    if options.kernels:
        kernels(options)
        return
    if options.every > 1:
        print(
            f"only every {options.every}th position of a sequence is decoded and timed; the cache holds zeros elsewhere"
        )
    rows: list[Row] = []
    for name in options.pattern or list(PATTERNS):
        model = network(PATTERNS[name], options.length, options.depth)
        for checked in CHECKED_BATCHES:
            found, allowed = errors(model, checked)
            print(f"{name}, batch {checked}: error of steps {found:.2e}, allowed {allowed:.2e}", flush=True)
            if not found <= allowed:
                raise SystemExit(f"{name} decodes wrongly: no speed is reported")
        for batch in options.batch or [1, 16, 64]:
            rows.append(measure(name, model, batch, options.length, options.every, not options.no_overlap))
            print(rows[-1], flush=True)
    print(table(rows))
    print(floor(network(PATTERNS["fixed"], options.length, options.depth)))


def kernels(options: argparse.Namespace) -> None:
    """Time each kind of kernel alone."""
    from scripts.bench import decode_kernels

    chosen = {name: PATTERNS[name] for name in options.pattern or PATTERNS}
    models = {name: network(pattern, options.length, KERNELS_DEPTH) for name, pattern in chosen.items()}

    def steps(batch: int) -> Iterator[tuple[str, GraphedDecoder]]:
        for name, model in models.items():
            yield name, prepared(model, batch, options.length)
            torch.cuda.empty_cache()

    decode_kernels.main(options.batch or [1, 16, 64], steps, not options.no_overlap)


def prepared(model: SparseTransformer, batch: int, length: int) -> GraphedDecoder:
    """A decoder at the start of its sequences, in bf16."""
    decoder = Decoder(model, batch, length, torch.bfloat16, "triton")
    draw = Draw(seed=1)
    x = torch.zeros(batch, length, dtype=torch.uint8, device="cuda")
    return graphed(decoder, x, 0, draw, draw.uniforms(batch, length).cuda())


def network(pattern: Pattern, length: int, depth: int) -> SparseTransformer:
    """The paper's enwik8 model (section 7.2), output matrix drawn at random."""
    torch.manual_seed(0)
    model = SparseTransformer(
        pattern=pattern, context=length, depth=depth, width=512, heads=8, block_backend="eager"
    )  # whole passes are the measure here: PyTorch's own
    torch.nn.init.normal_(model.output.weight, std=512**-0.5)
    return model.cuda().eval()


@torch.no_grad()
def errors(model: SparseTransformer, batch: int) -> tuple[float, float]:
    """Root mean square error of decoded logits against fp32, and what is allowed: twice that of bf16 autocast."""
    count = min(CHECKED, model.context)
    x = torch.randint(256, (batch, count), device="cuda", generator=torch.Generator("cuda").manual_seed(1))
    exact = model(x)
    with torch.autocast("cuda", torch.bfloat16):
        automatic = model(x).float()
    given = count // 2 + 3
    decoder = Decoder(model, batch, count, torch.bfloat16, "triton")
    decoder.prefill(x[:, :given])
    step = graphed(decoder, x.to(torch.uint8), given, Draw(), torch.zeros(batch, count - given, device="cuda"))
    step.choose = lambda logits, position: x.index_select(1, position)[:, 0]  # the true byte follows
    total = torch.zeros((), device="cuda")
    for t in range(given, count):
        step.step()
        total += (step.logits - exact[:, t]).square().mean()
    found = float((total / (count - given)).sqrt())
    return found, 2 * float((automatic - exact)[:, given:].square().mean().sqrt())


@torch.no_grad()
def measure(name: str, model: SparseTransformer, batch: int, length: int, every: int, overlap: bool) -> Row:
    """Draw whole sequences, or every so many of their bytes, by the same graph; its capture and the first byte are left
    out."""
    step = prepared(model, batch, length)
    step.stride = every
    if not overlap:
        step.gpu = step.gpu._replace(overlap=False)
    step.step()
    count = (length - step.decoder.position) // every  # the last moves to the end of the sequence at most
    torch.cuda.synchronize()
    begun = time.perf_counter()
    for _ in range(count):
        step.step()
    torch.cuda.synchronize()
    seconds = time.perf_counter() - begun
    row = Row(name, batch, batch * count / seconds, seconds / count * 1e3, step.decoder.cache_bytes)
    del step
    torch.cuda.empty_cache()
    return row


def table(rows: list[Row]) -> str:
    """Lines of Markdown; ratios are to dense attention at the same batch."""
    lines = ["", "| pattern | batch | bytes/s | ms a step | to dense | cache MiB | cache to dense |",
             "| --- | ---: | ---: | ---: | ---: | ---: | ---: |"]  # fmt: skip
    dense = {row.batch: row for row in rows if row.pattern == "dense"}
    for row in rows:
        base = dense.get(row.batch)
        speed, size = (
            ("-", "-") if base is None else (f"{row.rate / base.rate:.2f}x", f"1/{base.cache / row.cache:.2f}")
        )
        lines.append(
            f"| {row.pattern} | {row.batch} | {row.rate:,.0f} | {row.milliseconds:.3f} | {speed} "
            f"| {row.cache / 2**20:,.0f} | {size} |"
        )
    return "\n".join(lines)


def floor(model: SparseTransformer) -> str:
    """What no step of batch 1 can be below: reading all weights once."""
    weights = sum(p.numel() for p in model.parameters()) * 2
    big = torch.empty(1 << 30, dtype=torch.uint8, device="cuda")
    other = torch.empty_like(big)
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    other.copy_(big)
    begin.record()
    for _ in range(10):
        other.copy_(big)
    end.record()
    torch.cuda.synchronize()
    bandwidth = 10 * 2 * big.nbytes / (begin.elapsed_time(end) / 1e3)
    return (
        f"\nfloor at batch 1: {weights / 1e6:.0f} MB of weights at {bandwidth / 1e12:.2f} TB/s measured = "
        f"{weights / bandwidth * 1e3:.3f} ms a step, and its launches"
    )


if __name__ == "__main__":
    main()
