"""What all tests share: a seed, and tiny runs."""

import os
import random

os.environ.setdefault("OMP_NUM_THREADS", "1")  # tests run side by side, one core each; before torch is imported

import pytest
import torch

os.environ.setdefault("WANDB_MODE", "offline")
os.environ.setdefault("WANDB_SILENT", "true")


@pytest.fixture(autouse=True)
def seeded():
    """Every test draws the same numbers, alone or among others."""
    random.seed(0)
    torch.manual_seed(0)
