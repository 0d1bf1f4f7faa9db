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

from src.errors import UserError, said_if_out_of_memory
from src.models.residual_block import resolve_block_backend
from src.models.sparse_transformer import SparseTransformer
from src.optimizers.build import OptimizerSettings
from src.training.bits_per_byte import BitsPerByte
from src.training.cuda_graph import CapturedLoss
from src.training.lightning_internals import gradient_scale, plain_optimizer
from src.training.step_guard import StepGuard, gradient_norm

PAPER = OptimizerSettings()


class Batch(NamedTuple):
    """What a step needs.

    Attributes:
        x: bytes (B, N) of any integer dtype.
        length: how many of each row are scored, int64 (B,).
        documents: (B, N) int32, the position at which the document of each position begins; None: a row is one.
    """

    x: Tensor
    length: Tensor
    documents: Tensor | None = None


class Figure(NamedTuple):
    """Bits per byte of one pass over a split, and how many bytes it is of; over all processes."""

    bits_per_byte: float
    nbytes: int


class LanguageModel(LightningModule):
    """Trains and scores a ``SparseTransformer`` on bytes.

    Logs ``val/bits_per_byte`` and ``test/bits_per_byte``, and keeps them in ``figures``. Randomness in training
    (dropout) is a function of the seed, the step and the rank alone, so that a resumed run draws what the unbroken one
    would have drawn.

    Args:
        model: the network.
        max_steps: optimizer steps of the whole run; the schedule ends there.
        optimizer: what trains the weights.
        short_context: positions; see ``short_context_steps``.
        short_context_steps: optimizer steps at the beginning in which attention stays within consecutive pieces of
            ``short_context`` positions, so that it looks beyond the last byte sooner (docs/training.md); 0: none.
        seed: of dropout.
        fused: one kernel for the whole optimizer step; None lets PyTorch choose. Loss scaling (fp16) needs False.
        cuda_graph: run training steps as CUDA graphs where that can be, see ``captures``.
    """

    def __init__(
        self,
        model: SparseTransformer,
        *,
        max_steps: int,
        optimizer: OptimizerSettings = PAPER,
        short_context: int = 128,
        short_context_steps: int = 0,
        seed: int = 1,
        fused: bool | None = None,
        cuda_graph: bool = False,
    ) -> None:
        super().__init__()
        self.model = model
        self.max_steps = max_steps
        self.optimizer = optimizer
        self.short_context = short_context
        self.short_context_steps = short_context_steps
        self.seed = seed
        self.fused = fused
        self.cuda_graph = cuda_graph
        self.captured = CapturedLoss(model, self._loss)
        self.metrics = torch.nn.ModuleDict({"val": BitsPerByte(), "test": BitsPerByte()})
        self.guard = StepGuard()
        self.step_losses: list[Tensor] = []
        self.step_bytes: list[Tensor] = []
        self.step_documents: list[Tensor] = []
        self.figures: dict[str, Figure] = {}

    @classmethod
    def load_from_checkpoint(cls, *args: Any, **kwargs: Any) -> Any:
        """Say what to call: a checkpoint holds weights, and its run directory says of which network."""
        raise UserError("load_from_checkpoint does not know the network: take src.library.load_model(RUN_DIR)")

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, N, 256) of bytes (B, N)."""
        return self.model(x)

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Set how far this step's attention sees; seed dropout by (seed, step, micro-batch, rank)."""
        micro = batch_idx % self.trainer.accumulate_grad_batches
        if micro == 0:
            self.step_losses.clear()
            self.step_bytes.clear()
            self.step_documents.clear()
            self.set_piece(self.trainer.global_step)
        torch.manual_seed(derived_seed(self.seed, self.trainer.global_step, micro, self.trainer.global_rank))

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Mean -ln p of the bytes of one micro-batch."""
        if self.captures(batch.x.device):
            seed = torch.full((1,), int(torch.randint(2**62, ())), device=batch.x.device)
            loss = self.captured(batch.x, seed, batch.documents)
        else:
            loss = self._loss(batch.x, documents=batch.documents)
        self.step_losses.append(loss.detach())
        self.step_bytes.append(batch.x)
        if batch.documents is not None:
            self.step_documents.append(batch.documents)
        return loss

    def set_piece(self, step: int) -> None:
        """Let attention see as far as it may in optimizer step ``step``, counted from 0."""
        piece = self.short_context if step < self.short_context_steps else None
        if piece != self.model.piece:
            self.model.piece = piece
            self.captured.forget()

    def captures(self, device: torch.device) -> bool:
        """Say whether training steps on ``device`` run as CUDA graphs: asked for, a GPU, and fused blocks."""
        return self.cuda_graph and device.type == "cuda" and self._fused(device)

    def on_after_backward(self) -> None:
        """Keep the gradients of a micro-batch from the next one's CUDA graph."""
        accumulate = self.trainer.accumulate_grad_batches
        if len(self.step_losses) < accumulate and self.captures(self.device):
            self.captured.detach_gradients()

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip the norm of all gradients (section 6), and keep a step that is not finite from changing anything."""
        parameters = [p for p in self.parameters() if p.requires_grad]
        norm = gradient_norm(parameters)
        if gradient_clip_val:
            torch.nn.utils.clip_grads_with_norm_(parameters, gradient_clip_val, norm)
        self.guard.admit(
            plain_optimizer(optimizer),
            torch.stack(self.step_losses).mean(),
            norm,
            torch.stack(self.step_bytes),
            self.trainer.global_step,
            gradient_scale(self.trainer),
            torch.stack(self.step_documents) if self.step_documents else None,
        )

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
        """The optimizer and its schedule, step by step."""
        optimizer = self.optimizer.optimizer(self, self.fused)
        factor = functools.partial(self.optimizer.schedule.factor, max_steps=self.max_steps)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _loss(self, x: Tensor, seed: Tensor | None = None, documents: Tensor | None = None) -> Tensor:
        return self._nats(x, seed, documents).mean()

    def _nats(self, x: Tensor, seed: Tensor | None = None, documents: Tensor | None = None) -> Tensor:
        logits = self.model(x, seed, documents).flatten(0, 1)
        if logits.dtype != torch.float64 and self._fused(x.device):
            from src.models.fused.loss import cross_entropy

            return cross_entropy(logits, x.flatten()).view(x.shape)
        return F.cross_entropy(logits.float(), x.long().flatten(), reduction="none").view(x.shape)

    def _fused(self, device: torch.device) -> bool:
        return resolve_block_backend(self.model.block_backend, device, torch.float32) == "fused"

    def _score(self, split: str, batch: Batch) -> None:
        position = torch.arange(batch.x.shape[1], device=batch.x.device)
        scored = position < batch.length[:, None]
        if (first := getattr(batch, "first", None)) is not None:  # overlapping windows, see src/data/score_windows.py
            scored &= position >= first[:, None]
        windows, context = batch.x.shape
        too_large = (
            f"{windows} windows of {context:,} bytes to score do not fit the memory of the device: take a smaller "
            "data.eval_batch_size"
        )
        with said_if_out_of_memory(lambda: too_large):
            self._metric(split).update(self._nats(batch.x, documents=batch.documents), scored)

    def _log_figure(self, split: str) -> None:
        metric = self._metric(split)
        figure = metric.compute()
        self.figures[split] = Figure(float(figure), int(metric.scored))
        self.log(f"{split}/bits_per_byte", figure, prog_bar=True, logger=False)
        metric.reset()

    def _metric(self, split: str) -> BitsPerByte:
        metric = self.metrics[split]
        assert isinstance(metric, BitsPerByte)
        return metric


def derived_seed(*parts: int) -> int:
    """Mix whole numbers into one 63-bit seed; near numbers give unrelated seeds."""
    digest = hashlib.blake2b(",".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
