"""The processes of one job: which one this is, who started it, and starting them all where nobody did.

A job on several devices is several processes, its ranks, one a device. ``torchrun`` and ``srun`` start them
themselves, each as ``python -m src.job RUN_DIR``; otherwise ``supervise`` does. A rank never sees Hydra's command line.
"""

from __future__ import annotations

import functools
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import NoReturn

from src.errors import UserError
from src.system.signals import leave_terminal, stops

log = logging.getLogger(__name__)
GRACE = 15.0  # seconds that ranks have to notice by themselves that one was killed
STOP_GRACE = 120.0  # seconds that ranks may take to save and end after a stop signal
LAUNCHED = "SPARSE_TRANSFORMER_RANKS"  # in the environment of ranks that ``supervise`` started
PARENT = "SPARSE_TRANSFORMER_SWEEP"  # in the environment of jobs that a sweep started
TOLD = 2  # exit code of a mistake that the user has been told
STOPPED = 128  # exit codes from here on: ended by a signal, or after one
# of a rank that was asked to stop
ASKED = tuple(STOPPED + signum for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP))
_GONE = ("closed by peer", "reset by peer", "broken pipe", "socket closed", "remote process exited", "was aborted",
         "timed out waiting", "connection refused")  # fmt: skip


@dataclass(frozen=True)
class Place:
    """One process among those of its job.

    Args:
        launcher: who started the ranks: ``torchrun``, ``srun``, ``supervise``, or ``none`` for a process of its own.
        rank: number over all machines, from 0.
        local_rank: number on this machine, from 0.
        world: ranks in all.
    """

    launcher: str
    rank: int = 0
    local_rank: int = 0
    world: int = 1


def place(environment: Mapping[str, str] = os.environ) -> Place:
    """Read from the environment which rank this process is.

    Raises:
        UserError: a number there is none.
    """

    def number(name: str, otherwise: int = 0) -> int:
        return whole_number(name, environment.get(name, str(otherwise)))

    for launcher, sign in (("supervise", LAUNCHED), ("torchrun", "TORCHELASTIC_RUN_ID")):
        if sign in environment:
            return Place(launcher, number("RANK"), number("LOCAL_RANK"), number("WORLD_SIZE", 1))
    # a batch script has SLURM_NTASKS too; only what srun starts is a step with several tasks
    if "SLURM_STEP_ID" in environment and number("SLURM_NTASKS", 1) > 1 and not _slurm_shell(environment):
        return Place("srun", number("SLURM_PROCID"), number("SLURM_LOCALID"), number("SLURM_NTASKS"))
    return Place("none")


def first_process() -> bool:
    """Say whether this is the first rank of the job: the one that prints, logs and writes."""
    return place().rank == 0


def stands_for_job() -> bool:
    """Say whether this process stands for the whole job: a job's ranks, on all its machines, are one job."""
    here = place()
    return here.launcher != "supervise" and here.rank == 0 and os.environ.get("NODE_RANK", "0") == "0"


def check_ranks(devices: int, num_nodes: int, here: Place | None = None) -> None:
    """Refuse a number of processes that is not that of the configuration.

    Raises:
        UserError: torchrun or srun started another number, or nobody says where the first machine is.
    """
    here = here or place()
    wanted = devices * num_nodes
    if here.launcher != "none" and here.world != wanted:
        raise UserError(
            f"trainer.devices * trainer.num_nodes must be the {here.world} processes that {here.launcher} started, "
            f"found {devices} * {num_nodes}"
        )
    if here.launcher == "srun" and "SLURM_NTASKS_PER_NODE" not in os.environ:
        raise UserError(
            f"srun must be told --ntasks-per-node={devices}: its --ntasks alone says not which GPU is whose"
        )
    if here.launcher == "none" and num_nodes > 1:
        if not {"MASTER_ADDR", "MASTER_PORT", "NODE_RANK"} <= set(os.environ):
            raise UserError(
                f"trainer.num_nodes={num_nodes} needs torchrun or srun, or MASTER_ADDR, MASTER_PORT and NODE_RANK "
                "in the environment of each machine: see docs/training.md"
            )
        _check_meeting_place(num_nodes)


def _check_meeting_place(num_nodes: int) -> None:
    port = whole_number("MASTER_PORT", os.environ["MASTER_PORT"])
    if not 0 < port < 2**16:
        raise UserError(f"MASTER_PORT must be from 1 to 65535, found {port}")
    if (node := whole_number("NODE_RANK", os.environ["NODE_RANK"])) >= num_nodes:
        raise UserError(f"NODE_RANK must be below trainer.num_nodes={num_nodes}, found {node}")
    if node == 0 and (reason := _not_listening(port)):
        raise UserError(
            f"MASTER_PORT={port} cannot be used on this machine ({reason}): take another one, for all machines"
        )


def whole_number(name: str, text: str) -> int:
    """Read a number from the environment.

    Raises:
        UserError: it is something else.
    """
    if not text.isdecimal():
        raise UserError(f"{name} must be a whole number, found {text!r}")
    return int(text)


def end_with_supervisor() -> None:
    """In a rank that ``supervise`` started, or a job of a sweep: end when that is killed."""
    supervisor = os.environ.get(LAUNCHED) or os.environ.get(PARENT)
    if supervisor is not None:
        end_with_parent(int(supervisor))


def end_with_parent(parent: int) -> None:
    """End this process as soon as its parent is killed (Linux alone)."""
    if sys.platform != "linux":
        return
    import ctypes

    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    if os.getppid() != parent:
        os._exit(STOPPED + signal.SIGKILL)  # it went before we asked


def lost_a_rank(error: BaseException) -> bool:
    """Whether an error of a rank is that it cannot reach another one any more (gloo, NCCL and their meeting place)."""
    if place().launcher == "none" or not isinstance(error, RuntimeError):  # Lightning has taken WORLD_SIZE away
        return False
    return any(words in str(error).lower() for words in _GONE)


def end(code: int) -> NoReturn:
    """End this process with an exit code.

    A rank that failed ends at once: Python and NCCL tidy up before they go, and may wait for ranks that wait for us.
    """
    if code and place().launcher != "none":
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


@functools.cache  # once: whoever notices first
def say_lost(run: Path) -> None:
    """Say that another rank is gone, and how to go on."""
    log.error("another rank is gone; go on with:  python -m src.train resume=%s", run)


def supervise(
    command: list[str], devices: int, num_nodes: int, log_file: Path | None = None, grace: float = STOP_GRACE
) -> int:
    """Start this machine's ranks, pass signals on to them, and end them all as soon as one fails.

    Args:
        command: what each rank runs; the environment says which one it is.
        devices: ranks of this machine.
        num_nodes: machines of the job; MASTER_ADDR, MASTER_PORT and NODE_RANK must say where, if more than one.
        log_file: named to the user when a rank fails.
        grace: seconds that the other ranks may take to save and end once they were asked to.

    Returns:
        0, or the exit code of the first rank that failed.
    """
    node = int(os.environ.get("NODE_RANK", "0"))
    shared = _for_all_ranks(devices, num_nodes, node)
    if num_nodes > 1:  # ranks wait for those of the other machines, half an hour at most
        meeting = f"{shared['MASTER_ADDR']}:{shared['MASTER_PORT']}"
        print(f"machine {node + 1} of {num_nodes}: meets the others at {meeting}", flush=True)
    ranks: list[subprocess.Popen[bytes]] = []

    def pass_on(signum: int, frame: FrameType | None) -> None:
        leave_terminal()
        _signal_all(ranks, signum)

    before = {signum: signal.signal(signum, pass_on) for signum in stops()}
    try:
        for local in range(devices):
            own = {**shared, "LOCAL_RANK": str(local), "RANK": str(node * devices + local)}
            # a session of its own: Ctrl-C reaches a rank once, through us, not twice
            ranks.append(subprocess.Popen(command, env=own, start_new_session=True))
        failed = _first_failure(ranks)
        if failed is None:
            return 0
        code = _exit_code(ranks[failed])
        if code not in ASKED:
            if code >= STOPPED:
                _wait_for_all(ranks, GRACE)  # with no signal between: they have something to say
            _signal_all(ranks, signal.SIGTERM)
        _wait_for_all(ranks, grace)
        if code not in (*ASKED, TOLD):
            number = node * devices + failed
            see = f": see {log_file}" if log_file else ""
            print(f"error: rank {number} ended with exit code {code}, so all ranks were stopped{see}",
                  file=sys.stderr, flush=True)  # fmt: skip
        return code
    finally:
        _signal_all(ranks, signal.SIGKILL)
        for rank in ranks:
            rank.wait()
        for signum, handler in before.items():
            signal.signal(signum, handler)


def _for_all_ranks(devices: int, num_nodes: int, node: int) -> dict[str, str]:
    """Environment of every rank on this machine."""
    return {
        **os.environ,
        LAUNCHED: str(os.getpid()),
        "WORLD_SIZE": str(devices * num_nodes),
        "NODE_RANK": str(node),
        "MASTER_ADDR": os.environ.get("MASTER_ADDR", "127.0.0.1"),
        "MASTER_PORT": os.environ.get("MASTER_PORT") or str(_free_port()),
        # as torchrun: ranks that each take every core stand in each other's way
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS") or str(max(1, (os.cpu_count() or 1) // devices)),
    }


def _first_failure(ranks: list[subprocess.Popen[bytes]]) -> int | None:
    """Wait until a rank fails, and give its number; None once all ended well.

    Of several, it is one that a signal killed: the others may have failed for want of it.
    """
    while True:
        codes = [rank.poll() for rank in ranks]
        if failed := [number for number, code in enumerate(codes) if code]:
            return min(failed, key=lambda number: (codes[number] or 0) > 0)
        if all(code == 0 for code in codes):
            return None
        time.sleep(0.1)


def _wait_for_all(ranks: list[subprocess.Popen[bytes]], seconds: float) -> None:
    """Let ranks save, say what they have to and end, for so many seconds at most."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and any(rank.poll() is None for rank in ranks):
        time.sleep(0.1)


def _signal_all(ranks: list[subprocess.Popen[bytes]], signum: int) -> None:
    for rank in ranks:
        if rank.poll() is None:
            rank.send_signal(signum)


def _exit_code(rank: subprocess.Popen[bytes]) -> int:
    return rank.returncode if rank.returncode >= 0 else STOPPED - rank.returncode


def _not_listening(port: int) -> str | None:
    """Say why the first rank could not listen on a port; None where it can."""
    try:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as PyTorch: one that has just ended is free
            probe.bind(("", port))
            probe.listen()
    except OSError as error:
        return error.strerror
    return None


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _slurm_shell(environment: Mapping[str, str]) -> bool:
    return environment.get("SLURM_JOB_NAME") in ("bash", "interactive")
