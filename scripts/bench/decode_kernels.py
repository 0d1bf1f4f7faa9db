"""Microseconds of each kernel of a decoding step alone: ``python -m scripts.bench.decode --kernels``.

A CUDA graph of many launches in a row is timed, over so many weights that none is still in the cache. Products and
attention are tried in several tilings; the choice of ``tiling``, ``key_tile`` and ``row_shares`` is marked with *.
"""

from __future__ import annotations

import itertools
import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial as bound
from typing import Any, NamedTuple

import torch

from src.attention.triton.decode import KeyTile, join, key_tile, launch, row_shares
from src.decoding.decoder import Norm
from src.decoding.kernels import embed, linear
from src.decoding.tiles import FEW, Gpu, Tiling, gpu_of, tiling

LAUNCHES = 64  # at least, in a graph
COLD = 128 << 20  # bytes of weights between two uses of one
SHOWN = 4  # best tilings of a table's row
HEADS, WIDTH = 8, 64
DEVICE = torch.device("cuda")
KEY_TILES = (KeyTile(64, 3, 4), KeyTile(32, 4, 4), KeyTile(64, 4, 4), KeyTile(128, 3, 8), KeyTile(256, 1, 8))


class Product(NamedTuple):
    """A matrix product of the paper's enwik8 model, with what happens inside it."""

    name: str
    outputs: int
    width: int
    norm: bool = False
    act: bool = False
    add: bool = False


PRODUCTS = (
    Product("norm, qkv", 1536, 512, norm=True),
    Product("out projection", 512, 512, add=True),
    Product("norm, expand", 2048, 512, norm=True, act=True),
    Product("contract", 512, 2048, add=True),
    Product("norm, logits", 256, 512, norm=True),
)


def microseconds(launches: list[Callable[[], Any]]) -> float:
    """Time of one launch where all follow one another in a graph, the least of five replays."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        launches[0]()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for one in launches:
            one()
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    found = []
    for _ in range(6):
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        found.append(begin.elapsed_time(end))
    return min(found[1:]) * 1e3 / len(launches)


def product_launches(product: Product, batch: int, tile: Tiling, gpu: Gpu, count: int = 1) -> list[Callable[[], None]]:
    """Launches of a product, each with weights of its own."""
    x = torch.randn(batch, product.width, device=DEVICE, dtype=torch.float32 if product.norm else torch.bfloat16)
    kind = torch.float32 if product.add or "logits" in product.name else torch.bfloat16
    out = torch.zeros(batch, product.outputs, device=DEVICE, dtype=kind)
    weights = torch.randn(count, product.outputs, product.width, device=DEVICE, dtype=torch.bfloat16)
    bias = None if "logits" in product.name else torch.zeros(product.outputs, device=DEVICE, dtype=torch.bfloat16)
    ones = torch.ones(product.width, device=DEVICE)
    norm = Norm(ones, torch.zeros_like(ones)) if product.norm else None
    options = {"norm": norm, "act": "gelu" if product.act else None, "add": product.add, "gpu": gpu, "tile": tile}
    return [bound(linear, x, weight, bias, out, **options) for weight in weights]  # type: ignore[arg-type]


def tilings(product: Product, batch: int, deep: bool) -> list[Tiling]:
    """The chosen tiling and others that may be faster."""
    chosen = tiling(batch, product.outputs, product.width, 2, product.norm, deep)
    others: Iterator[Tiling]
    if batch <= FEW:
        pairs = itertools.product((1, 2, 4, 8), (1, 2, 4, 8))
        others = (
            Tiling(1, outputs, product.width, 1, warps)
            for outputs, warps in pairs
            if 8 <= outputs * product.width // (32 * warps) <= 64 and product.outputs // outputs >= 64
        )
    else:
        loops = [(product.width, 1), *([(512, 3), (512, 4)] if product.width > 512 else [])]
        rows = (16, 32) if batch > 16 else (16,)
        others = (
            Tiling(row, outputs, depth, stages, warps)
            for row, outputs, (depth, stages), warps in itertools.product(rows, (8, 16, 32, 64), loops, (4, 8))
            if 32 <= product.outputs // outputs * -(-batch // row) <= 528
            and 2048 <= (row + outputs) * depth // warps <= 10240
        )
    return list(dict.fromkeys([chosen, *others]))


def attention_launches(
    batch: int, shares: int, tile: KeyTile, gpu: Gpu, caches: list[Any], position: int
) -> list[Callable[[], None]]:
    """A launch for each of the (keys, values, table) of ``caches``."""
    qkv = torch.randn(batch, 3 * HEADS * WIDTH, device=DEVICE, dtype=torch.bfloat16)
    partial = torch.empty(batch, HEADS, shares, WIDTH, device=DEVICE)
    lse = torch.empty(batch, HEADS, shares, device=DEVICE)
    out = torch.empty(batch, HEADS * WIDTH, device=DEVICE, dtype=torch.bfloat16)
    at = torch.tensor([position], device=DEVICE)
    return [
        bound(launch, qkv, keys, values, partial, lse, out, table, at, 0.125, overlap=gpu.overlap, tile=tile)
        for keys, values, table in caches
    ]


def compile_all(batches: list[int], attention: set[tuple[int, KeyTile]], gpu: Gpu) -> None:
    """Compile every kernel that will be timed into Triton's cache, in many processes."""
    products = {(p, min(b, 16), t) for p in PRODUCTS for b in batches for t in tilings(p, b, gpu.deep)}
    jobs: list[tuple[Any, ...]] = [(*job, gpu) for job in products]
    jobs += [(*choice, gpu) for choice in attention]
    with ProcessPoolExecutor(14, mp_context=multiprocessing.get_context("spawn")) as pool:
        list(pool.map(compile_one, jobs, chunksize=2))


def compile_one(job: tuple[Any, ...]) -> None:
    """Launch one kernel of a product (product, batch, tiling, gpu) or of attention (shares, tile, gpu)."""
    from triton.runtime.errors import OutOfResources

    try:
        if isinstance(job[0], Product):
            product_launches(*job)[0]()
        else:
            shares, tile, gpu = job
            slots = torch.zeros(16, 16 * HEADS, WIDTH, device=DEVICE, dtype=torch.bfloat16)
            table = torch.ones(HEADS, 8, device=DEVICE, dtype=torch.int32)
            attention_launches(16, shares, tile, gpu, [(slots, slots.clone(), table)], 0)[0]()
        torch.cuda.synchronize()
    except OutOfResources:
        pass  # the table leaves it out


def ranking(name: str, chosen: Any, found: dict[Any, float]) -> str:
    """A line: what is chosen, and the fastest."""
    best = sorted(found, key=found.__getitem__)[:SHOWN]
    parts = [f"{found[t]:6.2f} {','.join(map(str, t))}" + (" *" if t == chosen else "") for t in best]
    return f"{name:30} * {found.get(chosen, float('nan')):6.2f} | " + " | ".join(parts)


def products_table(batch: int, gpu: Gpu) -> None:
    """Print every product's ranking: rows, outputs, depth, stages, warps."""
    from triton.runtime.errors import OutOfResources

    for product in PRODUCTS:
        found = {}
        count = max(LAUNCHES, COLD // (2 * product.outputs * product.width))
        candidates = tilings(product, batch, gpu.deep)
        for tile in candidates:
            try:
                found[tile] = microseconds(product_launches(product, batch, tile, gpu, count))
            except OutOfResources:
                continue
        print(ranking(f"batch {batch} {product.name}", candidates[0], found), flush=True)


def attention_choices(batch: int, reads: int) -> list[tuple[int, KeyTile]]:
    """The chosen shares of a row and tile; other tiles, and half and twice the shares."""
    shares = row_shares(batch * HEADS, reads)
    tile = key_tile(2 * WIDTH, 2, batch * HEADS * shares)
    others = [(n, tile) for n in (shares // 2, 2 * shares) if 1 <= n <= reads // 64]
    return list(dict.fromkeys([(shares, tile), *((shares, other) for other in KEY_TILES), *others]))


def attention_table(name: str, batch: int, step: Any, gpu: Gpu) -> None:
    """Print attention's ranking at the end of the context: shares, keys at once, stages, warps; and the chosen tiling
    at a quarter and a half, and joining alone."""
    decoder = step.decoder
    caches = [(c.keys, c.values, table) for c, table in zip(decoder.caches, step.tables, strict=True)] * (
        LAUNCHES // len(decoder.caches)
    )
    reads = max(cache.layout.most_reads(decoder.length) for cache in decoder.caches)
    choices = attention_choices(batch, reads)
    chosen = (choices[0][0], *choices[0][1])
    found = {}
    for shares, tile in choices:
        launches = attention_launches(batch, shares, tile, gpu, caches, decoder.length - 1)
        found[(shares, *tile)] = microseconds(launches)
    print(ranking(f"batch {batch} {name} attention, join", chosen, found))
    line = []
    for part in (4, 2):
        at = decoder.length // part
        launches = attention_launches(batch, *choices[0], gpu, caches, at)
        line.append(f"{microseconds(launches):.2f} at position {at:,}")
    if chosen[0] > 1:
        partial, lse = (
            torch.zeros(batch, HEADS, chosen[0], WIDTH, device=DEVICE),
            torch.zeros(batch, HEADS, chosen[0], device=DEVICE),
        )
        again = bound(join, partial, lse, step.attended, overlap=gpu.overlap)
        line.append(f"{microseconds([again] * LAUNCHES):.2f} join alone")
    print(f"{'':30} * " + ", ".join(line), flush=True)


def others_line(batch: int, step: Any, gpu: Gpu) -> None:
    """Print the embedding's and the drawing's time."""
    step.position.fill_(step.decoder.length // 2)
    arguments = step.tokens, step.token_table, step.position_table, step.coordinates, step.position, step.hidden
    embedding = microseconds([bound(embed, *arguments, step.decoder.length, gpu)] * LAUNCHES)
    drawing = microseconds([bound(step.choose, step.logits, step.position)] * LAUNCHES)
    print(f"batch {batch}: embedding {embedding:.2f}, drawing {drawing:.2f}", flush=True)


@torch.no_grad()
def main(batches: list[int], steps: Callable[[int], Iterator[tuple[str, Any]]], overlap: bool) -> None:
    """Print all tables. ``steps`` gives a graphed decoder of each pattern for a batch."""
    gpu = gpu_of(DEVICE)._replace(**({} if overlap else {"overlap": False}))
    reads = (12_288, 3_168, 224)  # of the three patterns
    compile_all(batches, {choice for b in batches for r in reads for choice in attention_choices(b, r)}, gpu)
    print(f"microseconds a launch; {gpu}; products: rows, outputs, depth, stages, warps; attention: shares, keys, ...")
    for batch in batches:
        products_table(batch, gpu)
        for index, (name, step) in enumerate(steps(batch)):
            attention_table(name, batch, step, gpu)
            if index == 0:
                others_line(batch, step, gpu)
