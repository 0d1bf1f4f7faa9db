"""The typed schema of conf/, and the checks that a configuration must pass before anything starts.

Values stand in the YAML files alone; this says which type each key has and what it may hold. ``check`` is the one
place that refuses an impossible value, with a sentence that names the key, the value and what is allowed.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast

from hydra.core.config_store import ConfigStore

from src.attention import Pattern
from src.errors import UserError


def _at_least(least: float, below: float | None = None) -> Any:
    return field(metadata={"least": least, "below": below})


def _one_of(*choices: str) -> Any:
    return field(metadata={"choices": choices})


@dataclass(kw_only=True)
class AttentionConfig:
    """conf/attention: what a query may see (sections 4.3 and 5.1) and what computes it."""

    pattern: str = _one_of("dense", "strided", "fixed")
    stride: int = _at_least(1)
    summary: int = _at_least(1)
    mode: str = _one_of("merged", "interleaved", "multihead")
    distinct: bool
    interleave: str
    backend: str = _one_of("auto", "triton", "torch", "reference")


@dataclass(kw_only=True)
class ModelConfig:
    """conf/model: the network (section 5)."""

    depth: int = _at_least(1)
    width: int = _at_least(1)
    heads: int = _at_least(1)
    half_size_qk: bool
    half_size_ff: bool
    dropout: float = _at_least(0, below=1)
    positions: str = _one_of("text", "image")
    row: int = _at_least(1)
    recompute: str = _one_of("none", "light", "block")
    backend: str = _one_of("auto", "fused", "eager")
    cuda_graph: bool


@dataclass(kw_only=True)
class DataConfig:
    """conf/data: what is trained on, and in what portions."""

    name: str = _one_of("enwik8", "bytes", "quickstart", "cifar10", "imagenet64")
    path: str | None
    context: int = _at_least(1)
    batch_size: int = _at_least(1)
    micro_batch: int | None = _at_least(1)
    eval_batch_size: int | None = _at_least(1)
    allow_partial: bool
    workers: int = _at_least(0)


@dataclass(kw_only=True)
class OptimizerConfig:
    """conf/optimizer: AdamW and its schedule (section 6)."""

    learning_rate: float = _at_least(0)
    warmup_steps: int = _at_least(0)
    weight_decay: float = _at_least(0)
    beta1: float = _at_least(0, below=1)
    beta2: float = _at_least(0, below=1)
    eps: float = _at_least(0)


@dataclass(kw_only=True)
class PrecisionConfig:
    """conf/precision: the type of activations and gradients (section 5.6)."""

    name: str = _one_of("bf16", "fp16", "fp32")
    tf32: bool


@dataclass(kw_only=True)
class TrainerConfig:
    """conf/trainer: how long, where, how often."""

    max_steps: int | None = _at_least(1)
    epochs: int = _at_least(1)
    accelerator: str = _one_of("auto", "cpu", "gpu")
    devices: int = _at_least(1)
    num_nodes: int = _at_least(1)
    strategy: str = _one_of("auto", "ddp", "fsdp2")
    gradient_compression: str = _one_of("none", "bf16", "fp16")
    clip: float = _at_least(0)
    val_every: int = _at_least(1)
    checkpoint_every: int | None = _at_least(1)
    checkpoint_minutes: float | None = _at_least(0.001)
    keep: int = _at_least(1)
    log_every: int = _at_least(1)
    early_stopping: int | None = _at_least(1)
    progress: bool
    peak_tflops: float | None = _at_least(0.001)


@dataclass(kw_only=True)
class DebugConfig:
    """conf/debug: what a run leaves about itself beyond its results."""

    trace_after: int | None = _at_least(0)
    trace_steps: int = _at_least(1)


@dataclass(kw_only=True)
class LoggerConfig:
    """conf/logger: where figures go."""

    kind: str = _one_of("wandb", "csv", "none")
    project: str
    entity: str | None
    group: str | None
    tags: list[str]
    sample_bytes: int = _at_least(0)
    sample_pictures: int = _at_least(0)
    sample_seconds: float | None = _at_least(0)
    attention_picture: bool


@dataclass(kw_only=True)
class PathsConfig:
    """Where data sets and run directories are."""

    data_dir: str
    output_dir: str


@dataclass(kw_only=True)
class Config:
    """One run, entirely."""

    name: str
    seed: int = _at_least(0, below=2**31)
    resume: str | None
    paths: PathsConfig
    attention: AttentionConfig
    model: ModelConfig
    data: DataConfig
    optimizer: OptimizerConfig
    precision: PrecisionConfig
    trainer: TrainerConfig
    logger: LoggerConfig
    debug: DebugConfig


@dataclass(kw_only=True)
class EvalConfig(Config):
    """What ``src.eval`` adds: which run, which checkpoint, which part of its data."""

    run: str
    checkpoint: str = _one_of("best", "last")
    split: str = _one_of("validation", "test")


@dataclass(kw_only=True)
class PicturesConfig:
    """The pictures that ``src.sample`` completes."""

    given: float = _at_least(0, below=1)
    split: str = _one_of("validation", "test")
    first: int = _at_least(0)
    file: str | None
    completions: int = _at_least(1)


@dataclass(kw_only=True)
class SampleConfig(Config):
    """What ``src.sample`` adds: which run and checkpoint, what is continued, and how bytes are drawn."""

    run: str
    checkpoint: str = _one_of("best", "last")
    prompt: str | None
    prompt_file: str | None
    length: int | None = _at_least(1)
    batch: int = _at_least(1)
    temperature: float = _at_least(0)
    top_k: int | None = field(metadata={"least": 1, "below": 257})
    top_p: float = _at_least(0)
    pictures: PicturesConfig


ConfigStore.instance().store(name="schema", node=Config)
ConfigStore.instance().store(name="eval_schema", node=EvalConfig)
ConfigStore.instance().store(name="sample_schema", node=SampleConfig)


def check(config: Config) -> None:
    """Refuse a configuration that cannot run.

    Raises:
        UserError: one sentence with the key, the value found and what is allowed.
    """
    _check_fields(config, "")
    _check_pattern(config.attention, config.model.heads)
    _check_model(config.model)
    _check_batches(config)
    if config.precision.name == "fp16" and config.trainer.strategy == "fsdp2":
        raise UserError("precision=fp16 does not go with trainer.strategy=fsdp2: take bf16 or fp32, or strategy ddp")
    _check_picture(config)
    if config.data.name == "bytes" and config.data.path is None:
        raise UserError("data.path must name a file for data=bytes, found null")
    if not (name := config.name) or not set(name) <= _NAME_CHARACTERS or name.startswith(("-", ".")):
        raise UserError(f"name must be made of letters, digits, '.', '_' and '-', found {name!r}")


def check_sample(config: SampleConfig) -> None:
    """Refuse keys of ``src.sample`` that cannot be, beyond what ``check`` sees.

    Raises:
        UserError: one sentence with the key, the value found and what is allowed.
    """
    if not 0 < config.top_p <= 1:
        raise UserError(f"top_p must be above 0 and at most 1, found {config.top_p}")
    if config.prompt is not None and config.prompt_file is not None:
        raise UserError("prompt and prompt_file exclude each other: give one of them")


def attention_pattern(attention: AttentionConfig) -> Pattern:
    """Build the attention pattern.

    Raises:
        UserError: values that make none.
    """
    try:
        return Pattern(
            name=cast(Any, attention.pattern),
            stride=attention.stride,
            summary=attention.summary,
            mode=cast(Any, attention.mode),
            distinct=attention.distinct,
            interleave=interleave_ratio(attention.interleave),
        )
    except ValueError as error:
        raise UserError(f"attention.{error}") from error


def interleave_ratio(text: str) -> tuple[int, int]:
    """Parse ``attention.interleave``, a ratio such as ``1:1``."""
    first, colon, second = text.partition(":")
    if not (colon and first.isdecimal() and second.isdecimal()):
        raise UserError(f"attention.interleave must be a ratio such as 1:1, found {text!r}")
    return int(first), int(second)


def schema_leaves(config: type[Config] = Config) -> dict[str, str]:
    """Give every key that takes a value, with the name of its type: ``{"model.depth": "int", ...}``."""
    leaves: dict[str, str] = {}

    def walk(node: type, prefix: str) -> None:
        for item in dataclasses.fields(node):
            nested = globals().get(str(item.type))
            if nested is not None and dataclasses.is_dataclass(nested):
                walk(nested, f"{prefix}{item.name}.")  # type: ignore[arg-type]
            else:
                leaves[prefix + item.name] = str(item.type)

    walk(config, "")
    return leaves


_NAME_CHARACTERS = set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-")


def _check_fields(node: Any, prefix: str) -> None:
    for item in dataclasses.fields(node):
        key, value = prefix + item.name, getattr(node, item.name)
        if dataclasses.is_dataclass(value):
            _check_fields(value, f"{key}.")
        elif value is not None:
            _check_value(key, value, item.metadata)


def _check_value(key: str, value: Any, allowed: Mapping[str, Any]) -> None:
    choices, least, below = allowed.get("choices"), allowed.get("least"), allowed.get("below")
    if choices is not None and value not in choices:
        raise UserError(f"{key} must be one of {', '.join(choices)}, found {value!r}")
    if least is not None and not value >= least:  # written so that NaN is refused as well
        raise UserError(f"{key} must be at least {least}, found {value}")
    if below is not None and not value < below:
        raise UserError(f"{key} must be below {below}, found {value}")
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"{key} must be finite, found {value}")


def _check_pattern(attention: AttentionConfig, heads: int) -> None:
    pattern = attention_pattern(attention)
    if pattern.name != "dense" and pattern.mode == "multihead" and heads < 2:
        raise UserError(f"model.heads must be at least 2 for attention.mode=multihead, found {heads}")


def _check_model(model: ModelConfig) -> None:
    if model.half_size_qk and model.width % 2:
        raise UserError(f"model.width must be even for model.half_size_qk=true, found {model.width}")
    narrow = model.width // 2 if model.half_size_qk else model.width
    if narrow % model.heads:
        what = "half of model.width" if model.half_size_qk else "model.width"
        raise UserError(f"model.heads must divide {what} ({narrow}), found {model.heads}")


def _check_picture(config: Config) -> None:
    side = PICTURE_SIDES.get(config.data.name)
    if side is None:
        return
    if config.data.context != 3 * side * side:
        raise UserError(
            f"data.context must be {3 * side * side} for data={config.data.name}, found {config.data.context}"
        )
    if config.model.positions == "image" and config.model.row != side:
        raise UserError(f"model.row must be {side} pixels for data={config.data.name}, found {config.model.row}")


def _check_batches(config: Config) -> None:
    data, trainer = config.data, config.trainer
    ranks = trainer.devices * trainer.num_nodes
    if data.batch_size % ranks:
        raise UserError(
            f"data.batch_size must be a multiple of the {ranks} devices (trainer.devices * trainer.num_nodes), "
            f"found {data.batch_size}"
        )
    if data.micro_batch is not None and (data.batch_size // ranks) % data.micro_batch:
        raise UserError(
            f"data.micro_batch must divide the {data.batch_size // ranks} sequences that each device takes a step, "
            f"found {data.micro_batch}"
        )


# Pixels of a row of each picture data set.
PICTURE_SIDES = {"cifar10": 32, "imagenet64": 64}

# What a run may change after it has begun: where and how it computes, never what it computes.
CHANGEABLE = (
    "logger",
    "logger.kind",
    "logger.project",
    "logger.entity",
    "logger.group",
    "logger.tags",
    "logger.sample_bytes",
    "logger.sample_pictures",
    "logger.sample_seconds",
    "logger.attention_picture",
    "attention.backend",
    "model.recompute",
    "model.backend",
    "model.cuda_graph",
    "data.path",
    "data.micro_batch",
    "data.eval_batch_size",
    "data.workers",
    "paths.data_dir",
    "trainer.max_steps",
    "trainer.accelerator",
    "trainer.devices",
    "trainer.num_nodes",
    "trainer.strategy",
    "trainer.val_every",
    "trainer.checkpoint_every",
    "trainer.checkpoint_minutes",
    "trainer.keep",
    "trainer.log_every",
    "trainer.early_stopping",
    "trainer.progress",
    "trainer.peak_tflops",
    "debug",
    "debug.trace_after",
    "debug.trace_steps",
)


def restore(saved: Config, command_line: Config, changed: list[str]) -> Config:
    """Take a run's saved configuration and the changes that the command line makes to it.

    Args:
        saved: from the run's config.yaml.
        command_line: as composed; only the values under ``changed`` are taken from it.
        changed: keys that the command line names.

    Raises:
        UserError: a key that a run cannot change, by name.
    """
    config = copy.deepcopy(saved)
    for key in changed:
        if key not in CHANGEABLE:
            raise UserError(f"{key} cannot be changed for an existing run: allowed are {', '.join(CHANGEABLE)}")
        *path, leaf = key.split(".")
        setattr(_node(config, path), leaf, getattr(_node(command_line, path), leaf))
    return config


def _node(config: Any, path: list[str]) -> Any:
    return functools.reduce(getattr, path, config)
