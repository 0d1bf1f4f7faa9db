"""Whole commands in processes of their own, forked from one that has imported everything already.

What a command does is the same; the four seconds of processor time that its imports take are saved, and so they are
for the ranks and the jobs of a sweep that it starts. ``cold_command`` and ``cold_started`` of ``tests.tiny_runs``
start Python anew instead, as a user does. All processes of the tests share one server, ``tests.warm_server``.
"""

from __future__ import annotations

import contextlib
import json
import os
import pty
import signal
import socket
import subprocess
import sys
import tempfile
import uuid
from pathlib import Path
from typing import IO, Any

SECONDS = 240
SERVER = "TEST_WARM_SERVER"  # in the environment of all processes of the tests: where the server listens


class Started:
    """A command that runs: what is asked of ``subprocess.Popen`` for one.

    Args:
        connection: to the server, which has been told what to start.
        line: what is run, for messages.
        stdout: the file that it prints to.
        stderr: the file for its errors, None where they go to the same.
    """

    def __init__(self, connection: socket.socket, line: str, stdout: IO[str], stderr: IO[str] | None = None) -> None:
        self.args = line
        self.stdout = stdout
        self.stderr = stderr
        self.returncode: int | None = None
        self._connection = connection
        self._answers = connection.makefile()
        self.pid = int(self._answers.readline())

    def poll(self) -> int | None:
        """Give the exit code, None while it runs."""
        with contextlib.suppress(TimeoutError):
            self._end(0.001)
        return self.returncode

    def wait(self, timeout: float = SECONDS) -> int:
        """Wait for the exit code."""
        try:
            return self._end(timeout)
        except TimeoutError as error:
            self._kill_all()
            raise subprocess.TimeoutExpired(self.args, timeout) from error

    def communicate(self, timeout: float = SECONDS) -> tuple[str, str | None]:
        """Wait for its end; gives what it printed, and its errors where they are apart."""
        self.wait(timeout)
        return self.stdout.read(), self.stderr and self.stderr.read()

    def send_signal(self, signum: int) -> None:
        """Send a signal, if it runs."""
        if self.poll() is None:
            os.kill(self.pid, signum)

    def terminate(self) -> None:
        """Send SIGTERM."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Send SIGKILL."""
        self.send_signal(signal.SIGKILL)

    def _end(self, seconds: float) -> int:
        if self.returncode is None:
            self._connection.settimeout(seconds)
            if not (answer := self._connection.recv(20)):
                raise RuntimeError(f"the server of warm commands is gone, and {self.args} with it")
            self.returncode = int(answer)
        return self.returncode

    def _kill_all(self) -> None:
        """It and what it started, but for what has a session of its own and watches over its parent."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)


def command(
    name: str, arguments: tuple[str, ...], folder: Path, env: dict[str, str]
) -> subprocess.CompletedProcess[str]:
    """Run ``python -m src.NAME``, or another program of ``tests.programs``, in a folder to its end."""
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        process = _begun(_task(name, arguments, folder, env, _files(out, err)), out, err)
        said = process.communicate()
        assert process.returncode is not None
        return subprocess.CompletedProcess([process.args], process.returncode, said[0], said[1] or "")


def started(name: str, arguments: tuple[str, ...], folder: Path, env: dict[str, str]) -> Started:
    """Begin it, and return at once; its errors go where what it prints goes."""
    said = tempfile.TemporaryFile("w+")  # noqa: SIM115
    return _begun(_task(name, arguments, folder, env, _files(said, said)), said)


def in_terminal(name: str, arguments: tuple[str, ...], folder: Path, env: dict[str, str]) -> tuple[Started, int]:
    """Begin it in a terminal of its own, and return at once; gives the other end of the terminal too."""
    ours, its = pty.openpty()
    with os.fdopen(its, "w") as terminal:
        return _begun(_task(name, arguments, folder, env, [os.ttyname(its)] * 3), terminal), ours


def _files(out: IO[str], err: IO[str]) -> list[str]:
    return [os.devnull, *(f"/proc/{os.getpid()}/fd/{file.fileno()}" for file in (out, err))]


def _task(
    name: str, arguments: tuple[str, ...], folder: Path, env: dict[str, str], places: list[str]
) -> dict[str, Any]:
    assert name.replace(".", "").isidentifier(), f"no program is called {name}"
    return {"name": name, "arguments": arguments, "folder": str(folder), "env": env, "places": places}


def _begun(task: dict[str, Any], out: IO[str], err: IO[str] | None = None) -> Started:
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.connect("\0" + os.environ[SERVER])
    except (KeyError, ConnectionError):
        connection.connect("\0" + serve())
    connection.sendall((json.dumps(task) + "\n").encode())
    return Started(connection, f"{task['name']} {' '.join(task['arguments'])}", out, err)


def serve() -> str:
    """Start the server, which ends with this process; gives where it listens. It imports when it is first asked."""
    place = os.environ[SERVER] = f"sparse-transformer-tests-{uuid.uuid4().hex}"
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("\0" + place)
        listening.listen(16)
        root = Path(__file__).parents[1]
        env = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, (str(root), os.environ.get("PYTHONPATH"))))}
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.warm_server", str(listening.fileno())], env=env, cwd=root,
            stdin=subprocess.PIPE, start_new_session=True, pass_fds=[listening.fileno()],
        )  # fmt: skip
    _servers.append(process)
    return place


_servers: list[subprocess.Popen[bytes]] = []  # each reads until this process is gone
