"""The typed schema of conf/: which type each key has and what it may hold. Values stand in the YAML files alone.

``src/config/checks.py`` refuses impossible values, ``src/config/restore.py`` reads that of an existing run.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

CONF = Path(__file__).resolve().parents[2] / "conf"


def _at_least(least: float, below: float | None = None, most: float | None = None) -> Any:
    return field(metadata={"least": least, "below": below, "most": most})


def _one_of(*choices: str) -> Any:
    return field(metadata={"choices": choices})


@dataclass(kw_only=True)
class AttentionConfig:
    """conf/attention: what a query may see (sections 4.3 and 5.1) and what computes it."""

    pattern: str  # a name of src/attention/chosen.py, or package.module:Class
    options: dict[str, Any]  # of a pattern that is not the paper's
    stride: int = _at_least(1)
    summary: int = _at_least(1)
    mode: str = _one_of("merged", "interleaved", "multihead")
    distinct: bool
    interleave: str
    backend: str = _one_of("auto", "triton", "torch", "flex", "reference")


@dataclass(kw_only=True)
class ModelConfig:
    """conf/model: the network (section 5)."""

    depth: int = _at_least(1)
    width: int = _at_least(1)
    heads: int = _at_least(1)
    kv_heads: int | None = _at_least(1)
    half_size_qk: bool
    half_size_ff: bool
    dropout: float = _at_least(0, below=1)
    positions: str = _one_of("text", "image")
    row: int = _at_least(1)
    position_embeddings: str = _one_of("always", "images", "never")
    rotary: float | None = _at_least(1)
    qk_norm: float | None = _at_least(0.001)
    norm: str = _one_of("layer", "rms")
    bias: bool
    activation: str = _one_of("gelu", "relu2")
    init_scale: float = _at_least(0.001)
    zero_outputs: bool
    embedding_std: float | None = _at_least(0)
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
    documents: str | None
    document_offsets: str | None
    workers: int = _at_least(0)


@dataclass(kw_only=True)
class OptimizerConfig:
    """conf/optimizer: what trains the weights, and its schedule (section 6)."""

    name: str = _one_of("adamw", "muon")
    learning_rate: float = _at_least(0)
    muon_learning_rate: float = _at_least(0)
    muon_momentum: float = _at_least(0, below=1)
    schedule: str = _one_of("cosine", "linear")
    warmup_steps: int | None = _at_least(0)
    warmup_share: float = _at_least(0, most=1)
    warmup_most: int = _at_least(0)
    decay_share: float = _at_least(0, most=1)
    short_context: int = _at_least(1)
    short_context_steps: int = _at_least(0)
    weight_decay: float = _at_least(0)
    beta1: float = _at_least(0, below=1)
    beta2: float = _at_least(0, below=1)
    eps: float = _at_least(1e-30)  # at 0 a weight without a gradient becomes 0 / 0


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
    columns: dict[str, str]
    sample_bytes: int = _at_least(0)
    sample_pictures: int = _at_least(0)
    sample_seconds: float | None = _at_least(0)
    attention_picture: bool


@dataclass(kw_only=True)
class WatchConfig:
    """conf/watch: what is watched while a run trains, and what is done about it."""

    nonfinite: str = _one_of("stop", "skip")
    nonfinite_steps: int = _at_least(1)
    stall_seconds: float | None = _at_least(0.1)


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
    deterministic: bool
    resume: str | None
    paths: PathsConfig
    attention: AttentionConfig
    model: ModelConfig
    data: DataConfig
    optimizer: OptimizerConfig
    precision: PrecisionConfig
    trainer: TrainerConfig
    logger: LoggerConfig
    watch: WatchConfig
    debug: DebugConfig


@dataclass(kw_only=True)
class ScoreConfig:
    """How ``src.eval`` cuts a text into windows: least bytes of context, one number or several."""

    min_context: Any


@dataclass(kw_only=True)
class EvalConfig(Config):
    """What ``src.eval`` adds: which run, which checkpoint, which part of its data."""

    run: str
    checkpoint: str = _one_of("best", "last")
    split: str = _one_of("validation", "test")
    eval: ScoreConfig


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
