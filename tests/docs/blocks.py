"""The blocks of code in a page of docs/, and how they are run: one namespace for each section."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)


class Block(NamedTuple):
    """One block of code.

    Attributes:
        page: the Markdown file.
        line: its first line of code in it, from 1.
        language: what stands behind the fence.
        code: the text.
    """

    page: Path
    line: int
    language: str
    code: str


def sections(page: Path) -> dict[str, list[Block]]:
    """Give the blocks of every section (``## ``) that has any, by the section's title."""
    text = page.read_text()
    found: dict[str, list[Block]] = {}
    for fence in FENCE.finditer(text):
        before = text[: fence.start()]
        title = re.findall(r"^## (.*)$", before, re.M)[-1]
        found.setdefault(title, []).append(Block(page, before.count("\n") + 2, fence[1], fence[2]))
    return found


def run_python(blocks: list[Block], name: str = "docs_section") -> dict[str, object]:
    """Run the Python blocks one after the other in one module, and give its names; errors show lines of the page."""
    module = ModuleType(name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, name, module)  # dataclasses look their module up
        for block in blocks:
            if block.language == "python":
                exec(compile("\n" * (block.line - 1) + block.code, str(block.page), "exec"), vars(module))
    return vars(module)
