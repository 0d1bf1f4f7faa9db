"""Attention: what a query may see (``patterns``), and the backends that compute it behind one door (``attend``).

The patterns are plain Python and stand here; whatever needs PyTorch is imported from its own module, as in
``from src.attention.attend import attend``, so that a configuration is checked without waiting for PyTorch.
"""

from src.attention.patterns import (
    Block,
    Column,
    Dense,
    Fixed,
    HeadGroup,
    KeySet,
    Mode,
    Pattern,
    PatternName,
    Strided,
    Summary,
    Window,
    head_groups,
)

__all__ = [
    "Block",
    "Column",
    "Dense",
    "Fixed",
    "HeadGroup",
    "KeySet",
    "Mode",
    "Pattern",
    "PatternName",
    "Strided",
    "Summary",
    "Window",
    "head_groups",
]
