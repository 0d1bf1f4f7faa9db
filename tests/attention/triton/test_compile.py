"""Every kernel compiles for every GPU generation from Ampere on, with no GPU, and fits where it may have to run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.attention.triton.compile_kernels import launched_kernels

pytest.importorskip("triton")

ROOT = Path(__file__).parents[3]
KERNELS = {
    "block_forward",
    "block_backward_queries",
    "block_backward_keys",
    "window_forward",
    "window_backward",
    "column_forward",
    "column_backward",
}
DECODING = {"embed_step", "step_vector", "step_linear", "decode_attention", "decode_join"}
SMALLEST = 100 * 1024 - 1024  # shared memory a program may have on consumer Ampere and Ada cards
LARGEST = 227 * 1024  # and on those of Hopper


def compiled(*arguments: str) -> list[dict]:
    """Compile in a process of its own: here the interpreter has taken the kernels' place."""
    environment = os.environ | {"TRITON_INTERPRET": "0"}
    command = [sys.executable, "-m", "tests.attention.triton.compile_kernels", *arguments]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def check(rows: list[dict], spill: int) -> None:
    for row in rows:
        assert row["shared"] <= (LARGEST if row.get("deep") else SMALLEST), row
        assert row["spilled"] <= spill, row


@pytest.mark.parametrize("arch", [80, 86, 89, 90])
def test_safe_configurations_fit_100_kb_and_do_not_spill(arch: int) -> None:
    rows = compiled("--arch", str(arch), "--case", "strided", "--case", "fixed")
    assert {row["kernel"] for row in rows} == KERNELS
    check(rows, spill=0)


@pytest.mark.parametrize("arch", [80, 86, 89, 90])
def test_kernels_of_a_decoding_step_fit_100_kb_and_do_not_spill(arch: int) -> None:
    rows = compiled("--of", "decoding", "--arch", str(arch), "--case", "fixed")
    assert {row["kernel"] for row in rows} == DECODING
    check(rows, spill=0)


@pytest.mark.parametrize("arch", [80, 86, 89, 90])
def test_kernels_of_the_fused_block_fit_100_kb_and_do_not_spill(arch: int) -> None:
    rows = compiled("--of", "fused", "--arch", str(arch), "--case", "fixed")
    assert rows
    check(rows, spill=0)


def test_no_kernel_is_forgotten() -> None:
    """Every kernel that is launched anywhere in the project is among those that the tests here compile."""
    found: set[str] = set()
    for part in ("attention", "decoding", "fused"):
        rows = compiled("--of", part, "--arch", "90", "--case", "strided", "--case", "fixed")
        found |= {row["function"] for row in rows}
    assert found == launched_kernels(ROOT / "src")


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("widths", [(32, 32), (64, 128), (128, 128)])
@pytest.mark.parametrize("arch", [86, 90])
def test_decoding_kernels_of_all_widths_and_dtypes_fit(arch: int, widths: tuple[int, int], dtype: str) -> None:
    line = ("--arch", str(arch), "--dtype", dtype, "--qk", str(widths[0]), "--v", str(widths[1]), "--case", "fixed")
    rows = compiled("--of", "decoding", *line)
    assert {row["kernel"] for row in rows} == DECODING
    check(rows, spill=0)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("widths", [(32, 32), (64, 128), (128, 128)])
@pytest.mark.parametrize("arch", [86, 90])
def test_all_widths_and_dtypes_fit(arch: int, widths: tuple[int, int], dtype: str) -> None:
    rows = compiled("--arch", str(arch), "--dtype", dtype, "--qk", str(widths[0]), "--v", str(widths[1]))
    assert {row["kernel"] for row in rows} == KERNELS
    check(rows, spill=2560)  # wide fp32 tiles: slow, not wrong


def test_stored_configurations_compile_for_their_gpu() -> None:
    rows = compiled("--arch", "90", "--stored", "--case", "strided", "--case", "fixed")
    assert max(row["config"][3] for row in rows) > 2, "the stored table was not used"
    for row in rows:
        assert row["shared"] <= LARGEST, row
        assert row["spilled"] <= 256, row
