"""How ``scripts.bench.quality`` deals rows over the GPUs of a machine: a process each, and one file of results."""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import math
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from scripts.bench.quality_rows import Result, identity, newest
from src.errors import UserError
from src.reporting.tables import duration
from src.sweep.runner import TIME_UP
from src.system.atomic_files import written_whole
from src.system.gpus import gpu_count

OVERHEAD = 120.0  # seconds of a row beside its training, until one has told: start, compilation, scoring
STARTED = 20.0  # of them, until its process can begin
FAILED = 1  # exit code


def read(file: Path) -> list[Result]:
    """Read the results of a run.

    Raises:
        UserError: the file is missing or another.
    """
    try:
        found = json.loads(file.read_text())["results"]
        [(*identity(one), one["kind"], one["name"], one["minutes"]) for one in found]
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{file} must be a file that --output-json wrote, found something else") from error
    return list(found)


class Child:
    """A process of ``scripts.bench.quality_run`` on a device; ``device`` is a GPU's place, None where there is none."""

    def __init__(self, device: int | None) -> None:
        env = dict(os.environ)
        if device is not None:
            shown = env.get("CUDA_VISIBLE_DEVICES")
            env["CUDA_VISIBLE_DEVICES"] = shown.split(",")[device] if shown else str(device)
        line = [sys.executable, "-m", "scripts.bench.quality_run", str(os.getpid())]
        self.process = subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env)

    def answer(self, job: Result, say: Callable[[str], None]) -> Result:
        """Let a row be trained; ``say`` is told how it goes. A process that dies is a failed row."""
        assert self.process.stdin is not None and self.process.stdout is not None
        try:
            print(json.dumps(job), file=self.process.stdin, flush=True)
            for message in map(json.loads, self.process.stdout):
                if "result" in message:
                    return dict(message["result"])
                say(message["said"])
        except BrokenPipeError:
            pass
        return {**job, "error": f"its process ended with exit code {self.process.wait()}"}

    def close(self) -> None:
        """Let it end: no job is to come."""
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        self.process.wait()

    def kill(self) -> None:
        """End it at once."""
        self.process.kill()


class Bench:
    """Rows that wait for a device, those that take longest first.

    Args:
        jobs: what is asked for; what the file of results has already is left out.
        wanted: the command line.
        command: it as text.
        began: when it was given, in seconds of the monotonic clock.
    """

    def __init__(self, jobs: Sequence[Result], wanted: argparse.Namespace, command: str, began: float) -> None:
        self.file: Path = wanted.output_json
        self.results = read(self.file) if self.file.exists() else []
        done = {identity(one) for one in self.results if "val" in one}
        self.command, self.began, self.overhead = command, began, OVERHEAD
        self.deadline = math.inf if wanted.deadline is None else wanted.deadline
        self.waiting = sorted((job for job in jobs if identity(job) not in done), key=self.estimate, reverse=True)
        self.skipped = [job["name"] for job in jobs if identity(job) in done]
        self.total, self.slots = len(self.waiting), devices(wanted.gpus)
        self.ends: dict[tuple[str, ...], float] = {}
        self.late: list[Result] = []
        self.failed: list[Result] = []
        self.errors: list[Exception] = []
        self.children: list[Child] = []
        self.lock, self.stopped = threading.RLock(), False

    def estimate(self, job: Result) -> float:
        """Give the seconds that a row takes, all in all."""
        return 60 * job["minutes"] * (1 + len(job["rates"]) * (job["rate_share"] or 0)) + self.overhead

    def run(self) -> int:
        """Do what waits; the exit code."""
        if self.skipped:
            print(f"done before, in {self.file}: {'; '.join(self.skipped)}", flush=True)
        threads = [threading.Thread(target=self.serve, args=(slot,), daemon=True) for slot in self.slots[: self.total]]
        try:
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        finally:
            self.stopped = True
            for child in self.children:
                child.kill()
        if self.errors:
            raise self.errors[0]
        if self.late:
            print(f"not begun, for they would end behind --deadline: {'; '.join(job['name'] for job in self.late)}; "
                  "the same command goes on", flush=True)  # fmt: skip
        return TIME_UP if self.late else FAILED if self.failed else 0

    def serve(self, device: int | None) -> None:
        """Let rows be trained on a device until none waits; the work of a thread."""
        child: Child | None = None
        try:
            while (job := self.take()) is not None:
                if child is None:
                    child = Child(device)
                    self.children.append(child)
                result = child.answer(job, functools.partial(self.say, job, device))
                if self.stopped:
                    return
                self.keep(result)
                if "error" in result:
                    child.close()
                    child = None
            if child is not None:
                child.close()
        except Exception as error:
            self.errors.append(error)

    def take(self) -> Result | None:
        """Give the next row that ends in time."""
        with self.lock:
            while self.waiting and not self.errors:
                job = self.waiting.pop(0)
                now = time.monotonic()
                if now + self.estimate(job) <= self.began + self.deadline:
                    self.ends[identity(job)] = now + self.estimate(job)
                    return job
                self.late.append(job)
            return None

    def keep(self, result: Result) -> None:
        """Write the results, with one more."""
        with self.lock:
            self.ends.pop(identity(result), None)
            if "error" in result:
                self.failed.append(result)
            else:
                self.overhead = max(STARTED + result["wall_seconds"] - self.estimate(result) + self.overhead, 0)
            self.results.append(result | {"command": self.command})
            self.results = newest(self.results)
            try:
                self.file.parent.mkdir(parents=True, exist_ok=True)
                with written_whole(self.file) as file:
                    file.write(json.dumps({"results": self.results}, indent=1).encode())
            except OSError as error:
                raise UserError(f"{self.file} cannot be written: {error.strerror}") from error
            self.say(result, None, result.get("error") or f"done, {result['val']:.3f} bits per byte")

    def say(self, job: Result, device: int | None, text: str) -> None:
        """Print a line of progress, with the time left."""
        with self.lock:
            now = time.monotonic()
            running = [max(0.0, end - now) for end in self.ends.values()]
            left = max([*running, (sum(running) + sum(map(self.estimate, self.waiting))) / len(self.slots)])
            done = self.total - len(self.waiting) - len(running)
            who = f"{job['kind']}: {job['name']}" if device is None else f"GPU {device}, {job['kind']}: {job['name']}"
            print(f"[{done} of {self.total} rows, about {duration(left)} left] {who}: {text}", flush=True)


def devices(most: int | None) -> list[int | None]:
    """Give the places of the GPUs to use; one place without a GPU where there is none.

    Raises:
        UserError: there are not so many.
    """
    there = gpu_count()
    if most is not None and most > there:
        raise UserError(f"--gpus must be at most the {there} of this machine, found {most}")
    return [None] if there == 0 else list(range(there if most is None else most))
