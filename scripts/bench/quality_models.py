"""What ``scripts.bench.quality`` trains: a model of ours or one of x-transformers, step by step."""

from __future__ import annotations

import gc
from contextlib import AbstractContextManager
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from scripts.bench.quality_rows import PEER
from src.config.schema import Config
from src.errors import UserError
from src.training.build_model import language_model, optimizer_settings
from src.training.language_model import Batch, LanguageModel

START = 256  # what the peer sees before the first byte


class Model:
    """What is trained, made anew for every run; code that was compiled stays.

    Args:
        device: where it is trained.
    """

    network: nn.Module
    optimizer: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LRScheduler

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.clip = 0.0
        self.half = False

    def begin(self, config: Config, steps: int) -> None:
        """Draw weights, and lay the schedule over ``steps``."""
        self.clip, self.half = config.trainer.clip, config.precision.name == "bf16"
        self.make(config, steps)

    def make(self, config: Config, steps: int) -> None:
        """Make network, optimizer and schedule."""
        raise NotImplementedError

    def at(self, step: int) -> None:
        """Prepare for optimizer step ``step``."""

    def loss(self, x: Tensor) -> Tensor:
        """Mean -ln p of bytes (B, N), in training."""
        raise NotImplementedError

    def nats(self, x: Tensor) -> Tensor:
        """-ln p of each byte, float32 (B, N)."""
        raise NotImplementedError

    def autocast(self) -> AbstractContextManager[Any]:
        """Compute in bf16 where that is configured."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.half, cache_enabled=False)

    def ready(self, x: Tensor) -> None:
        """Compile what is not yet compiled, and capture CUDA graphs; weights stay as they are."""
        self.at(0)
        with self.autocast():
            self.loss(x)
        synchronize(self.device)
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()

    def peak_gib(self) -> float | None:
        """Peak memory since ``ready``; None on a CPU."""
        return round(torch.cuda.max_memory_allocated() / 2**30, 2) if self.device.type == "cuda" else None

    def step(self, number: int, x: Tensor) -> None:
        """One optimizer step."""
        self.at(number)
        with self.autocast():
            loss = self.loss(x)
        loss.backward()
        if self.clip:
            torch.nn.utils.clip_grad_norm_(list(self.network.parameters()), self.clip)
        self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad(set_to_none=True)


class Ours(Model):
    """A model as ``src.train`` builds it, steps as CUDA graphs where it does so."""

    network: LanguageModel

    def make(self, config: Config, steps: int) -> None:
        """Build the LightningModule; the one before goes first."""
        for part in ("network", "optimizer", "schedule"):
            vars(self).pop(part, None)
        free(self.device)
        self.network = language_model(config, steps).to(self.device).train()
        made = self.network.configure_optimizers()
        self.optimizer, self.schedule = made["optimizer"], made["lr_scheduler"]["scheduler"]

    def at(self, step: int) -> None:
        """Set how far attention sees."""
        self.network.set_piece(step)

    def loss(self, x: Tensor) -> Tensor:
        """The loss of a training step."""
        loss = self.network.training_step(Batch(x, torch.full(x.shape[:1], x.shape[1])), 0)
        self.network.step_losses.clear()
        self.network.step_bytes.clear()
        return loss

    def nats(self, x: Tensor) -> Tensor:
        """As its own evaluation has it."""
        return self.network._nats(x)


class Peer(Model):
    """A decoder of x-transformers, compiled whole with its loss, replayed as CUDA graphs, trained by AdamW under our
    schedule.

    Raises:
        UserError: the package is missing.
    """

    def make(self, config: Config, steps: int) -> None:
        """Draw weights into the module that is compiled, for another module would be compiled anew."""
        torch.manual_seed(config.seed)
        drawn = decoder(config)
        if not hasattr(self, "network"):
            torch._dynamo.reset()
            self.network = decoder(config).to(self.device)
            self.network.compile(dynamic=False, mode="reduce-overhead")
        self.network.load_state_dict(drawn.state_dict())
        self.network.train()
        settings = optimizer_settings(config)
        self.optimizer = settings.optimizer(self.network, fused=True)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer, lambda step: settings.schedule.factor(step, max_steps=steps)
        )

    def loss(self, x: Tensor) -> Tensor:
        """Mean over all bytes."""
        return self.network(x).mean()

    def nats(self, x: Tensor) -> Tensor:
        """By the same forward pass; a replay of its graph writes to the same place again."""
        return self.network(x).clone()


def decoder(config: Config) -> nn.Module:
    """Build x-transformers' decoder of a configuration's size, as a function from bytes (B, N) to -ln p of each."""
    try:
        from x_transformers import Decoder, TransformerWrapper  # type: ignore[import-not-found]
    except ImportError as error:
        raise UserError(f"{PEER} is not installed ({error}): pip install {PEER}") from error
    model = config.model
    layers = Decoder(
        dim=model.width, depth=model.depth, heads=model.heads, attn_dim_head=model.width // model.heads,
        attn_flash=True, rotary_pos_emb=True, ff_mult=2 if model.half_size_ff else 4,
        attn_dropout=model.dropout, ff_dropout=model.dropout,
    )  # fmt: skip
    wrapper = TransformerWrapper(
        num_tokens=START + 1, logits_dim=256, max_seq_len=config.data.context, use_abs_pos_emb=False,
        attn_layers=layers,
    )  # fmt: skip
    return Shifted(wrapper)


class Shifted(nn.Module):
    """Every byte from those before it, the first from ``START``."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        """-ln p of each byte, float32 (B, N)."""
        before = F.pad(x[:, :-1].long(), (1, 0), value=START)
        logits = self.model(before).float()
        return F.cross_entropy(logits.flatten(0, 1), x.flatten().long(), reduction="none").view(x.shape)


def synchronize(device: torch.device) -> None:
    """Wait for what a GPU has still to do."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def free(device: torch.device) -> None:
    """Give back the memory of what is gone."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
