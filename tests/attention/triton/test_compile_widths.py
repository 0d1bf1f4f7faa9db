"""Kernels of every recipe, head width and type compile, and fit where they may have to run."""

from __future__ import annotations

import pytest

from tests.attention.triton.compiled import DECODING, KERNELS, check, compiled

pytest.importorskip("triton")


def decoding_fits(*arguments: str) -> None:
    rows = compiled("--of", "decoding", "--case", "fixed", *arguments)
    assert {row["kernel"] for row in rows} == DECODING
    check(rows, spill=0)


def kind(arch: int, widths: tuple[int, int], dtype: str) -> list[str]:
    """A GPU, the widths of a query and a value, and a type, as words of the command line."""
    return ["--arch", str(arch), "--dtype", dtype, "--qk", str(widths[0]), "--v", str(widths[1])]


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["modern", "rms with biases", "no biases"])
@pytest.mark.parametrize("arch", [86, 90])
def test_decoding_kernels_of_every_recipe_fit(arch: int, recipe: str) -> None:
    decoding_fits("--recipe", recipe, "--arch", str(arch))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("widths", [(32, 32), (64, 128), (128, 128)])
@pytest.mark.parametrize("arch", [86, 90])
def test_decoding_kernels_of_all_widths_and_dtypes_fit(arch: int, widths: tuple[int, int], dtype: str) -> None:
    decoding_fits(*kind(arch, widths, dtype))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("widths", [(32, 32), (64, 128), (128, 128)])
@pytest.mark.parametrize("arch", [86, 90])
def test_all_widths_and_dtypes_fit(arch: int, widths: tuple[int, int], dtype: str) -> None:
    rows = compiled(*kind(arch, widths, dtype))
    assert {row["kernel"] for row in rows} == KERNELS
    check(rows, spill=2560)  # wide fp32 tiles: slow, not wrong
