"""Run the fused block's tests through Triton's interpreter, in a process of their own: see attention/triton."""

from __future__ import annotations

from pathlib import Path

from tests.attention.triton.test_interpreted import run_interpreted

FOLDER = Path(__file__).with_name("interpreted")


def test_fused_block_and_loss() -> None:
    run_interpreted(FOLDER)
