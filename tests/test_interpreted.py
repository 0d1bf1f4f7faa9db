"""Run the kernels' tests, those in folders named ``interpreted``, through Triton's interpreter, in one process.

The interpreter has to be chosen before anything imports Triton, and choosing it here would choose it for every other
test of this process. By hand: ``TRITON_INTERPRET=1 python -m pytest tests/attention/triton/interpreted``.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

FOLDERS = sorted(map(str, Path(__file__).parent.glob("**/interpreted")))


def test_kernels_of_attention_decoding_models_and_optimizers() -> None:
    run_interpreted("not slow")


@pytest.mark.slow
def test_more_patterns_modes_and_recipes() -> None:
    run_interpreted("slow")


def run_interpreted(marks: str) -> None:
    """Run the tests with these marks where Triton interprets its kernels; none may be skipped."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}
    environment |= {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "pytest", "-x", "-p", "no:cacheprovider", *FOLDERS, "-m", marks]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-6000:]
    assert " passed" in done.stdout and "skipped" not in done.stdout, done.stdout[-500:]
