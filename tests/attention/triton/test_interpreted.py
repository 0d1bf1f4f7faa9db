"""Run the kernels' tests through Triton's interpreter, in processes of their own.

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

FOLDER = Path(__file__).with_name("interpreted")


def test_kernels_and_operator() -> None:
    run_interpreted(FOLDER, "-m", "not slow")


@pytest.mark.slow
def test_more_patterns_and_modes() -> None:
    run_interpreted(FOLDER, "-m", "slow")


def run_interpreted(folder: Path, *options: str) -> None:
    """Run the tests of a folder where Triton interprets its kernels; none may be skipped."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}
    environment |= {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "pytest", "-x", "-p", "no:cacheprovider", str(folder), *options]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-6000:]
    assert " passed" in done.stdout and "skipped" not in done.stdout, done.stdout[-500:]
