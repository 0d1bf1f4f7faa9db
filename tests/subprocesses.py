"""Processes of tests: two that exchange over gloo, those of a job, and whether one is still there."""

import importlib
import os
import pickle
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch.distributed as dist

from tests.tiny_runs import started
from tests.warm import Started


def in_processes(work: Callable[[int], Any], folder: Path, count: int = 2) -> list[Any]:
    """Give what ``work(rank)``, a function of a module, returns in each process, by rank; they meet in ``folder``."""
    words = (work.__module__, work.__qualname__, str(count))
    ranks = [started("tests.subprocesses", *words, str(rank), folder=folder) for rank in range(count)]
    for rank in ranks:
        said, _ = rank.communicate(120)
        assert rank.returncode == 0, said
    return [pickle.loads((folder / f"{rank}.pickle").read_bytes()) for rank in range(count)]


def main(arguments: list[str]) -> int:
    """Be one of the processes of ``in_processes``."""
    module, name, count, rank = arguments
    folder = Path.cwd()
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=int(rank), world_size=int(count))
    found = getattr(importlib.import_module(module), name)(int(rank))
    (folder / f"{rank}.pickle").write_bytes(pickle.dumps(found))
    dist.destroy_process_group()
    return 0


def alive(pid: int) -> bool:
    """Whether a process runs; one that has ended and waits for its parent does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def children(pid: int) -> list[int]:
    """The processes that a process has started, in that order."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def kill_second_rank(process: subprocess.Popen[str] | Started) -> None:
    """Kill rank 1 of a command on several devices."""
    os.kill(children(process.pid)[1], signal.SIGKILL)


def said_without_second_rank(process: subprocess.Popen[str] | Started) -> str:
    """Kill rank 1, see the others end soon, and give all that was said."""
    kill_second_rank(process)
    killed = time.monotonic()
    said = "".join(stream or "" for stream in process.communicate(timeout=60))
    assert time.monotonic() - killed < 20, said
    assert process.returncode == 137, said
    return said
