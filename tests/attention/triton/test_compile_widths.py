"""Kernels of every recipe, head width and type compile, and fit where they may have to run."""

from __future__ import annotations

import pytest

from tests.attention.triton.compiled import DECODING, KERNELS, check, compiled

pytest.importorskip("triton")


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["modern", "rms with biases", "no biases"])
@pytest.mark.parametrize("arch", [86, 90])
def test_decoding_kernels_of_every_recipe_fit(arch: int, recipe: str) -> None:
    rows = compiled("--of", "decoding", "--recipe", recipe, "--arch", str(arch), "--case", "fixed")
    assert {row["kernel"] for row in rows} == DECODING
    check(rows, spill=0)


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
