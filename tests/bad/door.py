"""Bad inputs as rows of a table: what is run, on what, and the sentence that must come; and the one test for a row.

Commands run in this process, by the functions that ``python -m`` calls, from the command line to the job: what would
take over the process is called instead. ``test_real_commands.py`` runs a selection as whole processes.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import logging
import os
import re
import resource
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from src import eval as evaluation
from src import job
from src.jobs import evaluation as scoring
from src.runs import lock
from src.system import signals
from tests.programs import PROGRAMS

# What a refused command may leave where nothing was: locks, what was said, the folders it looked into.
LEFT = re.compile(r"(.*/)?(\.lock|train\.log)|runs|data|data/(enwik8|cifar10|quickstart)")


@dataclass(frozen=True)
class Bad:
    """One bad input.

    Args:
        line: the command without ``python -m src.``, blanks between its words.
        sentence: regular expression for what stands behind ``error: ``, from its beginning.
        prepare: makes the files, in an empty folder that the command then runs in.
        env: environment variables; None removes one.
        around: what holds while the command runs, given the folder.
        left: regular expression for further files that may appear.
    """

    line: str
    sentence: str
    prepare: Callable[[Path], Any] = lambda folder: None
    env: dict[str, str | None] = field(default_factory=dict)
    around: Callable[[Path], AbstractContextManager[Any]] = lambda folder: nullcontext()
    left: str = "nothing else"


def is_refused(bad: Bad, folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> str:
    """Run the command: exit code 2, one sentence and nothing else on stderr, every file as it was. Gives the sentence.

    The working directory of the command is ``folder / "here"``; what is beside it must not change either.
    """
    here = folder / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    bad.prepare(here)
    for name, value in bad.env.items():
        monkeypatch.setenv(name, value) if value is not None else monkeypatch.delenv(name, raising=False)
    before = snapshot(folder)
    program, *arguments = bad.line.split()
    with bad.around(here):
        code, _, err = outcome(program, arguments, monkeypatch, capfd)
    assert "Traceback" not in err
    assert err.startswith("error: ") and err.endswith("\n") and err.count("\n") == 1, err
    assert re.match(bad.sentence, err.removeprefix("error: ")), err
    assert code == 2
    after = snapshot(folder)
    assert {path: after.get(path) for path in before} == before
    new = {path.removeprefix("here/") for path in after.keys() - before.keys()}
    assert {path for path in new if not (LEFT.fullmatch(path) or re.fullmatch(bad.left, path))} == set()
    return err


def outcome(
    program: str, arguments: list[str], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> tuple[int, str, str]:
    """Run a command in this process: exit code, stdout, stderr."""
    monkeypatch.setattr(sys, "argv", [program, *arguments])
    monkeypatch.setattr(signals, "hold", lambda: None)
    monkeypatch.setattr(os, "execv", lambda _, line: sys.exit(job.main(line[3:])))
    monkeypatch.setattr(evaluation, "supervise", lambda line, devices, *_, **__: scoring.main(line[3:]))
    capfd.readouterr()
    code: Any
    try:
        code = PROGRAMS[program]()
    except SystemExit as exit_:
        code = exit_.code
    finally:
        logger = logging.getLogger("src")
        for handler in list(logger.handlers):
            logger.removeHandler(handler)
            handler.close()
        for path in list(lock._held):
            lock.release(path.parent)
    return (code or 0, *capfd.readouterr())


def snapshot(folder: Path) -> dict[str, str]:
    """Everything below a folder, hidden files too: kind and rights, and the SHA-256 of files or the target of links."""
    found = {}
    for path in sorted(folder.rglob("*")):
        status = path.lstat()
        content = ""
        if path.is_symlink():
            content = str(path.readlink())
        elif path.is_file():
            content = hashlib.sha256(path.read_bytes()).hexdigest()
        found[str(path.relative_to(folder))] = f"{stat.filemode(status.st_mode)} {content}"
    return found


@contextlib.contextmanager
def as_anybody(folder: Path) -> Iterator[None]:
    """Without root's right to pass over file permissions, so that tests run by root mean something."""
    if os.geteuid() != 0:
        yield
        return
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # version 3, this thread
    before, less = (ctypes.c_uint32 * 6)(), (ctypes.c_uint32 * 6)()
    assert libc.capget(header, before) == 0
    less[:] = before
    less[0] &= ~(1 << 1 | 1 << 2)  # CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH, of the effective set
    assert libc.capset(header, less) == 0
    try:
        yield
    finally:
        assert libc.capset(header, before) == 0


def full_after(size: int) -> Callable[[Path], AbstractContextManager[None]]:
    """A disk that takes no file larger than ``size`` bytes."""

    @contextlib.contextmanager
    def limited(folder: Path) -> Iterator[None]:
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    return limited


def patched(*changes: tuple[Any, str, Any]) -> Callable[[Path], AbstractContextManager[None]]:
    """With attributes of modules and classes replaced."""

    @contextlib.contextmanager
    def replaced(folder: Path) -> Iterator[None]:
        with pytest.MonkeyPatch.context() as patch:
            for owner, name, value in changes:
                patch.setattr(owner, name, value)
            yield

    return replaced


def file(
    name: str, content: bytes | str | Callable[[], bytes] = b"", mode: int | None = None
) -> Callable[[Path], Path]:
    """Write a file, and its folder; a content that takes time to make is made then."""

    def prepare(folder: Path) -> Path:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        made = content() if callable(content) else content
        path.write_bytes(made.encode() if isinstance(made, str) else made)
        if mode is not None:
            path.chmod(mode)
        return path

    return prepare


def all_of(*steps: Callable[[Path], Any]) -> Callable[[Path], None]:
    """One preparation after the other."""

    def prepare(folder: Path) -> None:
        for step in steps:
            step(folder)

    return prepare
