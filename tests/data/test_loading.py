"""Processes that read for a loader: one that is lost ends the run in a sentence, and none outlives its reader."""

import errno
import functools
import multiprocessing
import os
import re
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

import pytest
from torch.utils.data import DataLoader, Dataset

from src.data.loading import loader
from src.data.waiting import Waits
from src.errors import UserError, of_the_machine
from tests.subprocesses import alive


class Read(Dataset[Any]):
    """Four items, each what ``read`` gives for its number."""

    def __init__(self, read: Callable[[int], Any]) -> None:
        self.read = read

    def __len__(self) -> int:
        return 4

    def __getitem__(self, number: int) -> Any:
        return self.read(number)


def loaded(read: Callable[[int], Any]) -> DataLoader[Any]:
    return loader("training", Waits(), Read(read), [[number] for number in range(4)], workers=2)  # type: ignore[arg-type]


def killed(number: int) -> int:
    if number == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def ended(number: int) -> int:
    if number == 3:
        os._exit(3)
    return number


@pytest.mark.parametrize("fault", [killed, ended])
def test_a_lost_process_is_told_in_a_sentence(fault):
    with pytest.raises(RuntimeError) as lost:
        list(loaded(fault))
    sentence = r"a process that reads data is gone \(.*\): where memory is short take fewer data\.workers"
    assert re.fullmatch(sentence, str(of_the_machine(lost.value)))


def closed(number: int) -> int:
    for signum in (signal.SIGINT, signal.SIGHUP):
        os.kill(os.getpid(), signum)
    return number


def test_ctrl_c_and_a_closed_terminal_do_not_end_what_reads():
    """They reach all processes of a command; the one that trains still reads the rest of its step."""
    assert list(loaded(closed)) == [[0], [1], [2], [3]]


def test_an_error_of_reading_stays_what_it_is():
    def refused(number: int) -> None:
        raise PermissionError(errno.EACCES, "refused", "the file")

    with pytest.raises(PermissionError, match="the file"):
        list(loaded(refused))


def test_a_users_mistake_comes_as_its_sentence_alone():
    def refused(number: int) -> None:
        raise UserError("the file must stay as it is")

    with pytest.raises(UserError, match=r"^the file must stay as it is$"):
        list(loaded(refused))


def test_too_few_files_are_told_in_a_sentence():
    for error in (RuntimeError("Too many open files. Communication with the workers"), OSError(errno.EMFILE, "many")):
        assert "allow more (ulimit -n 1024), or take data.workers=0" in str(of_the_machine(error))


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel of Linux ends them")
@pytest.mark.parametrize("begun", [True, False])
def test_processes_end_with_a_reader_that_is_killed(begun):
    """At once: they hold its connections to other ranks open, who shall hear that it is gone."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()

    def read_and_be_killed() -> None:
        reading = loaded(lambda number: number)
        if not begun:
            reading.worker_init_fn = functools.partial(begin_without, os.getpid(), reading.worker_init_fn)
        batches = DataLoader.__iter__(reading)
        if begun:
            assert [next(batches), next(batches)] == [[0], [1]]  # one of each process
        theirs.send([process.pid for process in multiprocessing.active_children()])
        os.kill(os.getpid(), signal.SIGKILL)

    reader = context.Process(target=read_and_be_killed)
    reader.start()
    assert ours.poll(30)
    pids = ours.recv()
    reader.join()
    deadline = time.monotonic() + 2  # by themselves they look every 5 seconds
    while any(alive(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.01)
    left = [pid for pid in pids if alive(pid)]
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert len(pids) == 2 and not left


def begin_without(reader: int, begin: Callable[[int], None], number: int) -> None:
    """Begin a process when its reader is gone already."""
    while os.getppid() == reader:
        time.sleep(0.001)
    begin(number)
