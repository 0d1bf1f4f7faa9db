"""GPUs are counted by another process, and here if that one cannot."""

import subprocess
import sys

import pytest
import torch

from tests.runs import environment

CODE = "import sys; from src import gpus; {broken}; gpus.ask(); print(gpus.gpu_count(), 'torch' in sys.modules)"


@pytest.mark.parametrize(
    ("broken", "here"),
    [("pass", False), ("gpus.COUNT = 'print(1); raise SystemExit(1)'", True), ("gpus.COUNT = 'print()'", True)],
    ids=["counted", "failed", "silent"],
)
def test_counts_as_pytorch_does(broken, here, tmp_path):
    line = [sys.executable, "-c", CODE.format(broken=broken)]
    done = subprocess.run(line, cwd=tmp_path, env=environment(), capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(torch.cuda.device_count()), str(here)]
