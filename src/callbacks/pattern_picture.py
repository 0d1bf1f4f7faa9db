"""The attention pattern as a picture, at the start of a run: to a file and to wandb."""

from __future__ import annotations

from pathlib import Path

from lightning.pytorch import Callback, LightningModule, Trainer

from src.attention import HeadPattern
from src.errors import warned_if_not_written
from src.loggers.lookup import wandb_loggers
from src.system.atomic_files import written_whole


class PatternPicture(Callback):
    """Draws what each head sees.

    Args:
        file: where the PNG goes.
        pattern: what is drawn.
        heads: attention heads of a block.
        context: sequence length of the run.
        kv_heads: heads of keys and values; None: as many.
    """

    def __init__(self, file: Path, pattern: HeadPattern, heads: int, context: int, kv_heads: int | None = None) -> None:
        self.file = file
        self.pattern = pattern
        self.heads = heads
        self.context = context
        self.kv_heads = kv_heads

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw once; a resumed run keeps the picture it has."""
        if not trainer.is_global_zero or self.file.is_file():
            return
        from src.attention.draw import draw_pattern  # late: matplotlib takes a second to import

        with warned_if_not_written(str(self.file)):
            with written_whole(self.file) as file:
                figure = draw_pattern(self.pattern, self.heads, self.context, self.kv_heads)
                figure.savefig(file, format="png")
            for logger in wandb_loggers(trainer):
                logger.log_image("attention/pattern", [str(self.file)], step=trainer.global_step)
