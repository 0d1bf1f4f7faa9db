"""Triton's interpreter without most of its work, which is to prepare ``triton.language`` again and again.

Whenever a kernel calls a function (``tl.sum`` is one) the interpreter replaces the operations of ``triton.language`` by
its own, one attribute after the other, although they have been replaced since the kernel began. Once a launch will do
for each module of functions, and takes half the time.
"""

from __future__ import annotations

from typing import Any

from triton.runtime import interpreter


def prepare_once_a_launch() -> None:
    """Make the interpreter of this process so."""
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
