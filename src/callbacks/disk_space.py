"""A warning before the disk is too full for the next checkpoints."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from src.system.torch_internals import tree_leaves

ROOM = 3  # checkpoints that should still fit: best, last, and the draft of one of them
GIB = 2**30
log = logging.getLogger(__name__)


class DiskSpace(Callback):
    """Compares the free space with the size of the state whenever it is saved; says so once until there is room again.

    A disk that does fill up costs nothing but the new checkpoint, see ``Checkpoints``.

    Args:
        folder: where checkpoints go.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._warned = False

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Look, before anything is written."""
        if not trainer.is_global_zero:
            return
        size = sum(leaf.nbytes for leaf in tree_leaves(checkpoint) if isinstance(leaf, Tensor))
        try:
            free = shutil.disk_usage(self.folder).free
        except OSError:
            return  # the folder is gone: the writer makes it again, or says why it cannot
        scarce = free < ROOM * size
        if scarce and not self._warned:
            log.warning(
                "the disk of %s is nearly full: %.2f GiB are free and a checkpoint takes %.2f GiB; make room, or lower "
                "trainer.keep; a checkpoint that does not fit leaves the last good one as it is",
                self.folder, free / GIB, size / GIB,
            )  # fmt: skip
        self._warned = scarce
