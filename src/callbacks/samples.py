"""Samples at each validation: to a file of the run, to the log and to wandb."""

from __future__ import annotations

from abc import abstractmethod
from pathlib import Path

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from src.data.picture_grid import completions_grid, save_grid
from src.decoding.sampling import Draw, as_text, generate
from src.errors import warned_if_not_written
from src.loggers.lookup import wandb_loggers
from src.system.atomic_files import written_whole
from src.training.determinism import anything_goes
from src.training.language_model import LanguageModel
from src.training.strategies import whole_weights


class Samples(Callback):
    """Lets the model continue bytes of the validation split after each validation, with the incremental decoder.

    Args:
        folder: where the files go.
        prompt: (B, P) uint8, what is continued.
        count: bytes to draw for each row.
        seed: of the draw.
        seconds: stop drawing after about so long.
        dtype: of the decoder's activations on a GPU; on a CPU they are fp32.
    """

    def __init__(
        self, folder: Path, prompt: Tensor, count: int, seed: int, seconds: float | None, dtype: torch.dtype
    ) -> None:
        self.folder = folder
        self.prompt = prompt
        self.count = count
        self.seed = seed
        self.seconds = seconds
        self.dtype = dtype

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw, on the first process alone."""
        assert isinstance(pl_module, LanguageModel)
        with whole_weights(pl_module):
            if trainer.is_global_zero:
                drawn = self._drawn(pl_module)
                with warned_if_not_written(f"the sample of step {trainer.global_step} in {self.folder}"):
                    self.folder.mkdir(parents=True, exist_ok=True)
                    self.keep(trainer, drawn)

    @abstractmethod
    def keep(self, trainer: Trainer, drawn: Tensor) -> None:
        """Write and log what was drawn, (B, P + count) uint8 on the CPU, or less where time ran out."""

    def _drawn(self, module: LanguageModel) -> Tensor:
        dtype = self.dtype if module.device.type == "cuda" else torch.float32
        prompt = self.prompt.to(module.device)
        draw = Draw(seed=self.seed)
        with anything_goes():
            return generate(module.model, prompt, self.count, draw, dtype=dtype, seconds=self.seconds).cpu()


class TextSamples(Samples):
    """Continues the beginning of the validation split."""

    def keep(self, trainer: Trainer, drawn: Tensor) -> None:
        """Write ``step-N.txt``."""
        given = self.prompt.shape[1]
        before, after = as_text(drawn[0, :given]), as_text(drawn[0, given:])
        step = trainer.global_step
        with written_whole(self.folder / f"step-{step:07d}.txt") as file:
            file.write(f"{before}\n----- continued by the model -----\n{after}\n".encode())
        for logger in wandb_loggers(trainer):
            logger.log_text("samples/text", columns=["prompt", "sample"], data=[[before, after]], step=step)


class PictureSamples(Samples):
    """Completes the lower part of validation pictures.

    Args:
        folder, seed, seconds, dtype: as in ``Samples``.
        originals: (B, context) uint8, the whole pictures.
        row: pixels of a row.
        given: bytes of each picture that the model is given.
    """

    def __init__(
        self,
        folder: Path,
        originals: Tensor,
        row: int,
        given: int,
        seed: int,
        seconds: float | None,
        dtype: torch.dtype,
    ) -> None:
        context = originals.shape[1]
        super().__init__(folder, originals[:, :given], context - given, seed, seconds, dtype)
        self.originals = originals
        self.row = row

    def keep(self, trainer: Trainer, drawn: Tensor) -> None:
        """Write ``step-N.png``: in each row the original, what was given, the completion."""
        given, context = self.prompt.shape[1], self.originals.shape[1]
        file = self.folder / f"step-{trainer.global_step:07d}.png"
        save_grid(file, completions_grid(self.originals, drawn, given, self.row, context))
        for logger in wandb_loggers(trainer):
            caption = "original, given, completed"
            logger.log_image("samples/pictures", [str(file)], step=trainer.global_step, caption=[caption])
