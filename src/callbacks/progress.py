"""The progress bar: where a run is, its bits per byte, its speed, the time left."""

from __future__ import annotations

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar

SHORT = {
    "train/bits_per_byte": "bits/byte",
    "val/bits_per_byte": "val",
    "test/bits_per_byte": "bits/byte",
    "train/tokens_per_second": "bytes/s",
}


class Progress(RichProgressBar):
    """Lightning's rich bar with our figures, under names that fit a line."""

    def get_metrics(
        self, trainer: Trainer, pl_module: LightningModule
    ) -> dict[str, int | str | float | dict[str, float]]:
        """Pick and shorten the figures on the bar."""
        metrics = super().get_metrics(trainer, pl_module)
        shown: dict[str, int | str | float | dict[str, float]] = {}
        for name, short in SHORT.items():
            value = metrics.get(name)
            if isinstance(value, float):
                shown[short] = f"{value:,.0f}" if short == "bytes/s" else f"{value:.3f}"
        return shown

    def _get_train_description(self, current_epoch: int) -> str:
        """One bar for the whole run: epochs of Lightning mean nothing here."""
        return "Training  "
