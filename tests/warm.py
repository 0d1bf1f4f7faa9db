"""Whole commands in processes of their own, forked from one that has imported everything already.

What a command does is the same; the four seconds of processor time that its imports take are saved, and so they are
for the ranks and the jobs of a sweep that it starts. ``cold_command`` and ``started`` of ``tests.tiny_runs`` start
Python anew instead, as a user does.
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
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TextIO

from src.processes.ranks import end
from src.runs import lock
from src.system.signals import stop_quietly, stops

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
            task = json.loads(line)
            _print_to(*(os.open(place, os.O_WRONLY | os.O_APPEND) for place in task.pop("places")))
            name = task.pop("name")
            os._exit(_become(programs[name], f"src.{name}", **task))
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        print(code, flush=True)


def _print_to(out: int, err: int) -> None:
    """Read nothing, and print to these files."""
    for number, file in enumerate((os.open(os.devnull, os.O_RDONLY), out, err)):
        os.dup2(file, number)
    sys.stdin, sys.stdout, sys.stderr = (os.fdopen(number, mode, closefd=False) for number, mode in enumerate("rww"))


def _become(program: Callable[[], Any], name: str, arguments: list[str], env: dict[str, str], folder: str = ".") -> int:
    """Do what ``python -m NAME`` does; gives the exit code."""
    atexit._clear()  # what imports left to do at the end, such as removing their temporary folders, is not this one's
    os.environ.clear()
    os.environ.update(env)
    os.chdir(folder)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    stop_quietly()
    sys.argv = [name, *arguments]
    sys.orig_argv[:] = [sys.executable, "-m", name, *arguments]
    try:
        code = program() or 0
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


class Forked:
    """A rank, or a job of a sweep: what is asked of ``subprocess.Popen`` for one, without its imports."""

    def __init__(
        self, program: Callable[[list[str]], int], line: list[str], env: dict[str, str], start_new_session: bool,
        stdout: Any = None, **_: Any,
    ) -> None:  # fmt: skip
        assert start_new_session
        sys.stdout.flush()
        sys.stderr.flush()
        self.returncode: int | None = None
        self.pid = os.fork()
        if self.pid == 0:
            os.setsid()
            _print_to(*((1, 2) if stdout is None else [stdout.fileno()] * 2))
            lock._held.clear()  # the locks are the parent's
            for signum in stops():
                signal.signal(signum, signal.SIG_DFL)
            os._exit(_become(lambda: end(program(line[3:])), line[2], line[3:], env))

    def poll(self) -> int | None:
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.returncode = os.waitstatus_to_exitcode(status) if pid else None
        return self.returncode

    def wait(self) -> int:
        while (code := self.poll()) is None:
            time.sleep(0.02)
        return code

    def send_signal(self, signum: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, signum)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def _programs() -> dict[str, Callable[[], Any]]:
    """The commands; what would take the process over, or work for it alone, is called in it instead."""
    import lightning.pytorch  # noqa: F401
    import torch
    import wandb  # noqa: F401

    from src import eval as evaluation
    from src import job
    from src.jobs import evaluation as scoring
    from src.jobs import sampling  # noqa: F401
    from src.processes import ranks
    from src.sweep import runner
    from tests.kept_configs import keep
    from tests.programs import PROGRAMS
    from tests.tiny_runs import TINY, composed

    torch.set_num_threads(1)
    keep()
    composed(*TINY, "data.path=any")  # what Hydra reads and finds first of all
    supervise = evaluation.supervise

    def alone(line: list[str], devices: int, *arguments: Any, **more: Any) -> int:
        return scoring.main(line[3:]) if devices == 1 else supervise(line, devices, *arguments, **more)

    evaluation.supervise = alone

    def job_called(line: list[str]) -> int:
        sys.orig_argv[:], sys.argv = line, line[2:]
        stop_quietly()
        return job.main(line[3:])

    os.execv = lambda _, line: sys.exit(job_called(line))  # type: ignore[assignment,misc]
    ours = {"src.job": job.main, "src.jobs.evaluation": scoring.main}

    def begun(line: list[str], **options: Any) -> Any:
        program = ours.get(line[2]) if line[:2] == [sys.executable, "-m"] else None
        return Forked(program, line, **options) if program else subprocess.Popen(line, **options)

    for module in (ranks, runner):
        module.subprocess = SimpleNamespace(**vars(subprocess) | {"Popen": begun})  # type: ignore[assignment]
    return PROGRAMS


if __name__ == "__main__":
    main()
