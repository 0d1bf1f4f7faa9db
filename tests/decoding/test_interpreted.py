"""Run the tests of the decoder's kernels through Triton's interpreter, in a process of their own."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.attention.triton.test_interpreted import run_interpreted

FOLDER = Path(__file__).with_name("interpreted")


def test_kernels() -> None:
    run_interpreted(FOLDER, "-m", "not slow")


@pytest.mark.slow
def test_steps_of_every_recipe() -> None:
    run_interpreted(FOLDER, "-m", "slow")
