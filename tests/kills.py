"""Kills of real training processes at seeded random moments, and what must be true after the run went on.

python -m pytest -s tests/jobs/test_kills.py
"""

from __future__ import annotations

import os
import random
import re
import resource
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from src.checkpoint.shelf import sealed_step
from tests.subprocesses import children, kill_second_rank
from tests.tiny_runs import assert_same_outcome, curve, environment

HOOKS = Path(__file__).parent / "hooks"
MARK = "TEST_PROCESS_FAMILY"  # in the environment of a training process and all that it starts
STEPS = 40
DISTURBED = (
    "data.context=256",
    "data.batch_size=8",
    f"trainer.max_steps={STEPS}",
    "trainer.val_every=8",
    "trainer.checkpoint_every=3",
    "optimizer.short_context=64",
    "optimizer.short_context_steps=20",
)
TWO_DEVICES = ("trainer.devices=2",)
ENOUGH = 120  # seconds that anything may take on a slow machine
TRIES = 5  # a kill that comes when the run is already over is tried again


@dataclass(frozen=True)
class Kill:
    """How one run is ended before its time.

    Args:
        what: a signal, or what else befalls the process (see ``STRIKES``).
        after: optimizer step that must be logged before; 0: as soon as the run directory is there.
        delay: seconds to wait after that.
        moment: what must be seen then: ``any``, ``draft`` (a checkpoint is being written), ``names`` (it is about to
            take its name).
        changes: overrides that do not change what is computed.
    """

    what: str
    after: int
    delay: float = 0.0
    moment: str = "any"
    changes: tuple[str, ...] = ()

    def __str__(self) -> str:
        when = {"any": "", "draft": ", while writing", "names": ", before the rename"}[self.moment]
        return f"{self.what} after step {self.after} + {1000 * self.delay:.0f} ms{when}"


def twenty() -> list[Kill]:
    """The kills of the whole test, the same every time; the second one is in the fast suite."""
    draw = random.Random(2026)
    workers = ("data.workers=2",)

    def kill(what: str, moment: str = "any", changes: tuple[str, ...] = (), after: int | None = None) -> Kill:
        step = draw.randrange(1, STEPS - 8) if after is None else after
        return Kill(what, step, draw.random() * (2.0 if step == 0 else 0.03), moment, changes)

    return [
        kill("SIGKILL", changes=workers),
        kill("SIGKILL", "draft"),
        kill("SIGTERM"),
        kill("SIGKILL"),
        kill("SIGKILL"),
        kill("SIGKILL", changes=workers),
        kill("SIGKILL", changes=("logger.kind=wandb",)),
        kill("SIGKILL", after=0),
        kill("SIGKILL", after=STEPS),
        kill("SIGKILL", "draft", changes=workers),
        kill("SIGKILL", "draft"),
        kill("SIGKILL", "names"),
        kill("SIGKILL", "names", changes=workers),
        kill("SIGTERM", "draft", changes=workers),
        kill("Ctrl-C"),
        kill("Ctrl-C", changes=workers),
        kill("Ctrl-C twice", "draft"),
        kill("node loss", changes=workers),
        kill("a loader process killed", changes=workers),
        kill("out of memory"),
    ]


def of_two_devices() -> list[Kill]:
    """Kills of a job that has a process for each of its devices."""
    draw = random.Random(2027)
    what = ("a rank killed", "SIGKILL", "SIGTERM")
    return [Kill(name, draw.randrange(1, STEPS - 8), draw.random() * 0.03, changes=TWO_DEVICES) for name in what]


def family(mark: str) -> list[int]:
    """Process ids of all that carry the mark."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdecimal() and mark.encode() in (entry / "environ").read_bytes():
                found.append(int(entry.name))
        except OSError:
            continue
    return found


def wait_for(condition: Callable[[], Any], what: str, process: subprocess.Popen[str] | None = None) -> Any:
    """Wait until something is so, and give it; None if ``process`` ends before."""
    deadline = time.monotonic() + ENOUGH
    while time.monotonic() < deadline:
        if found := condition():
            return found
        if process is not None and process.poll() is not None:
            return None
        time.sleep(0.001)
    raise AssertionError(f"waited {ENOUGH} s in vain for {what}")


def ended(process: subprocess.Popen[str], mark: str) -> int:
    """Wait for the end of a process and of all that it started; give its exit code."""
    try:
        code = process.wait(ENOUGH)
        wait_for(lambda: not family(mark), "the end of all processes")
        return code
    finally:
        for pid in family(mark):
            os.kill(pid, signal.SIGKILL)


def logged_step(run: Path) -> int:
    """The last step in metrics.csv; 0 before the first."""
    try:
        lines = (run / "metrics.csv").read_bytes().splitlines()
    except OSError:
        return 0
    first = lines[-1].split(b",")[0] if lines else b""
    return int(first) if first.isdigit() else 0


def _being_written(run: Path) -> bool:
    return any((run / "checkpoints").glob(".*.draft"))


def _two_names(run: Path) -> bool:
    files = list((run / "checkpoints").glob("*.ckpt"))
    return any(path.stat().st_nlink > 1 for path in files if path.exists()) and _being_written(run)


MOMENTS: dict[str, Callable[[Path], bool]] = {"any": lambda run: True, "draft": _being_written, "names": _two_names}


def _loader_process(process: subprocess.Popen[str]) -> int:
    """A loader process: forked, so it has the command line of its parent."""
    lines = {pid: Path(f"/proc/{pid}/cmdline").read_bytes() for pid in children(process.pid)}
    return next(pid for pid, line in lines.items() if b"src.job" in line)


def _interrupt_twice(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGINT)
    time.sleep(1.1)  # sooner it would be the same request
    process.send_signal(signal.SIGINT)


def _starve(process: subprocess.Popen[str]) -> None:
    """Let no more memory be given to the process."""
    resource.prlimit(process.pid, resource.RLIMIT_AS, (1 << 20, 1 << 20))


STRIKES: dict[str, Callable[[subprocess.Popen[str]], None]] = {
    "SIGKILL": lambda process: process.kill(),
    "SIGTERM": lambda process: process.terminate(),
    "Ctrl-C": lambda process: process.send_signal(signal.SIGINT),
    "Ctrl-C twice": _interrupt_twice,
    "node loss": lambda process: os.killpg(process.pid, signal.SIGKILL),
    "a loader process killed": lambda process: os.kill(_loader_process(process), signal.SIGKILL),
    "out of memory": _starve,
    "a rank killed": kill_second_rank,
}


@dataclass
class Fate:
    """What a kill did: the exit code, the step logged before it, and whether something was left behind."""

    run: Path
    code: int
    step: int


def train(folder: Path, *arguments: str, pause: float = 0.0) -> tuple[subprocess.Popen[str], str]:
    """Start ``python -m src.train``; give it and the mark of its family."""
    mark = uuid.uuid4().hex
    env = environment(**{MARK: mark, "TEST_PAUSE_WHILE_WRITING": str(pause), "WANDB_MODE": "offline"})
    env["PYTHONPATH"] = os.pathsep.join((str(HOOKS), env["PYTHONPATH"]))
    line = [sys.executable, "-m", "src.train", *arguments]
    with (folder / "said.txt").open("a") as said:
        process = subprocess.Popen(
            line, cwd=folder, env=env, stdout=said, stderr=said, text=True, start_new_session=True
        )
    return process, mark


def struck(kill: Kill, folder: Path, *arguments: str) -> Fate:
    """Begin a run and end it as ``kill`` says; nothing that it started lives on."""
    for attempt in range(TRIES):
        place = folder / f"try{attempt}"
        place.mkdir()
        process, mark = train(place, *arguments, *kill.changes, pause=0.0 if kill.moment == "any" else 0.3)
        run = wait_for(lambda at=place: next(at.glob("runs/*/config.yaml"), None), "the run directory", process).parent
        wait_for(lambda at=run: logged_step(at) >= kill.after, "the step", process)
        time.sleep(kill.delay)
        wait_for(lambda at=run: MOMENTS[kill.moment](at), "the moment", process)
        step = logged_step(run)
        late = process.poll() is not None
        if not late:
            STRIKES[kill.what](process)
        code = ended(process, mark)
        if not late and code != 0:
            return Fate(run, code, step)
    raise AssertionError(f"{kill} came too late {TRIES} times")


def gone_on(run: Path, *changes: str) -> int:
    """Go on with a run to its end, and give the step it went on from; nothing lives on."""
    before = (run / "train.log").read_text() if (run / "train.log").is_file() else ""
    process, mark = train(run.parents[1], f"resume={run}", *changes)
    code = ended(process, mark)
    said = (run / "train.log").read_text().removeprefix(before)
    assert code == 0, said
    lines = [line for line in said.splitlines() if "going on from step" in line]
    return int(lines[-1].rpartition(" ")[2].replace(",", "")) if lines else 0


def assert_as_unbroken(run: Path, unbroken: Path) -> None:
    """Weights, optimizer and all else that a checkpoint holds to the last bit; every step and validation once."""
    assert_same_outcome(run, unbroken)
    for which in ("last", "best"):
        ours, theirs = (torch.load(at / "checkpoints" / f"{which}.ckpt", weights_only=True) for at in (run, unbroken))
        assert min(of["callbacks"].pop("Figures")["seconds"] for of in (ours, theirs)) > 0  # of the clock
        for name in ("optimizer_states", "lr_schedulers", "callbacks", "loops", "global_step", "metrics_rows"):
            assert differing(ours[name], theirs[name]) == [], name
    rows = curve(run)
    loss = rows[0].index("train/bits_per_byte")
    steps = [int(row[0]) for row in rows[1:] if row[loss]]
    assert steps == list(range(1, STEPS + 1)), f"steps in the curve: {steps}"
    ours, theirs = (checkpoint_names(at) for at in (run, unbroken))
    assert ours == theirs, f"checkpoints {ours} and {theirs}"
    for older in run.glob("checkpoints/last-step-*"):
        step = sealed_step(older)
        assert step is not None and step < STEPS and older.stem == f"last-step-{step:07d}", f"{older.name}: {step}"
    hidden = {path.name for path in run.rglob(".*")}
    assert hidden <= {".lock"}, f"drafts left: {sorted(hidden)}"


def checkpoint_names(run: Path) -> list[str]:
    """Names of its checkpoints. Of which step the one before the last is depends on how long writing takes."""
    return sorted(re.sub(r"^last-step-\d+", "last-step-", path.name) for path in run.glob("checkpoints/*"))


def differing(ours: Any, theirs: Any, at: str = "") -> list[str]:
    """Places where two nested containers are not the same to the last bit."""
    if isinstance(ours, torch.Tensor):
        same = ours.dtype == theirs.dtype and torch.equal(ours, theirs)
        return [] if same else [at]
    if isinstance(ours, dict):
        if ours.keys() != theirs.keys():
            return [f"{at}: {sorted(map(str, ours.keys() ^ theirs.keys()))}"]
        return [place for key in ours for place in differing(ours[key], theirs[key], f"{at}/{key}")]
    if isinstance(ours, list | tuple):
        pairs: Iterator[Any] = enumerate(zip(ours, theirs, strict=True))
        return [place for i, (a, b) in pairs for place in differing(a, b, f"{at}/{i}")]
    return [] if ours == theirs else [f"{at}: {ours} and {theirs}"]
