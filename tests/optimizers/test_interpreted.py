"""Run the tests of Muon's kernels through Triton's interpreter, in a process of their own: see attention/triton."""

from __future__ import annotations

from pathlib import Path

from tests.attention.triton.test_interpreted import run_interpreted


def test_muon_kernels() -> None:
    run_interpreted(Path(__file__).with_name("interpreted"))
