"""The Triton backend: exact strided and fixed attention, forward and backward, as PyTorch operators.

Importing this package does not import Triton, so ``problem`` can be asked anywhere.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from src.attention.triton.availability import problem

if TYPE_CHECKING:
    from src.attention.triton.operator import sparse_attention, sparse_attention_packed

__all__ = ["problem", "sparse_attention", "sparse_attention_packed"]


def __getattr__(name: str) -> Any:
    if name in ("sparse_attention", "sparse_attention_packed"):
        from src.attention.triton import operator

        return getattr(operator, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
