"""Run the fused block's tests through Triton's interpreter, in a process of their own: see attention/triton."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.attention.triton.test_interpreted import run_interpreted

FOLDER = Path(__file__).with_name("interpreted")


def test_fused_block_loss_and_decoding() -> None:
    run_interpreted(FOLDER, "-m", "not slow")


@pytest.mark.slow
def test_decoding_with_every_recipe() -> None:
    run_interpreted(FOLDER, "-m", "slow")
