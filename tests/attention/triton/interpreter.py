"""Triton's interpreter without most of its work: the same results in a fraction of the time.

Whenever a kernel calls a function (``tl.sum`` is one) the interpreter replaces the operations of ``triton.language`` by
its own, one attribute after the other, although they have been replaced since the kernel began: once a launch will do
for each module of functions. It computes whether each sum of integers overflows, by a dozen operations of Triton, and
then asserts nothing, as it does not debug. And it makes the table of NumPy's types, and the shape of each tensor, anew
each time: they are kept here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from triton.language import core
from triton.runtime import interpreter


def hasten() -> None:
    """Make the interpreter of this process so."""
    _prepare_once_a_launch()
    builder = interpreter.interpreter_builder
    assert not builder.options.debug, "overflow is asserted"
    builder.options = dataclasses.replace(builder.options, sanitize_overflow=False)
    interpreter._get_np_dtype = _once_a_type(interpreter._get_np_dtype)
    core.tensor.__init__ = _with_kept_shapes(core.tensor.__init__)


def _prepare_once_a_launch() -> None:
    launch, prepare = interpreter.GridExecutor.__call__, interpreter._patch_lang
    prepared = set[int]()

    def begin(self: Any, *arguments: Any, **options: Any) -> Any:
        prepared.clear()
        return launch(self, *arguments, **options)

    def prepare_once(function: Any) -> Any:
        module = id(function.__globals__)
        if module in prepared:
            return None  # only the launch itself, which comes first, asks for what there is to be put back
        prepared.add(module)
        return prepare(function)

    interpreter.GridExecutor.__call__, interpreter._patch_lang = begin, prepare_once


def _once_a_type(find: Callable[[Any], Any]) -> Callable[[Any], Any]:
    known: dict[str, Any] = {}

    def kept(kind: Any) -> Any:
        if kind.name not in known:
            known[kind.name] = find(kind)
        return known[kind.name]

    return kept


def _with_kept_shapes(init: Callable[..., None]) -> Callable[..., None]:
    known: dict[str, tuple[Any, Any, Any]] = {}

    def kept(self: Any, handle: Any, type: Any) -> None:
        if type.name not in known:
            init(self, handle, type)
            known[type.name] = self.dtype, self.shape, self.numel
        self.handle, self.type = handle, type
        self.dtype, self.shape, self.numel = known[type.name]

    return kept
