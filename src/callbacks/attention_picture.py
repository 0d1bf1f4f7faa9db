"""What the network attends to, drawn at each validation: to a file of the run and to wandb."""

from __future__ import annotations

from pathlib import Path

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from src.attention.learned import spread
from src.errors import warned_if_not_written
from src.loggers.lookup import wandb_loggers
from src.models.attention_maps import learned_attention
from src.system.atomic_files import written_whole
from src.training.determinism import anything_goes
from src.training.language_model import LanguageModel
from src.training.strategies import whole_weights

MOST_BLOCKS, MOST_HEADS = 4, 4


class AttentionPicture(Callback):
    """Draws the attention weights of one byte of the validation split, for a few blocks and heads (figure 2).

    Args:
        folder: where the files go.
        x: (N,) uint8, the sequence.
        query: the byte whose prediction is shown.
        row: pixels of a row where the sequence is a picture; None for text.
        documents: (N,) int32, the position at which the document of each byte begins; None: there is one.
    """

    def __init__(self, folder: Path, x: Tensor, query: int, row: int | None, documents: Tensor | None = None) -> None:
        self.folder = folder
        self.x = x
        self.query = query
        self.row = row
        self.documents = documents

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write ``step-N.png``, on the first process alone."""
        assert isinstance(pl_module, LanguageModel)
        with whole_weights(pl_module):
            if trainer.is_global_zero:
                self._draw(trainer, pl_module)

    def _draw(self, trainer: Trainer, module: LanguageModel) -> None:
        from src.attention.draw_learned import draw_learned  # late: matplotlib takes a second to import

        model = module.model
        blocks = spread(len(model.blocks), MOST_BLOCKS)
        heads = spread(len(model.blocks[0].attention.layer), MOST_HEADS)  # type: ignore[arg-type, union-attr]
        with anything_goes():
            learned = learned_attention(model, self.x, self.query, blocks, heads, self.documents)
        path = self.folder / f"step-{trainer.global_step:07d}.png"
        with warned_if_not_written(str(path)):
            self.folder.mkdir(parents=True, exist_ok=True)
            with written_whole(path) as file:
                draw_learned(learned, self.x.numpy(), self.row).savefig(file, format="png")
            for logger in wandb_loggers(trainer):
                logger.log_image("attention/learned", [str(path)], step=trainer.global_step)
