"""Compile every kernel launch of a case for a named GPU, with no GPU.

    python -m tests.attention.triton.compile_kernels --arch 86
    python -m tests.attention.triton.compile_kernels --of tiled --arch 86 + --of muon  # one after the other

The launches are the real ones: ``passes`` runs on tensors without storage, and a decoder predicts a byte on the CPU;
each launch compiles instead of running. Prints one JSON object a kernel: which part of the command line, name, target,
configuration, shared memory, registers and spilled bytes.
"""

from __future__ import annotations

import argparse
import ast
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from src.attention.patterns import Pattern

TILED = ("tiled_forward", "tiled_backward_queries", "tiled_backward_keys")
CASES = {
    "strided": Pattern("strided", 128),
    "fixed": Pattern("fixed", 128, 32),
    "strided heads": Pattern("strided", 128, mode="multihead"),
    "fixed heads": Pattern("fixed", 128, 32, mode="multihead"),
}


def compile_case(
    pattern: Pattern, arch: int, dtype: torch.dtype, qk: int, v: int, n: int = 12_288, stored: bool = False,
    ratio: int = 1,
) -> list[dict[str, Any]]:  # fmt: skip
    """Compile the forward and backward kernels of one layer for compute capability ``arch`` (such as 86).

    With ``stored`` in the configurations of the tuning table, else in the safe ones of an unknown GPU. ``ratio`` heads
    of queries share keys and values.
    """
    from src.attention.triton import passes, tuning

    found: list[dict[str, Any]] = []

    def compile_only(
        name: str, kernel: Any, programs: int, config: Any, arguments: tuple[Any, ...], constants: dict[str, Any]
    ) -> None:
        compiled = kernel.warmup(*arguments, **constants, **passes.options(config), grid=(programs,))
        found.append(
            {"kernel": name, "function": kernel.fn.__name__, "arch": arch, "config": list(config)}
            | _resources(compiled)
        )

    _pretend(arch)
    heads = 2

    def rows(heads: int, width: int) -> torch.Tensor:
        return torch.empty(2, n, heads, width, dtype=dtype, device="meta").transpose(1, 2)

    layer = pattern.layer(heads)
    q, dq, k, dk = (rows(some, qk) for some in (heads, heads, heads // ratio, heads // ratio))
    out, dout, v_, dv = (rows(some, v) for some in (heads, heads, heads // ratio, heads // ratio))
    lse = torch.empty(2, heads, n, device="meta")
    capability = f"sm_{arch}" if stored else "unknown"
    with replaced(tuning, "capability", lambda device: capability), replaced(passes, "launch", compile_only):
        passes.forward(q, k, v_, out, lse, layer, 0.125)
        passes.backward(q, k, v_, out, lse, dout, dq, dk, dv, layer, 0.125)
    return found


def compile_decoding(
    pattern: Pattern, arch: int, dtype: torch.dtype, qk: int, v: int, recipe: str = ""
) -> list[dict[str, Any]]:
    """Compile every kernel of a decoding step for compute capability ``arch``: few sequences, more, and many; from 9.0
    on both with what such GPUs can and without."""
    from src.decoding.cuda_graph import GraphedDecoder
    from src.decoding.decoder import Decoder
    from src.decoding.tiles import LEAST, Gpu
    from src.models.sparse_transformer import SparseTransformer
    from tests.models.recipes import RECIPES

    heads = 8
    shape: dict[str, Any] = {"context": 4096, "depth": 1, "width": heads * v, "heads": heads}
    rows: list[dict[str, Any]] = []
    shape |= {"half_size_qk": 2 * qk == v} | RECIPES.get(recipe, {})
    model = SparseTransformer(pattern=pattern, **shape)
    for batch in (3, 16, 64):
        decoder = Decoder(model, batch, 4000, dtype, "torch")
        tokens = torch.zeros(batch, 4001, dtype=torch.int64)
        for gpu in (LEAST, Gpu(overlap=True, deep=True))[: 1 + (arch >= 90)]:
            step = GraphedDecoder(decoder, tokens, lambda logits, position: logits[:, 0].long())
            step.gpu = gpu
            with compiled_launches(arch) as found:
                step.predict()
            rows += [row | {"deep": gpu.deep, "batch": batch} for row in found]
    return rows


def compile_fused(pattern: Pattern, arch: int, dtype: torch.dtype, qk: int, v: int) -> list[dict[str, Any]]:
    """Compile every kernel of the fused residual block and loss, attention's own apart, forward and backward; the
    paper's block and the modern one."""
    from src.models.fused.loss import cross_entropy
    from src.models.fused.residual_block import Plan, fused_block
    from src.models.rotary import rotary_table
    from tests.models.recipes import MODERN

    heads, n = 4, 256
    width = heads * v
    into = 2 * heads * qk + width
    shapes = [(width,), (width,), (into, width), (into,), (width, width), (width,), (width,), (width,),
              (4 * width, width), (4 * width,), (width, 4 * width), (width,)]  # fmt: skip
    parameters = tuple(torch.zeros(shape, requires_grad=True) for shape in shapes)
    hidden = torch.zeros(2, n, width, dtype=dtype, requires_grad=True)
    plan = Plan(pattern.layer(heads), (heads * qk, heads * qk, width), "torch", 0.1, "none")
    with compiled_launches(arch) as found:
        for recompute in ("none", "block"):
            seed = torch.zeros(1, dtype=torch.int64)
            fused_block(hidden, seed, None, None, replace(plan, recompute=recompute), parameters).sum().backward()
        matrices = [p if p.dim() == 2 else None for p in parameters]
        table = rotary_table(10000.0, n, qk)
        fused_block(hidden, seed, table, None, replace(plan, options=MODERN), matrices).sum().backward()
        logits = torch.zeros(n, 256, dtype=dtype, requires_grad=True)
        cross_entropy(logits, torch.zeros(n, dtype=torch.uint8)).sum().backward()
    return found


def compile_tiled(
    pattern: Pattern, arch: int, dtype: torch.dtype, qk: int, v: int, stored: bool
) -> list[dict[str, Any]]:
    """Compile the kernels over lists of tiles, with and without documents, in every tile size of a GPU."""
    from src.attention.tiled import parts
    from src.attention.tiled_operator import tiled_attention
    from src.attention.triton import tuning

    heads, n = 4, 256
    capability = f"sm_{arch}" if stored else "unknown"
    q, k = (torch.zeros(1, heads, n, qk, dtype=dtype, requires_grad=True) for _ in range(2))
    v_ = torch.zeros(1, heads, n, v, dtype=dtype, requires_grad=True)
    first = torch.zeros(1, n, dtype=torch.int32)
    with replaced(tuning, "capability", lambda device: capability):
        sizes = {kernel: tuning.tiled_sizes(kernel, q.device, dtype, qk, v) for kernel in TILED}
    rows: list[dict[str, Any]] = []
    for number in range(max(map(len, sizes.values()))):
        one = {kernel: own[number % len(own)] for kernel, own in sizes.items()}
        chosen = replaced(tuning, "tiled_sizes", lambda kernel, *_, of=one: (of[kernel],))
        with chosen, replaced(parts, "SHORTEST", 1), compiled_launches(arch) as found:
            for documents in (None, first):
                tiled_attention(q, k, v_, pattern.layer(heads), "triton", 0.1, 0, documents).sum().backward()
        rows += [row | {"size": number} for row in found]
    return rows


def compile_muon(arch: int) -> list[dict[str, Any]]:
    """Compile what Muon does to single numbers, for wide and tall matrices, with a flag that holds it back."""
    from src.optimizers import muon_kernels
    from src.optimizers.matrices import split

    group = {"lr": 0.02, "weight_decay": 0.1, "momentum": 0.95, "nesterov": True, "ns_steps": 5, "rows": None}
    with compiled_launches(arch) as found:
        for shape in ((512, 2048), (2048, 512)):
            weight = torch.nn.Parameter(torch.zeros(shape))
            weight.grad = torch.zeros(shape)
            launches = list(muon_kernels.launches(list(split(weight, torch.zeros(shape), group))))
            stack = torch.zeros(1, 512, 2048, dtype=torch.bfloat16)
            muon_kernels.write(launches, stack, torch.zeros(()), None)
            muon_kernels.apply(launches, stack, torch.zeros(()))
    return found


@contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Let something else stand under a name for a while."""
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


@contextmanager
def compiled_launches(arch: int) -> Iterator[list[dict[str, Any]]]:
    """Compile every launch instead of running it, and give a row each; results hold whatever was in memory."""
    from triton.runtime.jit import JITFunction

    found: list[dict[str, Any]] = []
    run = JITFunction.run

    def compile_only(self: Any, *arguments: Any, grid: Any, warmup: bool, **options: Any) -> None:
        compiled = run(self, *arguments, grid=grid, warmup=True, **options)
        found.append({"kernel": self.fn.__name__, "function": self.fn.__name__, "arch": arch} | _resources(compiled))

    _pretend(arch)
    with replaced(JITFunction, "run", compile_only):
        yield found


def launched_kernels(source: Path) -> set[str]:
    """Names of the kernels in the files below ``source`` that are launched: functions that no other kernel calls."""
    defined: set[str] = set()
    called: set[str] = set()
    for file in source.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.FunctionDef) and any("triton.jit" in ast.unparse(d) for d in node.decorator_list):
                defined.add(node.name)
                called |= {inner.id for inner in ast.walk(node) if isinstance(inner, ast.Name)}
    return defined - called


def _pretend(arch: int) -> None:
    """Let Triton believe that there is a GPU of compute capability ``arch``."""
    from triton.backends.compiler import GPUTarget
    from triton.runtime import driver

    class NoGPU:
        def get_current_target(self) -> Any:
            return GPUTarget("cuda", arch, 32)

        def get_current_device(self) -> int:
            return arch  # the compiled kernels are kept by device: each target is its own

        def get_current_stream(self, device: int) -> int:
            return 0

    driver.set_active(NoGPU())


def _resources(compiled: Any) -> dict[str, int]:
    """Shared memory, registers a thread, and bytes of its stack: what did not fit the registers is spilled there."""
    import triton

    cuobjdump = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "kernel.cubin"
        cubin.write_bytes(compiled.asm["cubin"])
        command = [str(cuobjdump), "--dump-resource-usage", str(cubin)]
        report = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    registers, stack = (max(int(x) for x in re.findall(rf"{name}:(\d+)", report)) for name in ("REG", "STACK"))
    return {"shared": compiled.metadata.shared, "registers": registers, "spilled": stack}


def main() -> None:
    """Compile what each part of the command line asks for."""
    parts: list[list[str]] = [[]]
    for word in sys.argv[1:]:
        parts.append([]) if word == "+" else parts[-1].append(word)
    for number, words in enumerate(parts):
        for row in compiled(words):
            print(json.dumps({"part": number} | row), flush=True)


def compiled(words: list[str]) -> Iterator[dict[str, Any]]:
    """Compile what these words ask for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--case", choices=CASES, action="append", help="which patterns (default: all)")
    parser.add_argument("--arch", type=int, action="append", help="compute capabilities, such as 86 (default: 90)")
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float16", "float32"])
    parser.add_argument("--qk", type=int, default=64, help="width of a query")
    parser.add_argument("--v", type=int, default=64, help="width of a value")
    parser.add_argument(
        "--of", choices=("attention", "tiled", "decoding", "fused", "muon"), default="attention", help="which kernels"
    )
    parser.add_argument("--ratio", type=int, default=1, help="of attention: heads that share keys and values (1 or 2)")
    parser.add_argument("--recipe", default="", help="of decoding, of tests/models/recipes.py (default: the paper's)")
    parser.add_argument("--stored", action="store_true", help="stored configurations, not the safe ones")
    options = parser.parse_args(words)
    dtype, widths = getattr(torch, options.dtype), (options.qk, options.v)
    for arch in options.arch or [90]:
        for case in options.case or list(CASES):
            if options.of == "decoding":
                rows = compile_decoding(CASES[case], arch, dtype, *widths, options.recipe)
            elif options.of == "tiled":
                rows = compile_tiled(CASES[case], arch, dtype, *widths, stored=options.stored)
            elif options.of == "muon":
                rows = compile_muon(arch)
            elif options.of == "fused":
                rows = compile_fused(CASES[case], arch, dtype, *widths)
            else:
                rows = compile_case(CASES[case], arch, dtype, *widths, stored=options.stored, ratio=options.ratio)
            yield from ({"case": case} | row for row in rows)


if __name__ == "__main__":
    main()
