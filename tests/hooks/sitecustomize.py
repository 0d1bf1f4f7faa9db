"""Makes what is rare happen in a test's processes, at whose start Python runs this.

The moments of writing a checkpoint become long enough to be hit, and a GPU's memory as small as is asked for.

It is found where ``tests/hooks`` is in PYTHONPATH. Production code knows nothing of it.
"""

import os
import time
from pathlib import Path

PAUSE = float(os.environ.get("TEST_PAUSE_WHILE_WRITING", "0"))
GPU_GIB = float(os.environ.get("TEST_GPU_MEMORY_GIB", "0"))
fsync, link = os.fsync, os.link


def _slow_fsync(descriptor):
    """Let a checkpoint's draft stand for a while before it is whole on the disk."""
    name = Path(f"/proc/self/fd/{descriptor}").readlink()
    if name.parent.name == "checkpoints" and name.suffix == ".draft":
        time.sleep(PAUSE)
    fsync(descriptor)


def _slow_link(source, target, **options):
    """Let a checkpoint have both its names for a while, before the new one takes the first."""
    link(source, target, **options)
    time.sleep(PAUSE)


if PAUSE:
    os.fsync, os.link = _slow_fsync, _slow_link

if GPU_GIB:
    import torch

    torch.cuda.set_per_process_memory_fraction(GPU_GIB * 2**30 / torch.cuda.get_device_properties(0).total_memory)
