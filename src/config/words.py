"""The words of a command line, taken as they are meant.

Hydra reads a value by a grammar of its own: blanks, commas, quotes, brackets and accents have to be quoted for it,
which nobody expects of ``prompt="Hello, world!"``. Here a value of a key that holds text stands for itself wherever
Hydra would read something else. Values that are quoted for Hydra, interpolations and sweeps stay what they are.
"""

from __future__ import annotations

import functools
import re
import shlex
from argparse import ArgumentParser
from collections.abc import Sequence
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException

from src.config.hydra_internals import is_quoted
from src.config.schema import CONF, EvalConfig, SampleConfig, schema_leaves
from src.errors import UserError

WORDS = {
    "int": "an integer",
    "float": "a number",
    "bool": "true or false",
    "str": "text",
    "list[str]": "a list",
}

WITHOUT_EFFECT = {
    "hydra.run.dir": "paths.output_dir says where run directories are made",
    "hydra.sweep.dir": "paths.output_dir says where sweeps are made",
    "hydra.sweep.subdir": "name is the beginning of a run directory's name",
    "hydra.job.name": "name is the beginning of a run directory's name",
    "hydra.job.chdir": "a command works in the folder where it was started",
    "hydra.output_subdir": "a run directory has its config.yaml at its root",
    "hydra.mode": "-m makes a sweep",
}
PLACES = {
    "data.path", "data.document_offsets", "paths.data_dir", "paths.output_dir", "resume", "run", "prompt_file",
    "pictures.file",
}  # fmt: skip
"""Keys of files and folders: ``~`` at the beginning of their value is a home directory, as a shell would have it."""
WITH_EFFECT = ("hydra.launcher", "hydra.sweeper", "hydra.searchpath", "hydra.help", "hydra.hydra_help")


def parted(arguments: Sequence[str], parser: ArgumentParser) -> tuple[list[str], list[str]]:
    """Part keys and options, which keep their values: argparse takes keys in one place alone.

    ``--key=value`` and ``--group=choice``, as wandb's agents write them, are ``key=value`` and ``group=choice``.

    Args:
        arguments: without the program's name.
        parser: Hydra's, which knows which options take a value.
    """
    options = parser._option_string_actions
    keys: list[str] = []
    others: list[str] = []
    rest = list(arguments)
    while rest:
        word = rest.pop(0)
        action = options.get(word.partition("=")[0])
        dashed = word.removeprefix("--")
        key = dashed.partition("=")[0]
        if action is None and word.startswith("--") and (kind_of(key) or key in groups()):
            keys.append(dashed)
        elif not word.startswith("-"):
            keys.append(word)
        else:
            others.append(word)
            takes = action is not None and "=" not in word and action.nargs in (None, "?")
            if takes and rest and (action.nargs is None or rest[0] in (action.choices or ())):  # type: ignore[union-attr]
                others.append(rest.pop(0))
    return keys, others


def as_meant(words: Sequence[str], sweep: bool = False) -> list[str]:
    """Quote what has to be quoted for Hydra.

    Args:
        words: KEY=VALUE and others, as a shell hands them over.
        sweep: commas part several values of a key.

    Raises:
        UserError: a word that cannot be read; the sentence shows how it is written.
    """
    parser = OverridesParser.create()
    return [_as_meant(word, sweep, parser) for word in words]


def quoted(value: object) -> str:
    """Write a value so that Hydra takes it as it is; to Hydra a backslash escapes quotes alone."""
    text = re.sub(r"(\\*)('|$)", lambda found: found[1] * 2 + found[2].replace("'", "\\'"), str(value))
    return f"'{text}'"


def check_hydra_keys(words: Sequence[str]) -> None:
    """Refuse keys of Hydra's own that would be taken without a word and do nothing.

    Raises:
        UserError: such a key, and the one that does it.
    """
    for word in words:
        key = word.partition("=")[0].lstrip("+~")
        if key.startswith("hydra.") and not f"{key}.".startswith(tuple(f"{known}." for known in WITH_EFFECT)):
            raise UserError(f"{key} does nothing here: {WITHOUT_EFFECT.get(key, '--help lists the keys that do')}")


def kind_of(key: str) -> str | None:
    """Give the type of a key in words of Python; None where there is no such key."""
    open_one = next(
        (name for name in leaves() if leaves()[name].startswith("dict") and key.startswith(f"{name}.")), None
    )
    return "Any" if open_one else leaves().get(key)


@functools.cache
def leaves() -> dict[str, str]:
    """Keys of all commands, with their types."""
    return schema_leaves(EvalConfig) | schema_leaves(SampleConfig)


@functools.cache
def groups() -> list[str]:
    """Folders of conf/ that choices are made from; conf/wandb/ holds files of wandb's."""
    return sorted(folder.name for folder in CONF.iterdir() if any(folder.glob("*.yaml")))


def _as_meant(word: str, sweep: bool, parser: OverridesParser) -> str:
    name, equals, value = word.partition("=")
    if name.lstrip("+") in PLACES and (value == "~" or value.startswith("~/")):
        value = str(Path(value).expanduser())
        word = f"{name}={value}"
    if kind_of(name) == "Any":
        name, word = f"++{name}", f"++{word}"  # Hydra adds no key that a table has not, unless it is told to
    kinds = {kind.strip() for kind in (kind_of(name.lstrip("+")) or "").split("|")}
    try:
        read = parser.parse_override(word)
    except HydraException:
        read = None
    if equals and value == "None" and "None" in kinds and "str" not in kinds:
        return f"{name}=null"  # as Python writes it
    if not equals or not kinds <= {"str", "None"}:
        if read is None:
            raise UserError(_unreadable(word, name, value))
        return word
    if read is None:
        if sweep and "," in value:
            raise UserError(_unreadable(word, name, value))
        return f"{name}={_escaped(value)}"
    return word if _is_text(read, value, sweep) else f"{name}={_escaped(value)}"


def _is_text(read: Override, value: str, sweep: bool) -> bool:
    """Say whether Hydra reads what stands there: the text itself, null, or what is meant for its grammar."""
    if read.is_sweep_override():
        return sweep
    found = read.value()
    if found is None or is_quoted(read) or "${" in value or "\\" in value:
        return True
    return isinstance(found, str) and found == value


def _escaped(value: str) -> str:
    """Quote a value in which nothing stands for another key."""
    return quoted(value.replace("${", "\\${"))


def _unreadable(word: str, name: str, value: str) -> str:
    if name == word:
        return f"{word!r} cannot be read as KEY=VALUE: write {word}=VALUE"
    kind = kind_of(name.lstrip("+"))
    if kind is not None and not kind.startswith(("list", "dict", "str", "Any")):
        return f"{name} must be {allowed_words(kind)}, found {value!r}"
    meant = _for_shells(value)
    if kind is not None and kind.startswith("list"):
        meant = f"[{','.join(_for_shells(item.strip()) for item in value.strip('[]').split(','))}]"
    return f"{word!r} cannot be read as KEY=VALUE: write {shlex.quote(f'{name}={meant}')}"


def _for_shells(value: str) -> str:
    """As ``quoted``, with the quotes that need no more quoting in a shell where that can be."""
    return quoted(value) if '"' in value or "\\" in value else f'"{value}"'


def allowed_words(type_name: str) -> str:
    """Say a type of the schema in words."""
    names = [part.strip() for part in type_name.split("|")]
    return " or ".join("null" if name == "None" else WORDS.get(name, name) for name in names)
