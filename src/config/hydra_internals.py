"""What is private in Hydra and OmegaConf and used here, all of it (seen with hydra-core 1.3.2 to 1.3.8, OmegaConf 2.3).

``get_args_parser`` parses a command line as ``hydra.main`` will; ``BasicSweeper.split_arguments`` makes the jobs of a
sweep out of overrides; ``node`` gives a key's value without resolving it; ``is_quoted`` tells ``a='1'`` from ``a=1``.
"""

from __future__ import annotations

from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.types import Override, QuotedString

__all__ = ["BasicSweeper", "get_args_parser", "is_quoted", "node"]


def node(cfg: Any, key: str) -> Any:
    """Give the node of a key as it stands: with its type, and unresolved."""
    return cfg._get_node(key)


def is_quoted(override: Override) -> bool:
    """Say whether the value stands in quotes on the command line."""
    return isinstance(override._value, QuotedString)
