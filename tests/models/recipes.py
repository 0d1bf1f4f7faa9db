"""What recipes can make of a network, for tests: the modern one, and its parts alone or in other company."""

from __future__ import annotations

from typing import Any

from src.models.options import BlockOptions

MODERN = BlockOptions(norm="rms", bias=False, activation="relu2", qk_norm=1.2)
RECIPES: dict[str, dict[str, Any]] = {
    "modern": {"rotary": 10000.0, "position_embeddings": False, "options": MODERN},
    "modern pictures": {"rotary": 100.0, "positions": "image", "row": 4, "options": MODERN},
    "rotary alone": {"rotary": 10000.0},
    "qk norm alone": {"options": BlockOptions(qk_norm=0.7)},
    "rms with biases": {"options": BlockOptions(norm="rms")},
    "no biases": {"options": BlockOptions(bias=False), "rotary": 50.0, "half_size_qk": True},
    "shared keys": {"kv_heads": 1, "rotary": 10000.0, "options": BlockOptions(qk_norm=0.7)},
    "no positions": {"position_embeddings": False, "options": BlockOptions(activation="relu2")},
}
