"""The process that commands of tests are forked from: see ``tests.warm``, which starts it and tells it what to run."""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import io
import json
import logging
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from src.processes.ranks import end
from src.runs import lock
from src.system.signals import stop_quietly, stops


def main(descriptor: int) -> None:
    """Fork a process for each connection, which says what to run, until the process that started this one is gone."""
    listening, programs = socket.socket(fileno=descriptor), None
    handlers = set[int]()
    while sys.stdin not in (ready := select.select([listening, sys.stdin], [], [])[0]):
        assert ready
        connection, _ = listening.accept()
        if programs is None:
            gc.disable()
            programs = _programs()
            gc.freeze()  # what is there is not looked through again, and so not copied, in each child
            gc.enable()
        task = json.loads(connection.makefile().readline())
        if (name := task["name"]) not in programs:
            programs[name] = _listed(importlib.import_module(name).main)
        handlers -= {pid for pid in handlers if os.waitpid(pid, os.WNOHANG)[0]}
        if (pid := os.fork()) == 0:
            listening.close()
            os._exit(_handle(connection, task, programs[name]))
        handlers.add(pid)
        connection.close()


def _handle(connection: socket.socket, task: dict[str, Any], program: Callable[[], Any]) -> int:
    """Run one command, and answer with its process id and its exit code; it ends when nobody waits for it."""
    child = os.fork()
    if child == 0:
        connection.close()
        os.setsid()
        _print_to(*task.pop("places"))
        name = task.pop("name")
        os._exit(_become(program, name if "." in name else f"src.{name}", **task))
    connection.sendall(f"{child}\n".encode())
    ended = os.pidfd_open(child)
    if ended not in select.select([ended, connection], [], [])[0]:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    with contextlib.suppress(ConnectionError):
        connection.sendall(str(code).encode())
    return 0


def _listed(program: Callable[[list[str]], int]) -> Callable[[], int]:
    return lambda: program(sys.argv[1:])


def _print_to(*places: str) -> None:
    """Read from the first and print to the others; the first terminal becomes that of this process."""
    terminal = places[0] == places[1]
    modes = (os.O_RDONLY, os.O_WRONLY | os.O_APPEND, os.O_WRONLY | os.O_APPEND)
    for number, (place, mode) in enumerate(zip(places, modes, strict=True)):
        opened = os.open(place, os.O_RDWR if terminal else mode)
        os.dup2(opened, number)
        os.close(opened)
    if terminal:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # ignored where the tests run under nohup
    _renew_streams()


def _renew_streams() -> None:
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
            for number in (1, 2) if stdout is not None else ():
                os.dup2(stdout.fileno(), number)
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            _renew_streams()
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
    from src.attention import draw
    from src.config.checks import attention_pattern
    from src.jobs import evaluation as scoring
    from src.jobs import sampling  # noqa: F401
    from src.processes import ranks
    from src.sweep import runner
    from tests.kept import keep, keep_pictures
    from tests.programs import PROGRAMS
    from tests.tiny_runs import TINY, composed

    torch.set_num_threads(1)
    keep()
    tiny = composed(*TINY, "data.path=any")  # what Hydra reads and finds first of all
    keep_pictures()
    pattern, heads = attention_pattern(tiny.attention), tiny.model.heads
    draw.draw_pattern(pattern, heads, tiny.data.context).savefig(io.BytesIO(), format="png")
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

    def program_of(line: list[str]) -> Callable[[list[str]], int] | None:
        if line[:2] != [sys.executable, "-m"]:
            return None
        return importlib.import_module(line[2]).main if line[2].startswith("tests.") else ours.get(line[2])

    def begun(line: list[str], **options: Any) -> Any:
        program = program_of(line)
        return Forked(program, line, **options) if program else subprocess.Popen(line, **options)

    for module in (ranks, runner):
        module.subprocess = SimpleNamespace(**vars(subprocess) | {"Popen": begun})  # type: ignore[assignment]
    return PROGRAMS


if __name__ == "__main__":
    main(int(sys.argv[1]))
    os._exit(0)  # what is left needs no tidying
