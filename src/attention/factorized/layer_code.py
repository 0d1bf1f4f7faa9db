"""A layer as the names of its key sets and their numbers: operators of PyTorch take text and numbers, not objects."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from functools import cache

from src.attention.key_sets import KeySet


def write_layer(layer: tuple[KeySet, ...]) -> tuple[str, list[int]]:
    """Write a layer, such as ("Fixed Window", [128, 32, 0, 128]).

    torch.compile traces this, and may take a number that differs from layer to layer for a symbol: numbers stay apart
    from the text.
    """
    names: list[str] = []
    numbers: list[int] = []
    for keys in layer:
        names.append(type(keys).__name__)
        numbers.extend(getattr(keys, field.name) for field in fields(keys))
    return " ".join(names), numbers


def read_layer(names: str, numbers: list[int]) -> tuple[KeySet, ...]:
    """Read what `write_layer` wrote."""
    return _read(names, tuple(numbers))


@cache
def _read(names: str, numbers: tuple[int, ...]) -> tuple[KeySet, ...]:
    kinds = {kind.__name__: kind for kind in _below(KeySet)}  # type: ignore[type-abstract]
    rest = iter(numbers)
    heads = (kinds[name] for name in names.split(" "))
    return tuple(kind(*(next(rest) for _ in fields(kind))) for kind in heads)


def _below(kind: type[KeySet]) -> Iterator[type[KeySet]]:
    for child in kind.__subclasses__():
        yield child
        yield from _below(child)
