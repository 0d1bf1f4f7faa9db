"""Patterns by name and options: those of other papers, of users' own classes, and mixes of any."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

from src.attention.custom import Custom, class_of, made
from src.attention.key_sets import KeySet, hashable, require
from src.attention.other_key_sets import READY_MADE
from src.attention.patterns import HeadPattern, Pattern, PatternName

MIX = "mix"
NAMES = (*get_args(PatternName), *READY_MADE, MIX)
"""What a pattern may be called, beside ``package.module:Class``."""


@dataclass(frozen=True)
class Alike(HeadPattern):
    """The same key set in every head of every block.

    Args:
        name: of the pattern.
        keys: what a query sees.
    """

    name: str
    keys: KeySet

    def layer(self, heads: int, block: int = 0) -> tuple[KeySet, ...]:  # noqa: D102
        return (self.keys,) * heads


@dataclass(frozen=True)
class OfClass(HeadPattern):
    """A pattern whose class has ``layer(heads, block)``.

    Args:
        name: ``package.module:Class``.
        options: what the class is made with.
    """

    name: str
    options: tuple[tuple[str, Any], ...]

    @property
    def turns(self) -> int:  # noqa: D102
        return int(getattr(made(self.name, self.options), "turns", 1))

    def layer(self, heads: int, block: int = 0) -> tuple[KeySet, ...]:  # noqa: D102
        found = len(made(self.name, self.options).layer(heads, block))
        require(found == heads, f"{self.name}.layer must give {heads} key sets for {heads} heads, found {found}")
        return tuple(Custom(self.name, self.options, (heads, block, head)) for head in range(heads))


@dataclass(frozen=True)
class Mix(HeadPattern):
    """Patterns in turn, by block and by head.

    Args:
        blocks: for each residual block in turn the patterns that share its heads, in equal parts.
    """

    blocks: tuple[tuple[HeadPattern, ...], ...]
    name: str = MIX

    @property
    def turns(self) -> int:  # noqa: D102
        return len(self.blocks)

    def layer(self, heads: int, block: int = 0) -> tuple[KeySet, ...]:  # noqa: D102
        parts = self.blocks[block % len(self.blocks)]
        count = len(parts)
        require(heads % count == 0, f"heads must be a multiple of the {count} patterns of a block, found {heads}")
        share = heads // count
        return tuple(keys for part in parts for keys in part.layer(share, block // len(self.blocks)))


def chosen(name: str, options: Mapping[str, Any]) -> HeadPattern:
    """Make a pattern of another paper, of a user's class, or a mix.

    Args:
        name: one of ``NAMES`` but the paper's three, or ``package.module:Class``.
        options: what its class takes. Of a mix: ``blocks``, a list of names, or of lists of names that share the heads
            of a block; and for each name that is no pattern without options a table with ``pattern`` and its options.

    Raises:
        ValueError: no such pattern, or options that it does not take.
    """
    if name == MIX:
        return _mix(options)
    if name in get_args(PatternName):
        return _of_the_paper(name, options)
    if name in READY_MADE:
        return Alike(name, _key_set(name, READY_MADE[name], options))
    if ":" not in name:
        raise ValueError(f"pattern must be one of {', '.join(NAMES)} or package.module:Class, found {name!r}")
    settings = hashable(options)
    if hasattr(class_of(name), "layer"):
        made(name, settings)
        return OfClass(name, settings)
    return Alike(name, Custom(name, settings))


def _key_set(name: str, kind: type[KeySet], options: Mapping[str, Any]) -> KeySet:
    fields = {field.name: field for field in dataclasses.fields(kind)}
    if unknown := sorted(set(options) - set(fields)):
        raise ValueError(f"options.{unknown[0]} is not known to {name}; it takes: {', '.join(fields)}")
    missing = [key for key, field in fields.items() if field.default is dataclasses.MISSING and key not in options]
    if missing:
        raise ValueError(f"options.{missing[0]} is missing; {name} takes: {', '.join(fields)}")
    for key, value in options.items():
        require(type(value) is int, f"options.{key} must be an integer, found {value!r}")
    try:
        return kind(**options)
    except ValueError as error:
        raise ValueError(f"options.{error}") from error


def _of_the_paper(name: str, options: Mapping[str, Any]) -> Pattern:
    known = [key for key in inspect.signature(Pattern).parameters if key != "name"]
    if unknown := sorted(set(options) - set(known)):
        raise ValueError(f"options.{unknown[0]} is not known to {name}; it takes: {', '.join(known)}")
    return Pattern(name, **{key: tuple(value) if isinstance(value, list) else value for key, value in options.items()})  # type: ignore[arg-type]


def _mix(options: Mapping[str, Any]) -> Mix:
    blocks = options.get("blocks")
    if not isinstance(blocks, Sequence) or isinstance(blocks, str) or not blocks:
        raise ValueError(f"options.blocks must be a list of names, such as [local,local,local,fixed], found {blocks!r}")
    rows = [list(row) if isinstance(row, list | tuple) else [row] for row in blocks]
    named = {name for row in rows for name in row}
    if unused := sorted(set(options) - {"blocks"} - named):
        raise ValueError(f"options.{unused[0]} is in no block of options.blocks: {', '.join(map(str, blocks))}")
    parts = {name: _part(name, options.get(name, {})) for name in sorted(named)}
    return Mix(tuple(tuple(parts[name] for name in row) for row in rows))


def _part(name: str, given: Any) -> HeadPattern:
    if not isinstance(given, Mapping):
        raise ValueError(f"options.{name} must be a table of options, found {given!r}")
    settings = dict(given)
    pattern = settings.pop("pattern", name)
    require(pattern != MIX, "options.blocks must not hold a mix")
    try:
        return chosen(pattern, settings)
    except ValueError as error:
        raise ValueError(f"options.{name}: {error}") from error
