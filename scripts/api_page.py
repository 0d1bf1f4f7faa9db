"""Write docs/api.md from the docstrings of ``src.library``: ``python -m scripts.api_page``."""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from types import FunctionType
from typing import Any, Literal, get_args, get_origin

from src import library
from src.system.atomic_files import written_whole

PAGE = Path(__file__).resolve().parents[1] / "docs" / "api.md"
GROUPS = {
    "Attention": "attend Pattern KeySet Dense Window Column Strided OwnBlock Summary Fixed",
    "The network": "SparseTransformer BlockOptions",
    "Trained runs": "load_model Run UserError",
    "Generation": "generate Draw as_text",
    "Training": "Muon Portions",
}
BEGINNING = """\
# API

Every name of `src.library`, from its docstring. [library.md](library.md) shows them at work. Written by
`python -m scripts.api_page`; change the docstrings, not this page.

B is the batch, N the positions of a sequence, H the heads, D the width of a head's queries and keys, Dv that of its
values.
"""
SECTION = re.compile(r"^(Args|Returns|Yields|Raises|Attributes):\n((?:(?:    .*)?\n)+)", re.M)
WIDEST = 100  # characters of a signature in one line


def page() -> str:
    """Give the whole page."""
    parts = [BEGINNING]
    for title, names in GROUPS.items():
        parts.append(f"## {title}\n")
        parts += [described(name, getattr(library, name)) for name in names.split()]
    return "\n".join(parts)


def described(name: str, thing: Any) -> str:
    """Describe a class or a function: signature, docstring, and what a class defines itself."""
    if isinstance(thing, FunctionType):
        return f"### `{name}`\n\n{called(name, thing)}{markdown(thing)}"
    error = issubclass(thing, Exception)
    text = f"### `{name}`\n\n{'' if error else called(name, thing)}{markdown(thing)}"
    members = [member(name, own, found) for own, found in vars(thing).items() if not own.startswith("_")]
    return "\n".join([text, *filter(None, members)])


def member(owner: str, name: str, found: Any) -> str:
    """Describe a method or a property; nothing where it has no docstring of its own."""
    if isinstance(found, property):
        return f"#### `{owner}.{name}`\n\nA property. {markdown(found)}" if found.__doc__ else ""
    function = found.__func__ if isinstance(found, classmethod | staticmethod) else found
    if not isinstance(function, FunctionType) or not function.__doc__:
        return ""
    return f"#### `{owner}.{name}`\n\n{called(name, getattr(getattr(library, owner), name))}{markdown(function)}"


def called(name: str, thing: Any) -> str:
    """Give the signature as a block of code, and the values of the choices that it names."""
    signature = inspect.signature(thing)
    result = "" if inspect.isclass(thing) else f" -> {_plain(signature.return_annotation)}"
    parameters = list(_parameters(signature))
    line = f"{name}({', '.join(parameters)}){result}"
    if len(line) > WIDEST:
        line = f"{name}(\n" + "".join(f"    {parameter},\n" for parameter in parameters) + f"){result}"
    notes = "".join(f"`{alias}` is {values}.\n\n" for alias, values in _choices(thing, signature))
    return f"```python\n{line}\n```\n\n{notes}"


def markdown(thing: Any) -> str:
    """Turn a docstring into Markdown: its sections become lists."""
    text = inspect.cleandoc(thing.__doc__ or "") + "\n"
    text = SECTION.sub(lambda found: f"**{found[1]}**\n\n{_entries(found[1], found[2])}\n", text)
    return re.sub(r"\n{3,}", "\n\n", text.replace("``", "`")).strip() + "\n"


def _entries(section: str, body: str) -> str:
    body = textwrap.dedent(body).strip()
    if section in ("Returns", "Yields"):
        return body + "\n"
    entries = re.split(r"\n(?! )", body)
    return "".join(f"- {_named(' '.join(entry.split()))}\n" for entry in entries if entry)


def _named(entry: str) -> str:
    name, _, text = entry.partition(": ")
    return f"{', '.join(f'`{part}`' for part in name.split(', '))}: {text}"


def _parameters(signature: inspect.Signature) -> Iterator[str]:
    before = None
    for parameter in signature.parameters.values():
        if parameter.name == "self":
            continue
        if parameter.kind == parameter.KEYWORD_ONLY and before != parameter.kind:
            yield "*"
        before = parameter.kind
        default = "" if parameter.default is parameter.empty else f" = {_quoted(parameter.default)}"
        yield f"{parameter.name}: {_plain(parameter.annotation)}{default}"


def _choices(thing: Any, signature: inspect.Signature) -> Iterator[tuple[str, str]]:
    """Find the names of the signature that stand for a few words, with these."""
    names = dict.fromkeys(_plain(parameter.annotation) for parameter in signature.parameters.values())
    known = vars(inspect.getmodule(thing))
    for alias in names:
        if get_origin(known.get(alias)) is Literal:
            yield alias, ", ".join(f"`{_quoted(value)}`" for value in get_args(known[alias]))


def _quoted(value: Any) -> str:
    return repr(value).replace("'", '"')


def _plain(annotation: Any) -> str:
    return annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)


def main() -> int:
    """Write the page."""
    with written_whole(PAGE) as file:
        file.write(page().encode())
    print(f"written: {PAGE}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
