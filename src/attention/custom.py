"""Key sets of users: a class with ``sees(i, j)`` anywhere on the Python path, by its name ``package.module:Class``.

    class Local:
        def __init__(self, window: int) -> None:
            self.window = window

        def sees(self, i, j):
            return i - j < self.window

``i`` and ``j`` are integer tensors that broadcast. Keys behind the query are left out, whatever ``sees`` says. The
class may also have

- ``pairs(n)``: the number of kept pairs in closed form;
- ``key_ranges(start, stop)``: see `KeySet`;
- ``layer(heads, block)``: a sequence with an object that has ``sees``, for every head of a residual block.
"""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from src.attention.key_sets import KeySet

Options = tuple[tuple[str, Any], ...]
"""Arguments by name, sorted, lists as tuples: what can be hashed."""


@dataclass(frozen=True)
class Custom(KeySet):
    """The key set that an object of a user's says.

    Args:
        path: of its class, ``package.module:Class``.
        options: the arguments that made it.
        place: of the key set in ``layer(heads, block)``: heads, block and head; None where the object is one itself.
    """

    path: str
    options: Options = ()
    place: tuple[int, int, int] | None = None
    _object: Any = field(init=False, repr=False, compare=False, hash=False)

    def __post_init__(self) -> None:
        found = made(self.path, self.options)
        if self.place is not None:
            heads, block, head = self.place
            found = found.layer(heads, block)[head]
        object.__setattr__(self, "_object", found)
        super().__post_init__()

    def sees(self, i: Any, j: Any) -> Any:  # noqa: D102
        return (j <= i) & self._object.sees(i, j)

    def pairs(self, n: int) -> int:  # noqa: D102
        return int(self._object.pairs(n)) if hasattr(self._object, "pairs") else super().pairs(n)

    def key_ranges(self, start: int, stop: int) -> Sequence[tuple[int, int]]:  # noqa: D102
        if hasattr(self._object, "key_ranges"):
            return list(self._object.key_ranges(start, stop))
        return super().key_ranges(start, stop)

    @property
    def name(self) -> str:
        """The class's name in lower case."""
        return re.sub("(?<!^)([A-Z])", r" \1", type(self._object).__name__).lower()


def class_of(path: str) -> type:
    """Find a class by ``package.module:Class``.

    Raises:
        ValueError: there is none; the sentence begins with what was looked for.
    """
    module, colon, name = path.partition(":")
    if not (colon and module and name):
        raise ValueError(f"pattern {path!r} must be package.module:Class")
    try:
        found = getattr(importlib.import_module(module), name)
    except ImportError as error:
        raise ValueError(
            f"pattern {path!r}: {module} cannot be imported ({error}); is its folder in PYTHONPATH?"
        ) from error
    except AttributeError as error:
        raise ValueError(f"pattern {path!r}: {module} has no {name}") from error
    if not (isinstance(found, type) and (hasattr(found, "sees") or hasattr(found, "layer"))):
        raise ValueError(f"pattern {path!r} must be a class with sees(i, j) or layer(heads, block)")
    return found


@lru_cache(maxsize=1024)
def made(path: str, options: Options) -> Any:
    """Make an object of a user's class.

    Raises:
        ValueError: no such class, or options that it does not take.
    """
    found, given = class_of(path), dict(options)
    try:
        inspect.signature(found).bind(**given)
    except TypeError as error:
        takes = ", ".join(inspect.signature(found).parameters) or "none"
        raise ValueError(f"options of {path} do not fit ({error}); it takes: {takes}") from error
    except ValueError:  # a class without a signature: calling it tells
        pass
    return found(**given)
