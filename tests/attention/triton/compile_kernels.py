"""Compile every kernel launch of a case for a named GPU, with no GPU.

    python -m tests.attention.triton.compile_kernels --arch 86

The launches are the real ones: ``passes`` runs on tensors without storage, and each launch compiles instead of
running. Prints one JSON object a kernel: name, target, configuration, shared memory, registers and spilled bytes.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import torch

from src.attention.patterns import Pattern

CASES = {
    "strided": Pattern("strided", 128),
    "fixed": Pattern("fixed", 128, 32),
    "strided heads": Pattern("strided", 128, mode="multihead"),
    "fixed heads": Pattern("fixed", 128, 32, mode="multihead"),
}


def compile_case(
    pattern: Pattern, arch: int, dtype: torch.dtype, qk: int, v: int, n: int = 12_288, stored: bool = False
) -> list[dict[str, Any]]:
    """Compile the forward and backward kernels of one layer for compute capability ``arch`` (such as 86).

    With ``stored`` in the configurations of the tuning table, else in the safe ones of an unknown GPU.
    """
    from triton.backends.compiler import GPUTarget
    from triton.runtime import driver

    from src.attention.triton import passes, tuning

    class NoGPU:
        def get_current_target(self) -> Any:
            return GPUTarget("cuda", arch, 32)

        def get_current_device(self) -> int:
            return arch  # the compiled kernels are kept by device: each target is its own

        def get_current_stream(self, device: int) -> int:
            return 0

    found: list[dict[str, Any]] = []

    def compile_only(
        name: str, kernel: Any, programs: int, config: Any, arguments: tuple[Any, ...], constants: dict[str, Any]
    ) -> None:
        compiled = kernel.warmup(*arguments, **constants, **passes.options(config), grid=(programs,))
        found.append(
            {"kernel": name, "arch": arch, "config": list(config), "shared": compiled.metadata.shared}
            | _resources(compiled.asm["cubin"])
        )

    driver.set_active(NoGPU())
    tuning.capability = lambda device: f"sm_{arch}" if stored else "unknown"  # type: ignore[assignment]
    passes.launch = compile_only  # type: ignore[assignment]
    heads = 2
    layer = pattern.layer(heads)
    q, k, dq, dk = (torch.empty(2, n, heads, qk, dtype=dtype, device="meta").transpose(1, 2) for _ in range(4))
    v_, out, dout, dv = (torch.empty(2, n, heads, v, dtype=dtype, device="meta").transpose(1, 2) for _ in range(4))
    lse = torch.empty(2, heads, n, device="meta")
    passes.forward(q, k, v_, out, lse, layer, 0.125)
    passes.backward(q, k, v_, out, lse, dout, dq, dk, dv, layer, 0.125)
    return found


def _resources(machine_code: bytes) -> dict[str, int]:
    """Registers a thread, and bytes of its stack: what did not fit the registers is spilled there."""
    import triton

    cuobjdump = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "kernel.cubin"
        cubin.write_bytes(machine_code)
        command = [str(cuobjdump), "--dump-resource-usage", str(cubin)]
        report = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    registers, stack = (max(int(x) for x in re.findall(rf"{name}:(\d+)", report)) for name in ("REG", "STACK"))
    return {"registers": registers, "spilled": stack}


def main() -> None:
    """Compile what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--case", choices=CASES, action="append", help="which patterns (default: all)")
    parser.add_argument("--arch", type=int, action="append", help="compute capabilities, such as 86 (default: 90)")
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float16", "float32"])
    parser.add_argument("--qk", type=int, default=64, help="width of a query")
    parser.add_argument("--v", type=int, default=64, help="width of a value")
    parser.add_argument("--stored", action="store_true", help="stored configurations, not the safe ones")
    options = parser.parse_args()
    for arch in options.arch or [90]:
        for case in options.case or list(CASES):
            for row in compile_case(
                CASES[case], arch, getattr(torch, options.dtype), options.qk, options.v, stored=options.stored
            ):
                print(json.dumps({"case": case} | row), flush=True)


if __name__ == "__main__":
    main()
