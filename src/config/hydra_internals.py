"""What is private in Hydra and used here, all of it (seen with hydra-core 1.3.2 to 1.3.8).

``get_args_parser`` parses a command line as ``hydra.main`` will; ``BasicSweeper.split_arguments`` makes the jobs of a
sweep out of overrides; ``is_quoted`` tells ``a='1'`` from ``a=1``; ``compose_once`` halves the time of composing.
"""

from __future__ import annotations

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra._internal.hydra import Hydra
from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.types import Override, QuotedString

__all__ = ["BasicSweeper", "compose_once", "get_args_parser", "is_quoted"]


def is_quoted(override: Override) -> bool:
    """Say whether the value stands in quotes on the command line."""
    return isinstance(override._value, QuotedString)


def compose_once() -> None:
    """Let ``hydra.main`` compose one configuration: it makes another to read ``hydra.mode``, which ``-m`` says here."""
    Hydra.get_mode = lambda *_, **__: None  # type: ignore[method-assign]
