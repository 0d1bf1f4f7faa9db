"""Whole commands in processes of their own, forked from one that has imported everything already.

What a command does is the same; the four seconds of processor time that its imports take are saved. ``cold_command`` of
``tests.tiny_runs`` starts Python anew instead, as a user does.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import logging
import os
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

SECONDS = 240


class Warm:
    """The process that commands are forked from; one for each process of the tests."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[str] | None = None

    def command(
        self, name: str, arguments: tuple[str, ...], folder: Path, env: dict[str, str]
    ) -> subprocess.CompletedProcess[str]:
        """Run ``python -m src.NAME`` in a folder to its end."""
        process = self._started(env)
        assert process.stdin is not None and process.stdout is not None
        with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
            places = [f"/proc/{os.getpid()}/fd/{file.fileno()}" for file in (out, err)]
            task = {"name": name, "arguments": arguments, "folder": str(folder), "env": env, "places": places}
            process.stdin.write(json.dumps(task) + "\n")
            process.stdin.flush()
            if not select.select([process.stdout], [], [], SECONDS)[0]:
                _end(process)
                raise subprocess.TimeoutExpired(f"src.{name} {' '.join(arguments)}", SECONDS)
            code = int(process.stdout.readline())
            said = [_read(file) for file in (out, err)]
        return subprocess.CompletedProcess([f"src.{name}", *arguments], code, *said)

    def _started(self, env: dict[str, str]) -> subprocess.Popen[str]:
        if self.process is None or self.process.poll() is not None:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.warm"], env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                start_new_session=True,
            )  # fmt: skip
            atexit.register(_end, self.process)
        return self.process


def _end(process: subprocess.Popen[str]) -> None:
    """End it and the command that it waits for."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def _read(file: TextIO) -> str:
    file.seek(0)
    return file.read()


def main() -> None:
    """Import, then fork a process for each line that says what to run, and answer with its exit code."""
    programs = _programs()
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            os._exit(_become(programs, **json.loads(line)))
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        print(code, flush=True)


def _become(
    programs: dict[str, Callable[[], Any]], name: str, arguments: list[str], folder: str, env: dict[str, str],
    places: list[str],
) -> int:  # fmt: skip
    atexit._clear()  # what imports left to do at the end, such as removing their temporary folders, is not this one's
    os.environ.clear()
    os.environ.update(env)
    os.chdir(folder)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for number, place in enumerate(places, start=1):
        os.dup2(os.open(place, os.O_WRONLY | os.O_APPEND), number)
    sys.stdin, sys.stdout, sys.stderr = open(0), open(1, "w"), open(2, "w")  # noqa: SIM115
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.argv = [f"src.{name}", *arguments]
    sys.orig_argv[:] = [sys.executable, "-m", f"src.{name}", *arguments]
    try:
        code = programs[name]() or 0
    except SystemExit as exit_:
        code = exit_.code if isinstance(exit_.code, int) else int(exit_.code is not None)
    except BaseException:
        sys.excepthook(*sys.exc_info())  # type: ignore[arg-type]
        code = 1
    logging.shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    return int(code)


def _programs() -> dict[str, Callable[[], Any]]:
    """The commands; what would take the process over, or work for it alone, is called in it instead."""
    import lightning.pytorch  # noqa: F401
    import torch
    import wandb  # noqa: F401

    from src import eval as evaluation
    from src import job
    from src.jobs import evaluation as scoring
    from src.jobs import sampling  # noqa: F401
    from tests.programs import PROGRAMS

    torch.set_num_threads(1)
    supervise = evaluation.supervise

    def alone(line: list[str], devices: int, *arguments: Any, **more: Any) -> int:
        return scoring.main(line[3:]) if devices == 1 else supervise(line, devices, *arguments, **more)

    evaluation.supervise = alone

    def job_called(line: list[str]) -> int:
        sys.orig_argv[:], sys.argv = line, line[2:]
        return job.main(line[3:])

    os.execv = lambda _, line: sys.exit(job_called(line))  # type: ignore[assignment,misc]
    return PROGRAMS


if __name__ == "__main__":
    main()
