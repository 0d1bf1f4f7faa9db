"""What all tests share: a seed, and tiny runs."""

import atexit
import gc
import os
import random
import sys

os.environ.setdefault("OMP_NUM_THREADS", "1")  # tests run side by side, one core each; before torch is imported

import pytest
import torch

from tests import warm
from tests.kept import keep, keep_pictures

os.environ.setdefault("WANDB_MODE", "offline")
os.environ.setdefault("WANDB_SILENT", "true")

keep()
if os.environ.get("TRITON_INTERPRET") == "1":
    from tests.attention.triton.interpreter import hasten

    hasten()
else:  # they need Triton's interpreter from the start of the process: `tests/test_interpreted.py` runs them
    collect_ignore_glob = ["*/interpreted/*"]

# Modules that take ten seconds or more, waiting counted, in `make test` (or, test_slurm, in `make test-all`)
LONG = (
    "test_interpreted", "test_kills", "test_devices", "test_network", "test_wandb_gone", "test_golden", "test_sample",
    "test_train", "test_eval", "test_secrets", "test_start_up", "test_quality", "test_bad_pictures_and_samples",
    "test_run_directories", "test_sweep", "test_without_triton", "test_command_line", "test_data_files",
    "test_any_configuration", "test_disk_space", "test_decoder", "test_slurm",
)  # fmt: skip


def pytest_collection_modifyitems(items):
    """Begin with the long modules: one that comes last leaves the other processes without work."""
    place = {name: i for i, name in enumerate(LONG)}
    items.sort(key=lambda item: place.get(item.path.stem, len(LONG)))


def pytest_configure():
    """Let all processes of the tests share one server of warm commands."""
    if warm.SERVER not in os.environ:
        warm.serve()
    gc.disable()  # while tests are imported, of which nothing can go


def pytest_collection_finish():
    """Now everything is imported."""
    if "matplotlib" in sys.modules:
        keep_pictures()
    gc.freeze()  # what is there now stays, and need not be looked through for what may go
    gc.enable()
    atexit.register(gc.unfreeze)  # so that libraries find nothing left at the end


@pytest.fixture(autouse=True, scope="module")
def closed():
    """The data files of a module's trainings, which hang on cycles of references, are closed before the next one."""
    yield
    gc.collect()


@pytest.fixture(autouse=True)
def seeded():
    """Every test draws the same numbers, alone or among others."""
    random.seed(0)
    torch.manual_seed(0)
