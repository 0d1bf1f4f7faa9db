"""The Sparse Transformer under Lightning: loss, figures, optimizer and schedule (section 6)."""

from __future__ import annotations

import functools
import hashlib
import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812
from lightning.pytorch import LightningModule
from torch import Tensor

from src.models.metric import BitsPerByte
from src.models.schedule import decay_groups, warmup_cosine
from src.models.sparse_transformer import SparseTransformer


class Batch(NamedTuple):
    """What a step needs: bytes (B, N) of any integer dtype, and how many of each row are scored, int64 (B,)."""

    x: Tensor
    length: Tensor


class LanguageModel(LightningModule):
    """Trains and scores a ``SparseTransformer`` on bytes.

    Logs ``val/bits_per_byte`` and ``test/bits_per_byte``. Randomness in training (dropout) is a function of the seed,
    the step and the rank alone, so that a resumed run draws what the unbroken one would have drawn.

    Args:
        model: the network.
        max_steps: optimizer steps of the whole run; the cosine ends there.
        learning_rate: peak, after the warm-up.
        warmup_steps: optimizer steps of linear warm-up.
        weight_decay: decoupled, on matrices only.
        betas: of Adam.
        eps: of Adam.
        seed: of dropout.
        fused: one kernel for the whole optimizer step; None lets PyTorch choose. Loss scaling (fp16) needs False.
    """

    def __init__(
        self,
        model: SparseTransformer,
        *,
        max_steps: int,
        learning_rate: float = 0.00035,
        warmup_steps: int = 5000,
        weight_decay: float = 0.01,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        seed: int = 1,
        fused: bool | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.max_steps = max_steps
        self.learning_rate = learning_rate
        self.warmup_steps = warmup_steps
        self.weight_decay = weight_decay
        self.betas = betas
        self.eps = eps
        self.seed = seed
        self.fused = fused
        self.metrics = torch.nn.ModuleDict({"val": BitsPerByte(), "test": BitsPerByte()})
        self.step_losses: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, N, 256) of bytes (B, N)."""
        return self.model(x)

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Seed dropout by (seed, step, micro-batch, rank)."""
        micro = batch_idx % self.trainer.accumulate_grad_batches
        if micro == 0:
            self.step_losses.clear()
        torch.manual_seed(derived_seed(self.seed, self.trainer.global_step, micro, self.trainer.global_rank))

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Mean -ln p of the bytes of one micro-batch."""
        loss = self._nats(batch).mean()
        self.step_losses.append(loss.detach())
        return loss

    def step_bits_per_byte(self) -> Tensor:
        """Bits per byte of the optimizer step in progress or just done, on this process; a float32 scalar."""
        return torch.stack(self.step_losses).mean() / math.log(2)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Add a batch to the validation figure."""
        self._score("val", batch)

    def on_validation_epoch_end(self) -> None:
        """Log ``val/bits_per_byte``."""
        self._log_figure("val")

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Add a batch to the test figure."""
        self._score("test", batch)

    def on_test_epoch_end(self) -> None:
        """Log ``test/bits_per_byte``."""
        self._log_figure("test")

    def configure_optimizers(self) -> Any:
        """AdamW with decay on matrices, linear warm-up, cosine decay (section 6)."""
        optimizer = torch.optim.AdamW(
            decay_groups(self, self.weight_decay),
            lr=self.learning_rate,
            betas=self.betas,
            eps=self.eps,
            fused=self.fused,
        )
        factor = functools.partial(warmup_cosine, warmup_steps=self.warmup_steps, max_steps=self.max_steps)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _nats(self, batch: Batch) -> Tensor:
        logits = self.model(batch.x).float()
        return F.cross_entropy(logits.flatten(0, 1), batch.x.long().flatten(), reduction="none").view(batch.x.shape)

    def _score(self, split: str, batch: Batch) -> None:
        position = torch.arange(batch.x.shape[1], device=batch.x.device)
        self._metric(split).update(self._nats(batch), position < batch.length[:, None])

    def _log_figure(self, split: str) -> None:
        metric = self._metric(split)
        self.log(f"{split}/bits_per_byte", metric.compute(), prog_bar=True, logger=False)
        metric.reset()

    def _metric(self, split: str) -> BitsPerByte:
        metric = self.metrics[split]
        assert isinstance(metric, BitsPerByte)
        return metric


def derived_seed(*parts: int) -> int:
    """Mix whole numbers into one 63-bit seed; near numbers give unrelated seeds."""
    digest = hashlib.blake2b(",".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
