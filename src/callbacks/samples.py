"""A text sample at each validation: to a file of the run, to the log and to wandb."""

from __future__ import annotations

from pathlib import Path

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import WandbLogger
from torch import Tensor

from src.models.language_model import LanguageModel
from src.sampling import as_text, continue_bytes


class TextSamples(Callback):
    """Lets the model continue the beginning of the validation split.

    Args:
        folder: where ``step-N.txt`` goes.
        prompt: (P,) uint8, what is continued.
        count: bytes to draw.
        seed: of the draw.
    """

    def __init__(self, folder: Path, prompt: Tensor, count: int, seed: int) -> None:
        self.folder = folder
        self.prompt = prompt
        self.count = count
        self.seed = seed

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw, on the first process alone."""
        if not trainer.is_global_zero:
            return
        assert isinstance(pl_module, LanguageModel)
        prompt = self.prompt[None].to(pl_module.device)
        with trainer.precision_plugin.forward_context():
            drawn = continue_bytes(pl_module.model, prompt, self.count, seed=self.seed)[0]
        before, after = as_text(drawn[: len(self.prompt)]), as_text(drawn[len(self.prompt) :])
        self.folder.mkdir(exist_ok=True)
        step = trainer.global_step
        (self.folder / f"step-{step:07d}.txt").write_text(f"{before}\n----- continued by the model -----\n{after}\n")
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                logger.log_text("samples/text", columns=["prompt", "sample"], data=[[before, after]], step=step)
