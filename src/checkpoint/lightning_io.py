"""Lightning's door to checkpoint files, apart from them: who reads a checkpoint alone does not wait for Lightning."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.fabric.plugins import TorchCheckpointIO

from src.checkpoint.file import read, write


class SealedCheckpointIO(TorchCheckpointIO):
    """Writes and reads for Lightning's Trainer what ``src.checkpoint.file`` writes and reads."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write ``checkpoint`` (plain tensors and containers) to ``path``, while the caller waits."""
        write(checkpoint, Path(path))

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """Read a checkpoint to the CPU; nothing in it is run, whatever the caller asks."""
        return read(Path(path))
