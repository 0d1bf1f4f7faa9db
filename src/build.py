"""From a configuration to plain objects: the one place that knows both."""

from __future__ import annotations

import netrc
import os
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import wandb
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.loggers import Logger, WandbLogger

from src.callbacks.checkpoints import AtomicCheckpointIO, Checkpoints
from src.callbacks.figures import Figures
from src.callbacks.metrics_csv import MetricsCsv
from src.callbacks.pattern_picture import PatternPicture
from src.callbacks.progress import Progress
from src.callbacks.samples import TextSamples
from src.callbacks.stop_signal import StopSignal
from src.config import Config, attention_pattern
from src.data.base import ByteDataModule
from src.models.language_model import LanguageModel
from src.models.sparse_transformer import SparseTransformer
from src.run import Run

PRECISION = {"bf16": "bf16-mixed", "fp16": "16-mixed", "fp32": "32-true"}
PROMPT_BYTES = 128


def network(config: Config) -> SparseTransformer:
    """Build the network, with weights drawn from ``seed``."""
    model = config.model
    torch.manual_seed(config.seed)
    return SparseTransformer(
        pattern=attention_pattern(config.attention),
        context=config.data.context,
        depth=model.depth,
        width=model.width,
        heads=model.heads,
        half_size_qk=model.half_size_qk,
        half_size_ff=model.half_size_ff,
        dropout=model.dropout,
        positions=cast(Any, model.positions),
        row=model.row,
        recompute=cast(Any, model.recompute),
        backend=cast(Any, config.attention.backend),
    )


def language_model(config: Config, max_steps: int) -> LanguageModel:
    """Build the LightningModule around the network."""
    optimizer = config.optimizer
    return LanguageModel(
        network(config),
        max_steps=max_steps,
        learning_rate=optimizer.learning_rate,
        warmup_steps=optimizer.warmup_steps,
        weight_decay=optimizer.weight_decay,
        betas=(optimizer.beta1, optimizer.beta2),
        eps=optimizer.eps,
        seed=config.seed,
        fused=False if config.precision.name == "fp16" else None,
    )


def data_module(config: Config) -> ByteDataModule:
    """Build the LightningDataModule that ``data`` names."""
    data, data_dir = config.data, Path(config.paths.data_dir)
    portions: dict[str, Any] = {
        "context": data.context,
        "batch_size": data.batch_size,
        "seed": config.seed,
        "micro_batch": data.micro_batch,
        "eval_batch_size": data.eval_batch_size,
        "workers": data.workers,
    }
    if data.name == "enwik8":
        from src.data.enwik8 import Enwik8

        return Enwik8(data_dir, allow_partial=data.allow_partial, **portions)
    if data.name == "bytes":
        from src.data.bytes_file import BytesFile

        return BytesFile(Path(str(data.path)), **portions)
    from src.data.quickstart import Quickstart

    return Quickstart(data_dir, **portions)


def loggers(config: Config, run: Run, after_step: int, facts: dict[str, Any]) -> list[Logger]:
    """Build the loggers; wandb goes offline by itself where nobody is logged in, and never asks."""
    kind = config.logger.kind
    if kind == "none":
        return []
    built: list[Logger] = [MetricsCsv(run.path / "metrics.csv", after_step)]
    if kind == "wandb":
        built.append(_wandb_logger(config, run, facts))
    return built


def _wandb_logger(config: Config, run: Run, facts: dict[str, Any]) -> WandbLogger:
    logger = WandbLogger(
        name=run.path.name,
        save_dir=run.path,
        project=config.logger.project,
        entity=config.logger.entity,
        group=config.logger.group,
        tags=config.logger.tags,
        id=run.wandb_id(),
        resume="allow",
        offline=not wandb_login_known(),
        settings=wandb.Settings(silent=True),
        config={**run.plain_config(), "data_facts": facts},
    )
    logger._wandb_init.pop("anonymous", None)  # Lightning passes it on; wandb warns of it at every start
    return logger


def wandb_login_known() -> bool:
    """Say whether wandb may go online: nothing tells it to stay off, and a key is in the environment or netrc."""
    if os.environ.get("WANDB_MODE", "online") != "online":
        return False
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai").split("://")[-1].split("/")[0]
    try:
        return netrc.netrc(os.environ.get("NETRC")).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False


def callbacks(config: Config, run: Run, data: ByteDataModule) -> list[Callback]:
    """Build what goes along with training."""
    stop = StopSignal()
    step_bytes = config.data.batch_size * config.data.context
    built: list[Callback] = [
        stop,
        Figures(config.trainer.log_every, step_bytes, data.label, data.partial),
        PatternPicture(
            run.path / "pattern.png", attention_pattern(config.attention), config.model.heads, config.data.context
        ),
        Checkpoints(run.checkpoints, config.trainer.checkpoint_every, stop, run.plain_config()),
    ]
    if config.logger.sample_bytes > 0 and config.model.positions == "text":
        beginning = data.splits.val.batch(np.zeros(1, dtype=np.int64))
        prompt = beginning.x[0, : min(PROMPT_BYTES, config.data.context // 2, int(beginning.length))]
        count = min(config.logger.sample_bytes, config.data.context - len(prompt))
        built.append(TextSamples(run.path / "samples", prompt, count, config.seed))
    if config.trainer.early_stopping is not None:
        built.append(EarlyStopping("val/bits_per_byte", patience=config.trainer.early_stopping, mode="min"))
    if config.trainer.progress:
        built.append(Progress(leave=True))
    return built


def trainer(config: Config, run: Run, max_steps: int, accumulate: int, **parts: Any) -> Trainer:
    """Build Lightning's Trainer.

    Args:
        config: the run's configuration.
        run: the run's directory.
        max_steps: optimizer steps of the whole run.
        accumulate: micro-batches of one optimizer step on one device.
        parts: loggers and callbacks, as Trainer takes them.
    """
    settings = config.trainer
    return Trainer(
        accelerator=settings.accelerator,
        devices=settings.devices,
        num_nodes=settings.num_nodes,
        strategy=settings.strategy,
        precision=cast(Any, PRECISION[config.precision.name]),
        max_steps=max_steps,
        max_epochs=-1,
        gradient_clip_val=settings.clip or None,
        accumulate_grad_batches=accumulate,
        val_check_interval=settings.val_every * accumulate,
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        enable_model_summary=False,
        enable_progress_bar=settings.progress,
        log_every_n_steps=1,
        default_root_dir=run.path,
        plugins=[AtomicCheckpointIO()],
        **parts,
    )
