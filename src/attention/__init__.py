"""Attention: what a query may see (``key_sets``, ``patterns``), and what computes it (``attend``, of ``backends``).

The patterns are plain Python. ``attend`` comes with PyTorch, so it is imported when it is first asked for: checking a
configuration does not wait for PyTorch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from src.attention.key_sets import Column, Dense, Fixed, KeySet, OwnBlock, Strided, Summary, Window
from src.attention.patterns import HeadGroup, HeadPattern, Mode, Pattern, PatternName, head_groups

if TYPE_CHECKING:
    from src.attention.backends import attend

__all__ = [
    "Column", "Dense", "Fixed", "HeadGroup", "HeadPattern", "KeySet", "Mode", "OwnBlock", "Pattern", "PatternName",
    "Strided", "Summary", "Window", "attend", "head_groups",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name == "attend":
        from src.attention.backends import attend

        return attend
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
