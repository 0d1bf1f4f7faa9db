"""From a configuration to what trains the network, and the arithmetic of both; the network: ``src.models.build``."""

from __future__ import annotations

from typing import Any, cast

from src.config.checks import attention_pattern
from src.config.schema import Config
from src.models.build import network
from src.optimizers.build import OptimizerSettings
from src.optimizers.schedule import Schedule
from src.training.flops import RunFlops, TrainingFlops, training_flops
from src.training.language_model import LanguageModel
from src.training.strategies import COMPRESSION, ShardedLanguageModel


def language_model(config: Config, max_steps: int) -> LanguageModel:
    """Build the LightningModule around the network."""
    sharded = config.trainer.strategy == "fsdp2"
    built = (ShardedLanguageModel if sharded else LanguageModel)(
        network(config),
        max_steps=max_steps,
        optimizer=optimizer_settings(config),
        short_context=config.optimizer.short_context,
        short_context_steps=config.optimizer.short_context_steps,
        seed=config.seed,
        fused=True,
        cuda_graph=config.model.cuda_graph,
    )
    if isinstance(built, ShardedLanguageModel):
        built.reduce_dtype = COMPRESSION[config.trainer.gradient_compression]
    return built


def optimizer_settings(config: Config) -> OptimizerSettings:
    """What trains the weights, and its schedule."""
    keys = config.optimizer
    return OptimizerSettings(
        name=cast(Any, keys.name),
        learning_rate=keys.learning_rate,
        weight_decay=keys.weight_decay,
        betas=(keys.beta1, keys.beta2),
        eps=keys.eps,
        muon_learning_rate=keys.muon_learning_rate,
        muon_momentum=keys.muon_momentum,
        schedule=Schedule(
            shape=cast(Any, keys.schedule),
            warmup_steps=keys.warmup_steps,
            warmup_share=keys.warmup_share,
            warmup_most=keys.warmup_most,
            decay_share=keys.decay_share,
        ),
    )


def run_flops(config: Config) -> RunFlops:
    """Count the arithmetic of the optimizer steps of a run, over all devices."""
    optimizer = config.optimizer
    if optimizer.short_context_steps == 0:
        return RunFlops(step_flops(config))
    return RunFlops(step_flops(config), step_flops(config, optimizer.short_context), optimizer.short_context_steps)


def step_flops(config: Config, piece: int | None = None) -> TrainingFlops:
    """Count the arithmetic of one optimizer step over all devices; ``piece``: attention stays within so many bytes."""
    model, length = config.model, piece or config.data.context
    return training_flops(
        attention_pattern(config.attention),
        context=length,
        depth=model.depth,
        width=model.width,
        heads=model.heads,
        kv_heads=model.kv_heads,
        half_size_qk=model.half_size_qk,
        half_size_ff=model.half_size_ff,
        sequences=config.data.batch_size * config.data.context // length,
        muon=config.optimizer.name == "muon",
    )
