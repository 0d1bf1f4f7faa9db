"""Would fp8 make the matrix products of a block faster? Each product in bf16 and in fp8, with what fp8 needs around it.

    python -m scripts.bench.fp8                      # the paper's enwik8 and CIFAR-10 models, forward and backward

In fp8 both factors are scaled by their largest magnitude and cast, activations and gradients at every step: a pass
that reads them for the maximum and one that reads, casts and writes them, here fused by torch.compile. Weights are cast
once a step and left out. Tensor cores take fp8 factors with the summed dimension contiguous only, so the gradient of
the weights needs both of its factors transposed while they are cast. "with casts" counts all of that.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from scripts.bench.attention import header, matrix_rate, measure

LARGEST = 448.0  # of float8_e4m3fn
ROWS = {"enwik8": 2 * 12_288, "cifar10": 16 * 3_072}  # positions of a step


class Product(NamedTuple):
    """A linear layer: its name, and how many numbers go in and come out."""

    name: str
    into: int
    out: int


LAYERS = {
    "enwik8": [Product("qkv", 512, 1536), Product("out", 512, 512), Product("expand", 512, 2048),
               Product("contract", 2048, 512)],
    "cifar10": [Product("qkv", 256, 512), Product("out", 256, 256), Product("expand", 256, 512),
                Product("contract", 512, 256)],
}  # fmt: skip


def main() -> None:
    """Time every product and print a table."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.bench.fp8",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", choices=LAYERS, action="append", help="default: both")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("scripts.bench.fp8 needs a CUDA GPU, and this machine shows none")
    print(header(matrix_rate(), "Products in fp8", "scripts.bench.fp8"))
    for model in options.model or LAYERS:
        print(f"\n### {model}: {ROWS[model]:,} rows\n")
        print("| product | bf16 us | fp8 us | fp8 with casts us | bf16 over fp8 with casts |")
        print("| --- | ---: | ---: | ---: | ---: |")
        sums = [0.0, 0.0, 0.0]
        for layer in LAYERS[model]:
            for name, times in layer_times(layer, ROWS[model]).items():
                print(line(f"{layer.name}, {name}", times), flush=True)
                sums = [total + time for total, time in zip(sums, times, strict=True)]
        print(line("a block", sums))


def line(name: str, times: list[float]) -> str:
    """A line of the table, from milliseconds."""
    bf16, fp8, casts = (1000 * time for time in times)
    return f"| {name} | {bf16:.1f} | {fp8:.1f} | {casts:.1f} | {bf16 / casts:.2f} |"


def layer_times(layer: Product, rows: int) -> dict[str, list[float]]:
    """Milliseconds of a layer's three products: in bf16, in fp8, and in fp8 with its casts."""
    torch.manual_seed(0)
    x = torch.randn(rows, layer.into, device="cuda", dtype=torch.bfloat16)
    w = torch.randn(layer.out, layer.into, device="cuda", dtype=torch.bfloat16) * layer.into**-0.5
    dy = torch.randn(rows, layer.out, device="cuda", dtype=torch.bfloat16)
    check(x, w)
    wt, xt, dyt = w.t().contiguous(), x.t().contiguous(), dy.t().contiguous()
    cast, turn = torch.compile(quantized), torch.compile(transposed)
    products: dict[str, tuple[Callable[[], Tensor], Tensor, Tensor, list[Callable[[], object]]]] = {
        "output": (lambda: x @ w.t(), x, w, [lambda: cast(x)]),
        "input's gradient": (lambda: dy @ w, dy, wt, [lambda: cast(dy)]),
        "weights' gradient": (lambda: dy.t() @ x, dyt, xt, [lambda: turn(dy), lambda: turn(x)]),
    }
    times = {}
    for name, (bf16, left, right, casts) in products.items():
        factors = quantized(left), quantized(right)
        fp8 = measure(lambda factors=factors: scaled(*factors))  # type: ignore[misc]
        times[name] = [measure(bf16), fp8, fp8 + sum(measure(one) for one in casts)]
    return times


def quantized(x: Tensor) -> tuple[Tensor, Tensor]:
    """Scale by the largest magnitude and cast; the inverse scale comes second."""
    scale = LARGEST / x.abs().amax().float()
    return (x.float() * scale).to(torch.float8_e4m3fn), scale.reciprocal()


def transposed(x: Tensor) -> tuple[Tensor, Tensor]:
    """The same of the transposed matrix, written in its order."""
    cast, inverse = quantized(x)
    return cast.t().contiguous(), inverse


def scaled(a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor]) -> Tensor:
    """A product of fp8 matrices, a (M, K) and b (N, K), both with K contiguous."""
    return torch._scaled_mm(a[0], b[0].t(), a[1], b[1], out_dtype=torch.bfloat16, use_fast_accum=True)


def check(x: Tensor, w: Tensor) -> None:
    """The fp8 product is a product: within what three bits of mantissa allow."""
    exact = x.double()[:512] @ w.double().t()
    error = (scaled(quantized(x), quantized(w))[:512].double() - exact).norm() / exact.norm()
    if not error < 0.06:
        raise SystemExit(f"the fp8 product is wrong: error {float(error):.3f}")


if __name__ == "__main__":
    main()
