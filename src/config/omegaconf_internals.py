"""What is private in OmegaConf and used here, all of it (seen with OmegaConf 2.3)."""

from __future__ import annotations

from typing import Any


def node(cfg: Any, key: str) -> Any:
    """Give the node of a key as it stands: with its type, and unresolved."""
    return cfg._get_node(key)
