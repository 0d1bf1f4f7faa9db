"""From a configuration to the network."""

from __future__ import annotations

from typing import Any, cast

import torch

from src.config.checks import attention_pattern
from src.config.schema import Config, ModelConfig
from src.models.options import BlockOptions
from src.models.sparse_transformer import SparseTransformer


def network(config: Config) -> SparseTransformer:
    """Build the network, with weights drawn from ``seed``."""
    model = config.model
    options = BlockOptions(
        norm=cast(Any, model.norm), bias=model.bias, activation=cast(Any, model.activation), qk_norm=model.qk_norm
    )
    torch.manual_seed(config.seed)
    return SparseTransformer(
        pattern=attention_pattern(config.attention),
        context=config.data.context,
        depth=model.depth,
        width=model.width,
        heads=model.heads,
        kv_heads=model.kv_heads,
        half_size_qk=model.half_size_qk,
        half_size_ff=model.half_size_ff,
        dropout=model.dropout,
        positions=cast(Any, model.positions),
        row=model.row,
        position_embeddings=learned_positions(model),
        rotary=model.rotary,
        options=options,
        init_scale=model.init_scale,
        zero_outputs=model.zero_outputs,
        embedding_std=model.embedding_std,
        recompute=cast(Any, model.recompute),
        backend=cast(Any, config.attention.backend),
        block_backend=cast(Any, model.backend),
    )


def learned_positions(model: ModelConfig) -> bool:
    """Say whether the network has position embeddings."""
    return {"always": True, "images": model.positions == "image", "never": False}[model.position_embeddings]
